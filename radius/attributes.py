"""Decision -> RADIUS reply attributes: RFC 2868 tunnel attributes as RFC 3580, section 3.31 uses them for VLANs.

The three tunnel attributes are untagged: VLANs are digits or a name that begins with a letter, so the first octet of
Tunnel-Private-Group-Id can never be read as a tag (RFC 2868, section 3.6). A role travels as Aruba-User-Role (vendor
14823), which other makers read too; Filter-Id is the standard's name for what a switch shall apply. A session with an
end is asked again, not dropped: Termination-Action is RADIUS-Request (RFC 3580, section 3.17). A reject carries none of
all that.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from radius.decide import Decision
from radius.request import clean_text

TUNNEL_TYPE_VLAN: Final = 13
TUNNEL_MEDIUM_IEEE_802: Final = 6
MAX_VALUE_BYTES: Final = 253

Vlan = int | str


class Attribute(NamedTuple):
    """One reply attribute: dictionary name, type octet (RFC 2865), the value as text and as octets, a vendor or 0."""

    name: str
    code: int
    text: str
    octets: bytes
    vendor: int = 0


ARUBA: Final = 14823
_AGAIN: Final = Attribute("Termination-Action", 29, "RADIUS-Request", (1).to_bytes(4, "big"))
_VLAN: Final = (
    Attribute("Tunnel-Type", 64, "VLAN", TUNNEL_TYPE_VLAN.to_bytes(4, "big")),
    Attribute("Tunnel-Medium-Type", 65, "IEEE-802", TUNNEL_MEDIUM_IEEE_802.to_bytes(4, "big")),
)


def to_attributes(decision: Decision, *, reply_message: bool = True) -> tuple[Attribute, ...]:
    """What goes into the Access-Accept or Access-Reject for `decision`, in wire order.

    Accept and guest: VLAN, User-Name (the agent, so that accounting follows the certificate and not the outer EAP
    identity), Class (the issuing transaction), and what the rule adds. `reply_message` adds a reject's reason.
    """
    found = of_outcome(*outcome_of(decision)) + of_login(decision)
    said = message(decision) if reply_message else ""
    return (*found, _text("Reply-Message", 18, said)) if said else found


def outcome_of(decision: Decision) -> tuple[Vlan | None, str, str, bool]:
    """(VLAN, Filter-Id, role, whether the port asks again): what many logins have in common; no VLAN, no rest."""
    vlan = decision.vlan
    if decision.verdict == "reject" or vlan is None or not (isinstance(vlan, str) or 1 <= vlan <= 4094):
        return None, "", "", False
    return vlan, decision.filter_id, decision.role, decision.session_timeout is not None


@lru_cache(maxsize=4096)
def of_outcome(vlan: Vlan | None, filter_id: str, role: str, is_asked_again: bool) -> tuple[Attribute, ...]:
    """The attributes of what outcome_of() found."""
    if vlan is None:
        return ()
    found = [*_VLAN, _text("Tunnel-Private-Group-Id", 81, str(vlan))]
    if filter_id:
        found.append(_text("Filter-Id", 11, filter_id))
    if role:
        found.append(_text("Aruba-User-Role", 1, role)._replace(vendor=ARUBA))
    if is_asked_again:
        found.append(_AGAIN)
    return tuple(found)


def of_login(decision: Decision) -> tuple[Attribute, ...]:
    """The attributes of this one login: agent, transaction, how long it lasts."""
    if outcome_of(decision)[0] is None:
        return ()
    found = []
    if 0 < len(decision.agent_id) <= MAX_VALUE_BYTES and decision.agent_id.isascii():
        found.append(_text("User-Name", 1, decision.agent_id))
    if decision.txn:
        found.append(_text("Class", 25, decision.txn))
    if (seconds := decision.session_timeout) is not None:
        found.append(Attribute("Session-Timeout", 27, str(seconds), seconds.to_bytes(4, "big")))
    return tuple(found)


def message(decision: Decision) -> str:
    """Why a login was rejected, in one line that names no department, owner or agent; empty for one that was not.

    RFC 3579, section 2.6.5 wants no Reply-Message beside an EAP-Message. A reject departs from that: its message is
    what the NAS has for its log. Beside an accept nobody would read it.
    """
    if decision.verdict != "reject":
        return ""
    return f"rejected: {decision.reason_code}: {decision.note or decision.reason}"


def as_text(value: str) -> str:
    """A value as it fits into an attribute."""
    return _text("", 0, value).text


def _text(name: str, code: int, value: str) -> Attribute:
    if len(value) <= MAX_VALUE_BYTES and value.isascii() and value.isprintable():
        return Attribute(name, code, value, value.encode())
    octets = clean_text(value).encode("utf-8", "replace")[:MAX_VALUE_BYTES].decode("utf-8", "ignore").encode()
    return Attribute(name, code, octets.decode(), octets)
