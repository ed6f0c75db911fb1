"""Typed reading of a JSON object's members, so that every refusal names the object and the claim."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Set
from contextlib import suppress

from appliance.binding.errors import (
    BindingError,
    ClaimMalformed,
    ClaimMissing,
    ClaimUnknown,
    Malformed,
    TokenIdTooShort,
)
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.jws import unbase64url

MAX_TIME = 253_402_300_799
"""Last second that a datetime can hold, as NumericDate."""
MAX_LABEL = 64

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
_HASH = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
_NONCE = re.compile(r"[A-Za-z0-9_-]{22,88}")
_REFERENCE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_128_BITS = 22
_JKT = frozenset({"jkt"})


class Claims:
    """The members of one JSON object, read by name; `what` is the object's name in refusals."""

    __slots__ = ("_values", "_what")

    def __init__(self, values: Mapping[str, object], what: str) -> None:
        self._values = values
        self._what = what

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def items(self) -> Iterable[tuple[str, object]]:
        """Every member with its name."""
        return self._values.items()

    def check_names(self, known: Set[str]) -> None:
        """Refuses (ClaimUnknown) members that nobody would read and therefore nobody would have been shown."""
        if self._values.keys() <= known:
            return
        name = next(one for one in self._values if one not in known)
        raise ClaimUnknown(f"{self._what} has no such claim", object=self._what, claim=name[:64])

    def value(self, name: str) -> object:
        """The member as it is; raises ClaimMissing."""
        try:
            return self._values[name]
        except KeyError:
            raise self._missing(name) from None

    def text(self, name: str, *, max_length: int = 2048) -> str:
        """Printable ASCII of 1 to `max_length` characters."""
        value = self._values.get(name)
        if isinstance(value, str) and 0 < len(value) <= max_length and value.isascii() and value.isprintable():
            return value
        raise self._refusal(name, f"printable ASCII of 1 to {max_length} characters")

    def label(self, name: str) -> str:
        """The one text that an agent may choose freely: at most 64 printable ASCII characters."""
        return self.text(name, max_length=MAX_LABEL)

    def reference(self, name: str) -> str:
        """A workflow reference: 1 to 64 of A-Z a-z 0-9 . _ : -"""
        return self._matching(name, _REFERENCE, "1 to 64 of A-Z a-z 0-9 . _ : -")

    def identifier(self, name: str, kind: Kind) -> str:
        """An identifier of this kind; raises what identifier.read_kind raises."""
        value = self._values.get(name)
        text = value if isinstance(value, str) else self.text(name)
        try:
            return read_kind(text, kind).uri
        except BindingError:
            self.text(name)  # has a better word for what no text may be
            raise

    def whole(self, name: str, *, low: int = 0, high: int = MAX_TIME) -> int:
        """An integer within these bounds."""
        value = self._values.get(name)
        if type(value) is int and low <= value <= high:  # not a bool
            return value
        raise self._refusal(name, f"a whole number from {low} to {high}")

    def window(self) -> tuple[int, int]:
        """`iat` and `exp`, in seconds since 1970; `exp` comes later."""
        iat, exp = self.whole("iat"), self.whole("exp")
        if exp <= iat:
            raise self.malformed("exp", "later than iat")
        return iat, exp

    def token_id(self, name: str = "jti") -> str:
        """A random identifier of at least 128 bits in base64url; raises TokenIdTooShort."""
        value = self._matching(name, _TOKEN, "base64url of at most 128 characters")
        if len(value) < _128_BITS:
            raise TokenIdTooShort(f"{name} has fewer than 128 bits", object=self._what, claim=name)
        return value

    def nonce(self, name: str) -> str:
        """A nonce as the server makes them: 22 to 88 characters of base64url (RFC 9711 allows 8 to 88)."""
        return self._matching(name, _NONCE, "base64url of 22 to 88 characters")

    def octets(self, name: str, *, max_length: int) -> bytes:
        """The octets of base64url of 1 to `max_length` characters; raises what text() and `jws.unbase64url` raise."""
        value = self._values.get(name)
        if isinstance(value, str) and 0 < len(value) <= max_length:
            with suppress(Malformed):  # what has no other character than base64url's is a text that may be
                return unbase64url(value, name)
        return unbase64url(self.text(name, max_length=max_length), name)

    def hash(self, name: str) -> str:
        """base64url of a SHA-256."""
        return self._matching(name, _HASH, "base64url of 32 octets")

    def hashes(self, name: str, *, most: int) -> tuple[str, ...]:
        """One to `most` different hashes, in their order."""
        value = self.value(name)
        if (
            not isinstance(value, list)
            or not 0 < len(value) <= most
            or any(not isinstance(one, str) or not _HASH.fullmatch(one) for one in value)
            or len(set(value)) != len(value)
        ):
            raise self.malformed(name, f"1 to {most} different hashes")
        return tuple(value)

    def choice(self, name: str, choices: Collection[str]) -> str:
        """One of these words."""
        value = self._values.get(name)
        if isinstance(value, str) and value in choices:
            return value
        raise self._refusal(name, f"one of {', '.join(sorted(choices))}")

    def choices(self, name: str, choices: Collection[str]) -> tuple[str, ...]:
        """One or more different ones of these words, in their order."""
        value = self.value(name)
        if (
            not isinstance(value, list)
            or not value
            or any(not isinstance(one, str) or one not in choices for one in value)
            or len(set(value)) != len(value)
        ):
            raise self.malformed(name, f"different ones of {', '.join(sorted(choices))}")
        return tuple(value)

    def inner(self, name: str) -> Claims:
        """The object under this name, with a path for refusals."""
        value = self._values.get(name)
        if isinstance(value, dict):
            return Claims(value, f"{self._what} {name}")
        raise self._refusal(name, "an object")

    def jkt(self) -> str:
        """`cnf.jkt`, the confirmation member of RFC 9449, section 6.1, and nothing beside it."""
        confirmation = self.inner("cnf")
        confirmation.check_names(_JKT)
        return confirmation.hash("jkt")

    def malformed(self, name: str, due: str) -> ClaimMalformed:
        """The refusal of a member that is not what is due."""
        return ClaimMalformed(f"{self._what}: {name} is not {due}", object=self._what, claim=name)

    def _matching(self, name: str, pattern: re.Pattern[str], due: str) -> str:
        value = self._values.get(name)
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        raise self._refusal(name, due)

    def _refusal(self, name: str, due: str) -> BindingError:
        return self.malformed(name, due) if name in self._values else self._missing(name)

    def _missing(self, name: str) -> ClaimMissing:
        return ClaimMissing(f"{self._what} lacks {name}", object=self._what, claim=name)


def members(value: object, what: str) -> Claims:
    """The members of a JSON value that must be an object; raises Malformed."""
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not an object", object=what)
    return Claims(value, what)


def check_window(
    iat: int,
    exp: int,
    now: float,
    *,
    skew_seconds: int,
    longest_seconds: int,
    early: type[BindingError],
    late: type[BindingError],
    long: type[BindingError],
) -> None:
    """The three facts about a time window, each with its own refusal: too long, still ahead, over."""
    if exp - iat > longest_seconds:
        raise long(f"usable for more than {longest_seconds} s", limit=longest_seconds)
    if iat > now + skew_seconds:
        raise early("issued in the future: one of the clocks is wrong")
    if now > exp + skew_seconds:
        raise late()
