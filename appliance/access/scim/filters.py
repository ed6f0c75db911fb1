"""Filters and attribute paths of SCIM (RFC 7644, sections 3.4.2.2 and 3.5.2). Pure.

A filter becomes a tree that is held against a resource's JSON; it never becomes a statement of the database. Names of
attributes are compared without case; values too, except those of id, externalId and value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from appliance.access.scim.errors import ScimFilterInvalid, ScimPathInvalid

MAX_CHARS: Final = 1024
_MAX_DEPTH = 16
_COMPARE: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "eq": lambda value, wanted: value == wanted,
    "co": lambda value, wanted: wanted in value,
    "sw": lambda value, wanted: value.startswith(wanted),
    "ew": lambda value, wanted: value.endswith(wanted),
    "gt": lambda value, wanted: value > wanted,
    "ge": lambda value, wanted: value >= wanted,
    "lt": lambda value, wanted: value < wanted,
    "le": lambda value, wanted: value <= wanted,
}
_OPERATORS = frozenset({*_COMPARE, "ne"})
_EXACT = frozenset({"id", "externalid", "value"})
_TOKEN = re.compile(
    r"""\s*(?:(?P<paren>[()\[\]])|(?P<text>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z0-9_$:.\-+]+))""", re.DOTALL
)
_NAME = re.compile(r"(?P<attr>[A-Za-z$][A-Za-z0-9_$-]*)(?:\.(?P<sub>[A-Za-z$][A-Za-z0-9_$-]*))?")


@dataclass(frozen=True, slots=True)
class Name:
    """An attribute: schema URN (empty = the resource's own), attribute and sub-attribute, in lower case."""

    urn: str
    attr: str
    sub: str = ""


@dataclass(frozen=True, slots=True)
class Compare:
    """`name op value`; op `pr` has no value."""

    name: Name
    op: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Logic:
    """and, or, not."""

    op: str
    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Within:
    """`name[filter]`: some value of a list passes."""

    name: Name
    inner: Filter


Filter = Compare | Logic | Within


@dataclass(frozen=True, slots=True)
class Path:
    """Where a PATCH operation applies: an attribute, perhaps narrowed to values of it, perhaps a part of those."""

    name: Name
    inner: Filter | None = None


def read_name(text: str) -> Name | None:
    """An attribute's name, None if it is none. What stands behind the last colon of a URN is the attribute."""
    urn, _, tail = text.rpartition(":")
    found = _NAME.fullmatch(tail)
    if found is None or (urn and not urn.lower().startswith("urn:")):
        return None
    return Name(urn.lower(), found["attr"].lower(), (found["sub"] or "").lower())


def read_filter(text: str) -> Filter:
    """The filter in a text; raises ScimFilterInvalid."""
    if len(text) > MAX_CHARS:
        raise ScimFilterInvalid(f"the filter has more than {MAX_CHARS} characters")
    return _Parser(text).whole()


def read_path(text: str) -> Path:
    """The path of a PATCH operation; raises ScimPathInvalid."""
    if len(text) > MAX_CHARS:
        raise ScimPathInvalid(f"the path has more than {MAX_CHARS} characters")
    head, bracket, rest = text.partition("[")
    if not bracket:
        name = read_name(text.strip())
        if name is None:
            raise ScimPathInvalid("the path names no attribute")
        return Path(name)
    inner, closed, tail = rest.rpartition("]")
    name = read_name(head.strip() + tail.strip())
    if not closed or name is None:
        raise ScimPathInvalid("the path names no attribute")
    try:
        return Path(name, read_filter(inner))
    except ScimFilterInvalid as cause:
        raise ScimPathInvalid(cause.detail) from cause


def passes(found: Filter, resource: Mapping[str, Any]) -> bool:
    """Whether a resource, or one value of a list, passes."""
    if isinstance(found, Logic):
        if found.op == "not":
            return not passes(found.parts[0], resource)
        return (all if found.op == "and" else any)(passes(one, resource) for one in found.parts)
    if isinstance(found, Within):
        return any(isinstance(one, Mapping) and passes(found.inner, one) for one in _values(found.name, resource))
    values = _values(found.name, resource)
    if found.op == "pr":
        return any(value not in (None, "", [], {}) for value in values)
    is_exact = (found.name.sub or found.name.attr) in _EXACT
    if found.op == "ne":
        return not any(_holds("eq", value, found.value, is_exact) for value in values)
    return any(_holds(found.op, value, found.value, is_exact) for value in values)


def equals(found: Filter, *attributes: str) -> tuple[str, str] | None:
    """(attribute, text) if the filter can only pass where one of these attributes has that text; else None."""
    if isinstance(found, Compare):
        if found.op == "eq" and not found.name.sub and found.name.attr in attributes and isinstance(found.value, str):
            return found.name.attr, found.value
        return None
    if isinstance(found, Logic) and found.op == "and":
        return next((one for part in found.parts if (one := equals(part, *attributes)) is not None), None)
    return None


def _values(name: Name, resource: Mapping[str, Any]) -> list[Any]:
    source: Any = resource
    if name.urn and not name.urn.startswith("urn:ietf:params:scim:schemas:core:2.0:"):
        source = _get(resource, name.urn)
        if not isinstance(source, Mapping):
            return []
    value = _get(source, name.attr)
    values = value if isinstance(value, list) else [value]
    if name.sub:
        values = [_get(one, name.sub) for one in values if isinstance(one, Mapping)]
    elif isinstance(value, list):
        values = [one.get("value", one) if isinstance(one, Mapping) else one for one in values]
    return values


def _get(source: Mapping[str, Any], name: str) -> Any:
    """By name without case; names of extensions are URNs."""
    return next((value for key, value in source.items() if key.lower() == name), None)


def _holds(op: str, value: Any, wanted: Any, is_exact: bool) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool) or value is None or wanted is None:
        return op == "eq" and value is wanted
    if not isinstance(value, str) or not isinstance(wanted, str):
        return op == "eq" and bool(value == wanted)
    if not is_exact:
        value, wanted = value.casefold(), wanted.casefold()
    return _COMPARE[op](value, wanted)


