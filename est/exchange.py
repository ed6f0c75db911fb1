"""Call and Reply: one HTTP message as a value, so that protocol code never sees a socket (RFC 7030, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Call:
    """A request: method, absolute path without query, media type as sent, headers with lower-case names, body, query.

    `query` is what stood behind the question mark, as it was sent."""

    method: str
    path: str
    media_type: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: _NONE)
    body: bytes = b""
    query: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: status, media type ("" = none), headers with lower-case names, body."""

    status: int
    media_type: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: _NONE)
    body: bytes = b""
