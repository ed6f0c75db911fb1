"""LDAP entries as octets, and what they say of a person (RFC 4511, RFC 4512; MS-ADTS for the attributes of AD). Pure.

Every value is text from somebody else: it is decoded, held against the rule of its place, and dropped when it breaks
it; nothing is interpreted. An account whose state cannot be read counts as disabled.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from appliance.access.owner_rows import OwnerTextRefused, check_department, check_name, check_ref
from appliance.access.sources.plan import Person

MAX_VALUES: Final = 1024
MAX_VALUE_BYTES: Final = 2048
MAX_DEPARTMENTS: Final = 16
STATE_ATTRIBUTES: Final = ("userAccountControl", "accountExpires", "nsAccountLock", "pwdAccountLockedTime")
"""What directories say of an account's state: Active Directory the first two, 389 the third, OpenLDAP the last."""
_ACCOUNTDISABLE = 0x2
_FILETIME_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)
_NEVER = frozenset({0, 0x7FFF_FFFF_FFFF_FFFF})
_LOCKED_FOR_GOOD = b"000001010000Z"
_FIRST_RDN = re.compile(r"[A-Za-z][A-Za-z0-9-]*=((?:[^\\,+]|\\.)+)", re.DOTALL)
_ESCAPED = re.compile(rb"\\([0-9A-Fa-f]{2})|\\(.)", re.DOTALL)
_FILTER_SPECIAL: Final = re.compile(rb"[\x00-\x1f()*\\\x7f-\xff]")

Values = Mapping[str, Sequence[bytes]]
"""Attributes of an entry by lower-case name without options."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """Which attribute means what. `groups` holds names of groups (as `memberOf`), of which those below `group_base`
    count as departments."""

    ref: str
    name: str
    key: str
    departments: tuple[str, ...]
    groups: str = ""
    group_base: str = ""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Everything that is asked for, each once."""
        names = (self.ref, self.name, self.key, *self.departments, self.groups, *STATE_ATTRIBUTES)
        return tuple(dict.fromkeys(one for one in names if one))


def escape(text: str) -> str:
    """A text as the value of a filter (RFC 4515, section 3): it can end or widen nothing."""
    octets = text.encode("utf-8", "surrogatepass")
    return _FILTER_SPECIAL.sub(lambda found: b"\\%02x" % found[0][0], octets).decode("ascii")


def search_filter(site: str, attribute: str, text: str | None = None) -> str:
    """The site's filter, narrowed to entries that have the attribute, or have it with this text."""
    return f"(&{site}({attribute}={'*' if text is None else escape(text)}))"


def read_person(values: Values, attributes: Attributes, now: datetime) -> Person:
    """What one entry says."""
    defects: list[str] = []
    refs = _texts(values, attributes.ref, check_ref, defects)
    names = _texts(values, attributes.name, check_name, defects)
    departments: list[str] = []
    for attribute in attributes.departments:
        departments += _texts(values, attribute, check_department, defects)
    if attributes.groups:
        departments += _groups(values, attributes, defects)
    kept = tuple(dict.fromkeys(one for one in departments if one))
    if len(kept) > MAX_DEPARTMENTS:
        defects.append(f"{len(kept)} departments, the first {MAX_DEPARTMENTS} count")
        kept = kept[:MAX_DEPARTMENTS]
    return Person(
        key=read_key(values, attributes.key),
        refs=tuple(refs),
        names=tuple(one for one in names if one),
        departments=kept,
        is_enabled=_is_enabled(values, now, defects),
        defects=tuple(defects),
    )


def read_key(values: Values, attribute: str) -> str:
    """The lasting key of an entry as text; empty if there is none, or more than one."""
    found = values.get(attribute.lower(), ())
    if len(found) != 1 or not 0 < len(found[0]) <= 128:
        return ""
    octets = found[0]
    if attribute.lower() == "objectguid":
        return str(uuid.UUID(bytes_le=octets)) if len(octets) == 16 else ""
    text = octets.decode("ascii", "replace")
    return text if text.isascii() and text.isprintable() and " " not in text else octets.hex()


def _texts(values: Values, attribute: str, check: object, defects: list[str]) -> list[str]:
    found: list[str] = []
    for octets in values.get(attribute.lower(), ())[:MAX_VALUES]:
        try:
            if len(octets) > MAX_VALUE_BYTES:
                raise OwnerTextRefused(f"has more than {MAX_VALUE_BYTES} octets")
            found.append(check(octets.decode("utf-8")))  # type: ignore[operator]
        except UnicodeDecodeError:
            defects.append(f"{attribute} is not UTF-8")
        except OwnerTextRefused as refused:
            defects.append(f"{attribute}: {refused.detail}")
    return list(dict.fromkeys(found))


def _groups(values: Values, attributes: Attributes, defects: list[str]) -> list[str]:
    """The first value of the first RDN of every group below the base (RFC 4514)."""
    base = "," + attributes.group_base.lower() if attributes.group_base else ""
    found: list[str] = []
    for octets in values.get(attributes.groups.lower(), ())[:MAX_VALUES]:
        text = octets.decode("utf-8", "replace")
        matched = _FIRST_RDN.match(text)
        if len(octets) > MAX_VALUE_BYTES or matched is None:
            defects.append(f"{attributes.groups} is not a name")
            continue
        if base and not text.lower().endswith(base):
            continue
        raw = _ESCAPED.sub(
            lambda one: bytes([int(one[1], 16)]) if one[1] else one[2], matched[1].encode("utf-8", "replace")
        )
        try:
            found.append(check_department(raw.decode("utf-8")))
        except UnicodeDecodeError:
            defects.append(f"{attributes.groups} is not UTF-8")
        except OwnerTextRefused as refused:
            defects.append(f"{attributes.groups}: {refused.detail}")
    return found


def _is_enabled(values: Values, now: datetime, defects: list[str]) -> bool:
    control = _number(values, "userAccountControl", defects)
    expires = _number(values, "accountExpires", defects)
    if control is None or expires is None or control & _ACCOUNTDISABLE:
        return False
    if expires not in _NEVER:
        try:
            if _FILETIME_EPOCH + timedelta(microseconds=expires // 10) <= now:
                return False
        except OverflowError:  # beyond the year 9999
            if expires < 0:
                defects.append("accountExpires cannot be read: the account counts as disabled")
                return False
    if any(one.strip().lower() == b"true" for one in values.get("nsaccountlock", ())):
        return False
    return _LOCKED_FOR_GOOD not in values.get("pwdaccountlockedtime", ())


def _number(values: Values, attribute: str, defects: list[str]) -> int | None:
    """The number, 0 if there is none, None if it cannot be read."""
    found = values.get(attribute.lower(), ())
    if not found:
        return 0
    if len(found) == 1 and re.fullmatch(rb"-?[0-9]{1,20}", found[0]):
        return int(found[0])
    defects.append(f"{attribute} cannot be read: the account counts as disabled")
    return None