class _Parser:
    """Recursive descent: or, and, not, then one comparison."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        stripped = text.rstrip()
        while at < len(stripped):
            found = _TOKEN.match(stripped, at)
            if found is None:
                raise ScimFilterInvalid("the filter cannot be read")
            self._tokens.append((found.lastgroup or "", found[found.lastgroup or 0]))
            at = found.end()
        self._at = 0

    def whole(self) -> Filter:
        found = self._or(0)
        if self._at != len(self._tokens):
            raise ScimFilterInvalid("the filter goes on behind its end")
        return found

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("", "")

    def _take(self, kind: str = "", text: str = "") -> str:
        found, said = self._peek()
        if not found or (kind and found != kind) or (text and said.lower() != text):
            raise ScimFilterInvalid(f"the filter wants {text or kind or 'more'}")
        self._at += 1
        return said

    def _is_word(self, text: str) -> bool:
        kind, said = self._peek()
        return kind == "word" and said.lower() == text

    def _or(self, depth: int) -> Filter:
        return self._joined("or", lambda: self._joined("and", lambda: self._one(depth)))

    def _joined(self, word: str, read: Any) -> Filter:
        parts = [read()]
        while self._is_word(word):
            self._take()
            parts.append(read())
        return parts[0] if len(parts) == 1 else Logic(word, tuple(parts))

    def _one(self, depth: int) -> Filter:
        if depth > _MAX_DEPTH:
            raise ScimFilterInvalid("the filter is nested too deeply")
        if self._is_word("not"):
            self._take()
            self._take("paren", "(")
            inner = self._or(depth + 1)
            self._take("paren", ")")
            return Logic("not", (inner,))
        if self._peek() == ("paren", "("):
            self._take()
            inner = self._or(depth + 1)
            self._take("paren", ")")
            return inner
        name = read_name(self._take("word"))
        if name is None:
            raise ScimFilterInvalid("the filter names no attribute")
        if self._peek() == ("paren", "["):
            self._take()
            inner = self._or(depth + 1)
            self._take("paren", "]")
            return Within(name, inner)
        op = self._take("word").lower()
        if op == "pr":
            return Compare(name, op)
        if op not in _OPERATORS:
            raise ScimFilterInvalid(f"there is no operator {op[:20]!a}")
        kind, said = self._peek()
        if kind not in ("text", "word"):
            raise ScimFilterInvalid("the filter wants a value")
        self._take()
        try:
            value = json.loads(said)
        except (ValueError, RecursionError) as cause:
            raise ScimFilterInvalid("a value in the filter cannot be read") from cause
        return Compare(name, op, value)
