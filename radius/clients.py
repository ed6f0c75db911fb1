"""Which NAS an address belongs to, and with which shared secrets: a table without clocks."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

MAX_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Nas:
    """A RADIUS client: its name for logs and policy, its shared secret, and the one before while that counts too."""

    name: str
    secret: bytes
    old_secret: bytes = b""

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Those that count, the newest first."""
        return (self.secret, self.old_secret) if self.old_secret else (self.secret,)


@dataclass(frozen=True, slots=True)
class NasClient:
    """One row: an address or prefix and its NAS; the old secret counts until `until` (seconds since 1970)."""

    network: str
    name: str
    secret: bytes
    old_secret: bytes = b""
    until: float = 0.0

    def at(self, now: float) -> Nas:
        """The NAS as it is now."""
        return Nas(self.name, self.secret, self.old_secret if now < self.until else b"")


class NasTable:
    """Rows by the longest matching prefix. What was looked up is remembered, within bounds."""

    def __init__(self, rows: Iterable[NasClient] = ()) -> None:
        found = [(ipaddress.ip_network(row.network), row) for row in rows]
        self._rows = sorted(found, key=lambda pair: -pair[0].prefixlen)
        self._remembered: dict[str, NasClient | None] = {}

    @property
    def rows(self) -> list[NasClient]:
        return [row for _, row in self._rows]

    def find(self, address: str) -> NasClient | None:
        """The row of an address; None for a stranger and for what is no address."""
        try:
            return self._remembered[address]
        except KeyError:
            pass
        found = self._search(address)
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[address] = found
        return found

    def _search(self, text: str) -> NasClient | None:
        try:
            address = ipaddress.ip_address(plain_address(text))
        except ValueError:
            return None
        for network, row in self._rows:
            if address.version == network.version and address in network:
                return row
        return None


def plain_address(text: str) -> str:
    """An address without zone, IPv4 behind an IPv6 socket as IPv4."""
    text = text.partition("%")[0]
    return text[7:] if text.startswith("::ffff:") and "." in text else text
