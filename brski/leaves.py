"""YANG leaves as JSON values, shared by voucher and voucher-request (RFC 7951; RFC 8366, section 5.3).

Readers raise ValueError; the artefact's module turns that into its own refusal. Writers send the narrowest form
(UTC seconds with Z, padded standard base64), readers take what the published examples contain.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import TypeVar

from cryptography import x509

from brski.dialect import STRICT, Dialect
from brski.errors import BrskiError
from est import certificates, keys
from est.errors import EstError
from est.transfer import read_json

T = TypeVar("T")

# RFC 3339 as ietf-yang-types:date-and-time restricts it; implementations in the field send 0 to 9 fraction digits.
_DATE = re.compile(r"(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?(?:Z|([+-])(\d{2}):(\d{2}))", re.ASCII)
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

NONCE_OCTETS = range(8, 33)
MAX_SERIAL = 255
MAX_NONCE = 128
LONG_NONCE_OCTETS = range(8, MAX_NONCE + 1)
MAX_DEPTH = 8
MAX_BYTES = 262_144


class Assertion(Enum):
    """How the MASA knows the registrar (RFC 8366, section 5.3; agent-proximity: RFC 8366bis)."""

    VERIFIED = "verified"
    LOGGED = "logged"
    PROXIMITY = "proximity"
    AGENT_PROXIMITY = "agent-proximity"


def read_string(value: object, *, longest: int = MAX_SERIAL) -> str:
    """A printable string of 1 to `longest` characters; ValueError otherwise."""
    if not isinstance(value, str):
        raise ValueError("a string is needed")
    if not 1 <= len(value) <= longest:
        raise ValueError(f"1 to {longest} characters are allowed")
    if UNPRINTABLE.search(value):
        raise ValueError("control characters are not allowed")
    return value


def read_binary(value: object) -> bytes:
    """Standard base64 with padding and without line breaks (RFC 7951, section 6.6); ValueError otherwise."""
    if not isinstance(value, str):
        raise ValueError("a base64 string is needed")
    try:
        octets = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as cause:
        raise ValueError("not standard base64") from cause
    if not octets:
        raise ValueError("an empty value is not allowed")
    return octets


def write_binary(octets: bytes | None) -> str | None:
    """Standard base64 with padding; None stays None."""
    return None if octets is None else base64.b64encode(octets).decode("ascii")


def read_date(value: object) -> datetime:
    """date-and-time with an offset, as an aware UTC datetime; ValueError otherwise."""
    match = _DATE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("an RFC 3339 time with offset is needed")
    text, fraction, sign, hours, minutes = match.groups()
    local = datetime.fromisoformat(text).replace(microsecond=int((fraction or "0").ljust(6, "0")[:6]))
    if sign is None:
        return local.replace(tzinfo=UTC)
    if int(hours) > 23 or int(minutes) > 59:
        raise ValueError("the offset is out of range")
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    try:
        return local.replace(tzinfo=timezone(offset if sign == "+" else -offset)).astimezone(UTC)
    except OverflowError as cause:
        raise ValueError("the time is out of range") from cause


def read_loose_date(value: object) -> datetime:
    """`read_date` for writers that put a blank for T, use lower case, or leave out the offset, which then is UTC."""
    if isinstance(value, str) and len(value) >= 19:
        value = f"{value[:10]}{'T' if value[10] in ' tT' else value[10]}{value[11:].upper()}"
        if not re.search(r"(?:Z|[+-]\d{2}:\d{2})\Z", value, re.ASCII):
            value += "Z"
    return read_date(value)


def write_date(moment: datetime | None) -> str | None:
    """UTC, whole seconds, Z: the one form every reader in the field takes; None stays None."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def read_assertion(value: object) -> Assertion:
    """One of the enumeration's strings; ValueError otherwise."""
    if not isinstance(value, str):
        raise ValueError("an assertion is a string")
    try:
        return Assertion(value)
    except ValueError as cause:
        raise ValueError("an unknown assertion") from cause


def read_bool(value: object) -> bool:
    """JSON true or false, never a string or number (RFC 7951, section 6.4); ValueError otherwise."""
    if not isinstance(value, bool):
        raise ValueError("true or false is needed")
    return value


def read_nonce(value: object) -> str:
    """The nonce as the string it came as; it is compared, never normalised (RFC 8995, section 5.8.1)."""
    return read_string(value, longest=MAX_NONCE)


def nonce_octets(nonce: str) -> int:
    """Length of a nonce in octets after a best-effort decode.

    RFC 8366 types the nonce as binary, but the examples of RFC 8995 contain unpadded base64url; what is neither counts
    by its characters.
    """
    plain = nonce.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return len(base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True))
    except (binascii.Error, ValueError):
        return len(nonce.encode())


def nonce_lengths(dialect: Dialect) -> range:
    """How many octets a nonce may have; the leaf itself bounds long ones."""
    return range(NONCE_OCTETS.start, MAX_NONCE + 1) if dialect.long_nonces else NONCE_OCTETS


def read_certificate(der: bytes, leaf: str, malformed: type[BrskiError]) -> x509.Certificate:
    """The certificate in a binary leaf; raises `malformed`."""
    try:
        found = certificates.read_certificate(der)
        keys.spki(found)  # what every reader of these leaves compares
    except EstError as cause:
        raise malformed(f"{leaf} is not a certificate", leaf=leaf) from cause
    return found


class Members:
    """The members of one artefact, read leaf by leaf; every fault is raised as the artefact's own refusal."""

    def __init__(
        self, body: bytes, key: str, malformed: type[BrskiError], *, dialect: Dialect = STRICT, legacy: str = ""
    ) -> None:
        """`key` is the one top-level member; in a dialect with legacy keys `legacy` is as good.

        Voucher and voucher-request differ by this key only, so a mix-up stops here (RFC 8995, section 3.3).
        """
        self._malformed = malformed
        self._read_date = read_loose_date if dialect.loose_dates else read_date
        try:
            document = read_json(body, max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
        except EstError as cause:
            raise malformed(f"the content is not JSON that can be accepted: {cause.detail}") from cause
        allowed = {key, legacy} if legacy and dialect.legacy_key else {key}
        if not isinstance(document, dict) or len(document) != 1 or not allowed.issuperset(document):
            raise malformed(f"exactly one top-level member is allowed: {key}")
        ((found, members),) = document.items()
        self.is_legacy = found != key
        if not isinstance(members, dict):
            raise malformed(f"{key} is not an object")
        self._members = members

    def optional(self, name: str, read: Callable[[object], T]) -> T | None:
        """The leaf `name` as `read` makes it, None when it is absent."""
        if name not in self._members:
            return None
        try:
            return read(self._members[name])
        except ValueError as cause:
            raise self._malformed(f"{name}: {cause}", leaf=name) from cause

    def date(self, name: str) -> datetime | None:
        """The date-and-time leaf `name`, in the form that the dialect allows."""
        return self.optional(name, self._read_date)

    def required(self, name: str, read: Callable[[object], T]) -> T:
        """The leaf `name`, which must be there."""
        value = self.optional(name, read)
        if value is None:
            raise self._malformed(f"{name} is missing", leaf=name)
        return value

    def has(self, name: str) -> bool:
        """Whether the leaf is there at all."""
        return name in self._members


def write_members(key: str, members: Mapping[str, object]) -> bytes:
    """One JSON document with the top-level member `key`; leaves that are None are left out."""
    present = {name: value for name, value in members.items() if value is not None}
    return json.dumps({key: present}, separators=(",", ":"), ensure_ascii=False).encode()
