"""The WPT (`wpt+jwt`): the proof beside a WIT that its presenter holds the key in `cnf` (draft-ietf-wimse-wpt).

It is made for one target and a few minutes, carries the hash of the WIT and of every other token in the request, and
is used once. What was used is remembered by the caller; `Spent` does it for one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import SplitResult, urlsplit

from appliance.binding import jws
from appliance.binding.claims import Claims
from appliance.binding.errors import (
    Malformed,
    ProofExpired,
    ProofForOtherToken,
    ProofReplayed,
    ProofWindowTooLong,
    ProofWrongAudience,
)
from appliance.binding.facts import seconds
from appliance.binding.token import Wit
from est.signer import Signer

TYP = "wpt+jwt"
_TYPES = (TYP, "application/wpt+jwt")  # the same media type in two spellings; we write the short one
LONGEST_SECONDS = 300
_DEFAULT_PORTS = {"https": 443, "http": 80}

Spend = Callable[[str, float], bool]
"""Takes a key and the moment (seconds since 1970) after which it may be forgotten; False if it was taken before."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Tokens in the same request that the proof must name: `access` in Authorization, `transaction`, others by name."""

    access: str | None = None
    transaction: str | None = None
    others: Mapping[str, str] | None = None


NOTHING = Beside()


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof whose signature and claims are good."""

    aud: str
    exp: int
    jti: str


class Spent:
    """What was used, until it ends by itself; at most `most` at a time, and a full memory takes nothing more."""

    def __init__(self, most: int = 100_000) -> None:
        self._most = most
        self._until: dict[str, float] = {}

    def take(self, key: str, until: float, now: float) -> bool:
        """Whether this is the first use."""
        if key in self._until and self._until[key] > now:
            return False
        if len(self._until) >= self._most:
            self._until = {one: end for one, end in self._until.items() if end > now}
            if len(self._until) >= self._most:
                return False
        self._until[key] = until
        return True


def audience_of(url: str) -> str:
    """The target URI as proofs name it: without query and fragment, scheme and host in lower case, no default port.

    Raises Malformed for anything but an absolute http or https URL without user information.
    """
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Malformed("the target is not a URL", object="target") from error
    if parts.scheme.lower() not in _DEFAULT_PORTS or not parts.hostname or parts.username is not None:
        raise Malformed("the target is not an absolute http or https URL", object="target")
    scheme, host = parts.scheme.lower(), parts.hostname.lower()
    host = f"[{host}]" if ":" in host else host
    place = host if port in (None, _DEFAULT_PORTS[scheme]) else f"{host}:{port}"
    return f"{scheme}://{place}{parts.path or '/'}"


def seal(signer: Signer, *, wit: str, target: str, exp: int, jti: str, beside: Beside = NOTHING) -> str:
    """A proof by the agent's key for one request to `target`."""
    claims: dict[str, object] = {"aud": audience_of(target), "exp": exp, "jti": jti, "wth": jws.s256(wit)}
    if beside.access is not None:
        claims["ath"] = jws.s256(beside.access)
    if beside.transaction is not None:
        claims["tth"] = jws.s256(beside.transaction)
    if beside.others:
        claims["oth"] = {name: jws.s256(value) for name, value in beside.others.items()}
    return jws.seal(claims, typ=TYP, signer=signer)


def check(
    text: str,
    wit: Wit,
    *,
    target: str,
    at: datetime,
    spend: Spend,
    beside: Beside = NOTHING,
    skew_seconds: int = 60,
) -> Proof:
    """Verifies a proof with the key of a WIT that was verified before, and spends it.

    Raises what jws.unseal raises, Claim..., ProofExpired, ProofWindowTooLong, ProofWrongAudience, ProofForOtherToken,
    ProofReplayed.
    """
    sealed = jws.read(text)
    found = sealed.header.get("typ")
    typ = found if isinstance(found, str) and found in _TYPES else TYP
    claims = Claims(sealed.unseal(typ=typ, key=wit.key, algorithms=jws.FOREIGN_ALGORITHMS).claims, "WPT")
    now, exp = seconds(at), claims.whole("exp")
    if now > exp + skew_seconds:
        raise ProofExpired("the proof has expired")
    if exp > now + LONGEST_SECONDS + skew_seconds:
        raise ProofWindowTooLong(f"usable for more than {LONGEST_SECONDS} s", limit=LONGEST_SECONDS)
    audience, jti = claims.text("aud"), claims.text("jti", max_length=128)
    if audience_of(audience) != audience_of(target):
        raise ProofWrongAudience("the proof is addressed to another target")
    _check_hash(claims, "wth", wit.token)
    _check_hash(claims, "ath", beside.access)
    _check_hash(claims, "tth", beside.transaction)
    _check_others(claims, beside.others or {})
    # the key is the WIT's: two agents may choose the same jti
    if not spend(f"{jws.s256(wit.token)}.{jti}", exp + skew_seconds):
        raise ProofReplayed("the proof was used before")
    return Proof(audience, exp, jti)


def _check_hash(claims: Claims, name: str, token: str | None) -> None:
    if token is None:
        if name in claims:
            raise ProofForOtherToken(f"{name} names a token that is not there", token=name)
    elif name not in claims or claims.hash(name) != _hash(token):
        raise ProofForOtherToken(f"{name} does not name the token in the request", token=name)


def _check_others(claims: Claims, others: Mapping[str, str]) -> None:
    inner = claims.inner("oth") if "oth" in claims else Claims({}, "WPT oth")
    for name in dict.fromkeys([*others, *(name for name, _ in inner.items())]):
        _check_hash(inner, name, others.get(name))


def _hash(token: str) -> str:
    try:
        return jws.s256(token)
    except UnicodeEncodeError as error:
        raise ProofForOtherToken("a token in the request is not ASCII", token="") from error
