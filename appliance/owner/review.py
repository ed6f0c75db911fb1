"""What you see is what you sign: a request's own bytes, decoded here, as the few typed fields that people are shown.

Proof of possession comes first; nothing of an unsigned request reaches the screen. The agent's free text is one label
of printable ASCII, shown as claimed by the agent. There is no way to show, or later sign, a bare digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from appliance.binding import request as requests
from appliance.binding.approval import OwnerApproval
from appliance.binding.errors import Malformed, OwnerMismatch, RequestWrongAudience
from appliance.binding.facts import Limits
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.request import AgentRequest
from est import csr

MAX_SERVER = 255
_PROFILES = {"x509": "X.509 certificate", "wit": "workload identity token (WIT)"}
_PURPOSES = {"issue": "first credential", "renew": "renewal"}
_MODELS = {
    "agent-mediated": "agent-mediated: the agent carries your signature to the server",
    "owner-mediated": "owner-mediated: its owner's gateway submits it to the server",
    "server-mediated": "server-mediated: the server has asked you",
}


@dataclass(frozen=True, slots=True)
class Change:
    """A difference from the last approval of the same agent; what widens wants full attention."""

    field: str
    before: str
    after: str
    widens: bool


@dataclass(frozen=True, slots=True)
class ReviewCard:
    """Everything that an approval will say, read out of the request's bytes, and what the owner's side adds to it."""

    request: AgentRequest
    short_code: str
    owner_id: str
    has_csr: bool
    """Whether the CSR was at hand and is the one that the agent signed for."""
    proxy: str | None = None
    """The owner's own restriction to one proxy."""
    network_class: str | None = None
    """Where the agent would land, if the owner's tool was told; not part of what is signed."""
    changes: tuple[Change, ...] = ()
    beside: str | None = None
    """The agent's own owner, where that is somebody else and this owner is to approve beside it; None: it is yours."""

    @property
    def widens(self) -> bool:
        """Whether this gives the agent more than the last approval did."""
        return any(change.widens for change in self.changes)


def review(
    token: bytes | str,
    *,
    owner_id: str,
    now: datetime,
    csr_der: bytes | None = None,
    server_id: str | None = None,
    proxy: str | None = None,
    network_class: str | None = None,
    last: OwnerApproval | None = None,
    limits: Limits | None = None,
    beside: str | None = None,
) -> ReviewCard:
    """Decodes and verifies a request for the owner `owner_id`.

    `beside` is the agent's own owner, where `owner_id` is to approve beside it (None: the agent is `owner_id`'s own).
    `server_id` is the server that this owner works with (None: shown, not compared), `last` the last approval given to
    this agent. Raises what requests.unseal raises, OwnerMismatch, OriginMismatch, RequestWrongAudience, Request...,
    Csr..., est's for a bad CSR.
    """
    request = requests.unseal(_text(token))
    origin = read_kind(owner_id, Kind.OWNER).origin
    if beside == owner_id:
        beside = None
    if request.owner is None or request.owner != (beside or owner_id):
        raise OwnerMismatch("the request names another owner than you, or none")
    read_kind(request.sub, Kind.AGENT, origin=origin)
    if len(request.aud) > MAX_SERVER or " " in request.aud:
        # the agent wrote it, and a line of it could look like another line of the card
        raise RequestWrongAudience("the request's server is no server's identifier")
    if server_id is not None and request.aud != server_id:
        raise RequestWrongAudience("the request is addressed to another server than yours")
    requests.check_times(request, now, limits or Limits())
    if csr_der is not None:
        requests.check_csr(request, csr.read(csr_der))
    if proxy is not None:
        read_kind(proxy, Kind.PROXY)
    return ReviewCard(
        request=request,
        short_code=requests.short_code(request.rqh),
        owner_id=owner_id,
        has_csr=csr_der is not None,
        proxy=proxy,
        network_class=network_class,
        changes=_changes(request, proxy, last) if last is not None else (),
        beside=beside,
    )


def render(card: ReviewCard) -> str:
    """The card as plain text for a terminal: printable ASCII and line feeds only, one fact per line."""
    request = card.request
    rows = [
        ("short code", f"{card.short_code}   (must be the same where the agent runs)"),
        ("agent", request.sub),
        ("agent key", request.jkt),
        *([] if card.beside is None else [("owner", f"{card.beside}   (not yours: you approve beside its owner)")]),
        ("you", card.owner_id),
        ("asks for", ", ".join(_PROFILES[profile] for profile in request.profiles)),
        ("purpose", _PURPOSES[request.purpose]),
        ("longest life", _duration(request.ttl)),
        ("server", request.aud),
        ("proxy", card.proxy or "any proxy that the campus allows for you"),
        ("model", _MODELS[request.model]),
        ("asked", _time(request.iat)),
        ("usable until", _time(request.exp)),
        ("CSR", "checked" if card.has_csr else "not at hand" if request.csr_s256 else "none"),
        ("network", card.network_class or "decided by your department when the port is opened"),
    ]
    if request.label is not None:
        # terminals turn addresses into links; what an agent writes must not become one
        rows.append(("claimed by agent", '"' + request.label.replace("://", "[:]//") + '"'))
    if request.txn is not None:
        rows.append(("claimed reference", request.txn))
    lines = [f"{name:<18} {_safe(value)}" for name, value in rows]
    if card.changes:
        lines.append("since your last approval:")
        for change in card.changes:
            mark = "!" if change.widens else "~"
            lines.append(_safe(f"  {mark} {change.field}: {change.before} -> {change.after}"))
        if card.widens:
            lines.append("This gives the agent MORE than before. Read every line.")
    return "\n".join(lines) + "\n"


def _changes(request: AgentRequest, proxy: str | None, last: OwnerApproval) -> tuple[Change, ...]:
    anyone = "any proxy"
    compared = (
        ("agent", last.sub, request.sub, last.sub != request.sub),
        ("agent key", last.jkt, request.jkt, False),
        ("server", last.aud, request.aud, True),
        ("longest life", _duration(last.ttl), _duration(request.ttl), request.ttl > last.ttl),
        (
            "asks for",
            ", ".join(last.profiles),
            ", ".join(request.profiles),
            not set(request.profiles) <= set(last.profiles),
        ),
        ("model", last.model, request.model, False),
        ("proxy", last.proxy or anyone, proxy or anyone, last.proxy is not None),
    )
    return tuple(Change(field, before, after, widens) for field, before, after, widens in compared if before != after)


def _text(token: bytes | str) -> str:
    if isinstance(token, str):
        return token.strip()
    try:
        return token.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise Malformed("the request is not ASCII", object="agent request") from error


def _safe(text: str) -> str:
    """Printable ASCII only; every field is checked before, so this has nothing to do unless a check is lost."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def _duration(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
