"""How registrar and join proxy are found by DNS-SD (RFC 8995, appendix B; draft-ietf-anima-brski-discovery).

Names, TXT keys, order of attempts and pauses, as values. Nothing learned this way influences trust: it only says whom
to try next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from brski.errors import AnnouncementInvalid

REGISTRAR_SERVICE = "_brski-registrar._tcp.local."
PROXY_SERVICE = "_brski-proxy._tcp.local."

EST_TLS = "est-tls"
MAX_LABEL = 63

ATTEMPT_SPACING_SECONDS = 4.0
ATTEMPT_STALL_SECONDS = 5.0
ROUND_SPACING_SECONDS = 30.0
BACKOFF_CEILING_SECONDS = 3600.0
MAX_OFFERS = 32


@dataclass(frozen=True, slots=True)
class Offer:
    """One announced way to a registrar; `addresses` in the order in which they were announced."""

    instance: str
    addresses: tuple[str, ...]
    port: int
    variations: frozenset[str] = frozenset({EST_TLS})
    priority: int = 0


def instance_name(identifier: str, service: str = REGISTRAR_SERVICE) -> str:
    """The instance name of an announcement; `:` becomes `-`. Raises AnnouncementInvalid."""
    label = identifier.replace(":", "-")
    if not label or len(label.encode()) > MAX_LABEL or not label.isprintable() or "." in label:
        raise AnnouncementInvalid("an instance label is 1 to 63 printable octets without a dot")
    return f"{label}.{service}"


def write_txt(variations: Iterable[str] = (EST_TLS,)) -> dict[bytes, bytes | None]:
    """The TXT record as zeroconf takes it: variations as keys without value, lower case. Raises AnnouncementInvalid."""
    record: dict[bytes, bytes | None] = {}
    for variation in variations:
        key = variation.lower()
        if not key or len(key) > MAX_LABEL or not key.isascii() or not key.isprintable() or "=" in key or " " in key:
            raise AnnouncementInvalid("a variation is a DNS-SD key of 1 to 63 printable ASCII characters")
        record[key.encode("ascii")] = None
    return record


def read_txt(record: Mapping[bytes, bytes | None]) -> frozenset[str]:
    """The variations of a TXT record; none at all means the one of RFC 8995.

    Keys with a value are not variations, unreadable ones are skipped: the sender is anybody.
    """
    names = {key.decode("ascii", "replace").lower() for key, value in record.items() if value is None and key}
    return frozenset(name for name in names if name.isascii() and name.isprintable()) or frozenset({EST_TLS})


def order(
    offers: Sequence[Offer], *, preference: Sequence[str] = (EST_TLS,), shuffle: Callable[[list[Offer]], None]
) -> list[Offer]:
    """The feasible offers in the order of attempts.

    Best variation of `preference` first, then the lower SRV priority; among equals as `shuffle` (in place) says, so
    that a campus full of pledges spreads over its registrars. Offers without a known variation are left out, at most
    MAX_OFFERS are kept.
    """
    rank = {variation: place for place, variation in enumerate(preference)}
    feasible = [offer for offer in offers if offer.addresses and any(name in rank for name in offer.variations)]
    shuffle(feasible)
    feasible.sort(key=lambda offer: (min(rank[name] for name in offer.variations if name in rank), offer.priority))
    return feasible[:MAX_OFFERS]


def backoff_seconds(failures: int, *, first_seconds: float = 1.0, ceiling: float = BACKOFF_CEILING_SECONDS) -> float:
    """The pause after `failures` fruitless tries in a row: doubling, at most one hour (RFC 8995, section 4.1)."""
    return min(ceiling, first_seconds * 2.0 ** min(max(failures, 1) - 1, 64))
