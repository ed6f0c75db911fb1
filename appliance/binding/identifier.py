"""Identifiers of agents, owners, proxies and servers: `scheme://trust-domain/kind/name` (WIMSE identifier, SPIFFE ID).

The SPIFFE character rules hold for both schemes. What is not canonical is refused, never normalised: two identifiers
are equal exactly if their bytes are.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from appliance.binding.errors import IdentifierKindWrong, IdentifierMalformed, OriginMismatch

SCHEMES = ("spiffe", "wimse")
MAX_BYTES = 2048
MAX_OWNER_BYTES = 120
"""Longest owner identifier: its hex must fit a RADIUS attribute of 253 octets, and FreeRADIUS cuts long extensions."""

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
_IPV4 = re.compile(r"[0-9]+(\.[0-9]+){3}")
_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

_USUAL = re.compile(
    r"(spiffe|wimse)://(?!(?:[0-9]+\.){3}[0-9]+/)([a-z0-9._-]{1,64})/([a-z]+)"
    r"/([0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})"
)
"""Nearly every identifier that there is, in one piece; others are good as well, and are looked at piece by piece."""


class Kind(StrEnum):
    """First path segment of an identifier: who is named."""

    AGENT = "agent"
    OWNER = "owner"
    PROXY = "proxy"
    SERVER = "server"
    NAS = "nas"
    RADIUS = "radius"


_NAMED_FREELY = frozenset({Kind.SERVER, Kind.RADIUS})


class Identifier(NamedTuple):
    """A canonical identifier: scheme, trust domain, path segments. Compare by `uri`."""

    uri: str
    scheme: str
    trust_domain: str
    segments: tuple[str, ...]

    @property
    def origin(self) -> str:
        """Scheme and trust domain: what an issuer answers for and what chooses the trust anchors."""
        return f"{self.scheme}://{self.trust_domain}"

    def __str__(self) -> str:
        return self.uri


def read(uri: str, *, schemes: Collection[str] = SCHEMES, max_bytes: int = MAX_BYTES) -> Identifier:
    """The identifier in `uri`, whose scheme is one of those configured; raises IdentifierMalformed."""
    return _read(uri, max_bytes) if schemes is SCHEMES else _parse(uri, schemes, max_bytes)


def read_origin(uri: str, *, schemes: Collection[str] = SCHEMES) -> str:
    """An origin (`scheme://trust-domain`, nothing after it), checked; raises IdentifierMalformed."""
    if _split(uri, schemes, MAX_BYTES)[1]:
        raise IdentifierMalformed("an origin has no path")
    return uri


def read_kind(uri: str, kind: Kind, *, origin: str | None = None) -> Identifier:
    """An identifier of this kind: one name after the kind, a lower-case UUID version 4 for all but servers.

    With `origin`, of this origin. Raises IdentifierMalformed, IdentifierKindWrong, OriginMismatch.
    """
    identifier = _read_kind(uri, kind)
    if origin is not None and identifier.origin != origin:
        raise OriginMismatch("scheme or trust domain is not ours", expected=origin, found=identifier.origin)
    return identifier


# What was read is kept, because every object about an agent names it, its owner and its proxy once more.
@lru_cache(maxsize=256)
def _read(uri: str, max_bytes: int) -> Identifier:
    usual = _USUAL.fullmatch(uri)
    if usual is not None and len(uri) <= max_bytes:
        scheme, trust_domain, kind, name = usual.groups()
        return Identifier(uri, scheme, trust_domain, (kind, name))
    return _parse(uri, SCHEMES, max_bytes)


def _parse(uri: str, schemes: Collection[str], max_bytes: int) -> Identifier:
    origin, segments = _split(uri, schemes, max_bytes)
    if not segments:
        raise IdentifierMalformed("an identifier needs a path")
    return Identifier(uri, *origin, segments)


@lru_cache(maxsize=1024)
def _read_kind(uri: str, kind: Kind) -> Identifier:
    identifier = read(uri, max_bytes=MAX_OWNER_BYTES if kind is Kind.OWNER else MAX_BYTES)
    if identifier.segments[0] != kind:
        raise IdentifierKindWrong(
            f"not the identifier of an {kind}" if kind[0] in "ao" else f"not the identifier of a {kind}",
            expected=str(kind),
            found=identifier.segments[0][:32],
        )
    if len(identifier.segments) != 2:
        raise IdentifierMalformed("an identifier has exactly a kind and a name after its trust domain")
    if kind not in _NAMED_FREELY and not _UUID4.fullmatch(identifier.segments[1]):
        raise IdentifierMalformed("the name is not a UUID of version 4 in lower case")
    return identifier


def make(origin: str, kind: Kind, name: str) -> Identifier:
    """The identifier of `name` (a UUID of the caller's making, or a server's name); raises like read_kind."""
    return read_kind(f"{origin}/{kind}/{name}", kind, origin=origin)


def is_within(identifier: Identifier, prefix: str) -> bool:
    """Whether a policy prefix covers the identifier: same origin, whole segments; an empty path covers nothing.

    Raises IdentifierMalformed if the prefix itself is not canonical.
    """
    origin, segments = _split(prefix.removesuffix("/"), SCHEMES, MAX_BYTES)
    if not segments:
        return False
    same_origin = (identifier.scheme, identifier.trust_domain) == origin
    return same_origin and identifier.segments[: len(segments)] == segments


def _split(uri: str, schemes: Collection[str], max_bytes: int) -> tuple[tuple[str, str], tuple[str, ...]]:
    if len(uri) > max_bytes:
        raise IdentifierMalformed(f"an identifier has at most {max_bytes} bytes")
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in schemes:
        raise IdentifierMalformed(f"the scheme of an identifier is {' or '.join(schemes)}")
    trust_domain, *segments = rest.split("/")
    if not _TRUST_DOMAIN.fullmatch(trust_domain) or _IPV4.fullmatch(trust_domain):
        raise IdentifierMalformed(
            "the trust domain is a name of lower-case letters, digits, dot, underscore and hyphen"
        )
    for segment in segments:
        if segment in (".", "..") or not _SEGMENT.fullmatch(segment):
            raise IdentifierMalformed("a path segment is empty, a dot segment, or has other than A-Z a-z 0-9 . _ -")
    return (scheme, trust_domain), tuple(segments)
