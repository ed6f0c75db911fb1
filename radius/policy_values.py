"""Values of a policy text: each reader takes what TOML gave and its place; its refusals name the place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Final

from radius.errors import (
    PolicyKeyUnknown,
    PolicyMalformed,
    PolicyValueInvalid,
    RuleDuplicate,
    VlanOutOfRange,
    VlanUnknown,
)
from radius.request import clean_text

Table = Mapping[str, object]
MAX_SESSION_SECONDS: Final = 31 * 86_400
MIN_SESSION_SECONDS: Final = 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}\Z")
_VLAN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,31}\Z")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}\Z")


def check_keys(found: Table, known: Collection[str], where: str) -> None:
    """Every key is known here; a refusal names the nearest one."""
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            shown = clean_text(key, 64)
            place = f"{where}.{shown}" if where else shown
            hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(sorted(known))}"
            raise PolicyKeyUnknown(f"unknown key {place!r}{hint}", where=place, near=near[0] if near else "")


def table(value: object, where: str) -> Table:
    """A table."""
    if not isinstance(value, dict):
        raise PolicyMalformed(f"{where} must be a table", where=where)
    return value


def text(value: object, where: str) -> str:
    """1 to 128 printable characters."""
    if not isinstance(value, str) or not value.strip():
        raise PolicyValueInvalid(f"{where} must be a text", where=where)
    if len(value) > 128 or not value.isprintable():
        raise PolicyValueInvalid(f"{where} must be at most 128 printable characters", where=where)
    return value


def texts(value: object, where: str) -> tuple[str, ...]:
    """One text, or a list of them that is not empty."""
    if isinstance(value, list):
        if not value:
            raise PolicyValueInvalid(f"{where} must not be empty", where=where)
        return tuple(text(one, f"{where}[{number}]") for number, one in enumerate(value, 1))
    return (text(value, where),)


def distinct(value: object, where: str) -> tuple[str, ...]:
    """As texts(), none twice; absent = empty."""
    if value is None:
        return ()
    found = texts(value, where)
    if len(set(found)) != len(found):
        raise RuleDuplicate(f"{where} names one value twice", where=where)
    return found


def choices(value: object, allowed: Collection[str], where: str) -> tuple[str, ...]:
    """As distinct(), each out of a list."""
    chosen = distinct(value, where)
    for one in chosen:
        if one not in allowed:
            raise PolicyValueInvalid(f"{where} must be one of {', '.join(allowed)}, not {one!r}", where=where)
    return chosen


def patterns(value: object, where: str) -> tuple[str, ...]:
    """As distinct(); a `*` may only stand last, behind something."""
    found = distinct(value, where)
    for one in found:
        if "*" in one[:-1] or one == "*":
            raise PolicyValueInvalid(f"{where}: a * stands last and behind something, unlike in {one!r}", where=where)
    return found


def one_of(value: object, allowed: Collection[str], where: str) -> str:
    """One word out of a list."""
    if not isinstance(value, str) or value not in allowed:
        words = " or ".join(f'"{one}"' for one in allowed)
        raise PolicyValueInvalid(f"{where} must be {words}", where=where)
    return value


def name(value: str, where: str) -> str:
    """A name for a rule, a VLAN or a site."""
    if not _NAME.match(value):
        raise PolicyValueInvalid(
            f"{where}: a name is 1 to 64 letters, digits, blanks, dots, hyphens or underscores", where=where
        )
    return value


def label(value: object, where: str) -> str:
    """A text for switches (Filter-Id, role): plain characters only; absent = empty."""
    if value is None:
        return ""
    found = text(value, where)
    if not _LABEL.match(found):
        raise PolicyValueInvalid(f"{where} is 1 to 64 letters, digits or characters of . _ : / -", where=where)
    return found


def seconds(value: object, where: str) -> int | None:
    """A session's life; absent = None."""
    if value is None:
        return None
    if type(value) is not int or not MIN_SESSION_SECONDS <= value <= MAX_SESSION_SECONDS:
        raise PolicyValueInvalid(f"{where} must be {MIN_SESSION_SECONDS} to {MAX_SESSION_SECONDS} seconds", where=where)
    return value


def vlan_value(value: object, where: str, *, names: bool) -> int | str:
    """A VLAN's number, or the name that switches know it by."""
    if type(value) is int:
        if not 1 <= value <= 4094:
            raise VlanOutOfRange(f"{where} must be between 1 and 4094, not {value}", where=where)
        return value
    if names and isinstance(value, str):
        if not _VLAN_NAME.match(value):
            raise PolicyValueInvalid(
                f"{where}: a VLAN's name is 1 to 32 letters, digits, dots, hyphens or underscores, the first a letter "
                "(a number is written without quotes)",
                where=where,
            )
        return value
    raise PolicyValueInvalid(f"{where} must be a number{' or a name' if names else ''}", where=where)


def vlan(vlans: Mapping[str, int | str], found: str, where: str) -> int | str:
    """What [vlans] says under a name."""
    try:
        return vlans[found]
    except KeyError as cause:
        known = ", ".join(vlans) or "none"
        raise VlanUnknown(f"{where}: [vlans] has no {found!r} (known: {known})", where=where) from cause
