"""The addresses that listeners are opened at, and the refusal of one that cannot be."""

from __future__ import annotations

from ipaddress import ip_address
from typing import ClassVar

from appliance.errors import ApplianceError
from appliance.web.server import Listener


class PortUnavailable(ApplianceError):
    """A port that the settings name cannot be opened: taken, or not allowed."""

    reason: ClassVar[str] = "port-unavailable"


async def listen(listener: Listener, host: str, port: int) -> int:
    """The port that a listener was opened at; raises PortUnavailable."""
    try:
        return await listener.open_tcp(host, port)
    except OSError as cause:
        raise unavailable(listener.name, host, port, cause) from cause


def unavailable(name: str, host: str, port: int, cause: OSError) -> PortUnavailable:
    """The refusal for a socket that the system did not give."""
    return PortUnavailable(f"cannot listen on {address_text(host, port)} ({name}): {cause.strerror}")


def address_text(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
