"""The part of structured field values that HTTP message signatures use (RFC 9651): read strictly, written canonically.

Dictionaries whose members are inner lists of strings or byte sequences, parameters that are integers, strings, tokens,
byte sequences or booleans. Anything else is refused; no signature that we know needs it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from appliance.binding.errors import SignatureMalformed

MAX_FIELD = 8192
Bare = int | str | bool | bytes
_T = TypeVar("_T")
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r"[a-z*][a-z0-9_.*-]{0,63}")
_INTEGER = re.compile(r"-?[0-9]{1,15}")
_STRING = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BYTES = re.compile(r":([A-Za-z0-9+/]*={0,2}):")
_BOOLEAN = re.compile(r"\?([01])")


@dataclass(frozen=True, slots=True)
class Item:
    """One string of an inner list with its parameters."""

    value: str
    params: Mapping[str, Bare]

    def write(self) -> str:
        """Its canonical form, which stands in signature bases."""
        return _write_string(self.value) + write_params(self.params)


@dataclass(frozen=True, slots=True)
class InnerList:
    """An inner list with its parameters."""

    items: tuple[Item, ...]
    params: Mapping[str, Bare]

    def write(self) -> str:
        """Its canonical form."""
        return "(" + " ".join(one.write() for one in self.items) + ")" + write_params(self.params)


class _Reader:
    def __init__(self, text: str, what: str) -> None:
        if len(text) > MAX_FIELD or not text.isascii():
            raise SignatureMalformed(f"{what} is not ASCII of at most {MAX_FIELD} characters")
        self._text = text.strip(" ")
        self._at = 0
        self._what = what

    def wrong(self) -> SignatureMalformed:
        return SignatureMalformed(f"{self._what} cannot be read at character {self._at + 1}")

    def peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def take(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def key(self) -> str:
        found = self.match(_KEY)
        if found is None:
            raise self.wrong()
        return found[0]

    def params(self) -> dict[str, Bare]:
        found: dict[str, Bare] = {}
        while self.take(";"):
            while self.take(" "):
                pass
            name = self.key()
            if name in found:
                raise SignatureMalformed(f"{self._what} has the parameter {name} twice")
            found[name] = self.bare() if self.take("=") else True
        return found

    def bare(self) -> Bare:
        first = self.peek()
        if first == '"':
            if (text := self.match(_STRING)) is not None:
                return re.sub(r"\\(.)", r"\1", text[1])
        elif first == ":":
            return self.octets()
        elif first == "?":
            if (flag := self.match(_BOOLEAN)) is not None:
                return flag[1] == "1"
        elif (number := self.match(_INTEGER)) is not None and self.peek() != ".":
            return int(number[0])
        raise self.wrong()

    def octets(self) -> bytes:
        found = self.match(_BYTES)
        try:
            if found is not None:
                return base64.b64decode(found[1], validate=True)
        except binascii.Error as error:
            raise self.wrong() from error
        raise self.wrong()

    def inner_list(self) -> InnerList:
        if not self.take("("):
            raise self.wrong()
        items: list[Item] = []
        while True:
            while self.take(" "):
                pass
            if self.take(")"):
                return InnerList(tuple(items), self.params())
            value = self.bare()
            if not isinstance(value, str):
                raise self.wrong()
            items.append(Item(value, self.params()))
            if self.peek() not in (" ", ")"):
                raise self.wrong()

    def next_member(self) -> bool:
        """Whether another member follows the comma; False at the end."""
        self.match(_SPACE)
        if self._at == len(self._text):
            return False
        if not self.take(","):
            raise self.wrong()
        self.match(_SPACE)
        return True


def read_lists(text: str, what: str) -> dict[str, InnerList]:
    """A dictionary of inner lists, as Signature-Input is; raises SignatureMalformed."""
    return _members(text, what, _Reader.inner_list)


def read_octets(text: str, what: str) -> dict[str, bytes]:
    """A dictionary of byte sequences, as Signature and Content-Digest are; raises SignatureMalformed."""
    return _members(text, what, _Reader.octets)


def write_octets(name: str, octets: bytes) -> str:
    """A dictionary with one byte sequence."""
    return f"{name}=:{base64.b64encode(octets).decode()}:"


def write_params(params: Mapping[str, Bare]) -> str:
    """Parameters in their canonical form."""
    return "".join(f";{name}" if value is True else f";{name}={_write(value)}" for name, value in params.items())


def _members(text: str, what: str, read: Callable[[_Reader], _T]) -> dict[str, _T]:
    reader = _Reader(text, what)
    found: dict[str, _T] = {}
    while True:
        name = reader.key()
        if name in found:
            raise SignatureMalformed(f"{what} names {name} twice")
        if not reader.take("="):
            raise reader.wrong()
        found[name] = read(reader)
        if not reader.next_member():
            return found


def _write(value: Bare) -> str:
    if isinstance(value, bool):
        return "?1" if value else "?0"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        return f":{base64.b64encode(value).decode()}:"
    return _write_string(value)


def _write_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
