"""What differs between two FreeRADIUS folders, as values, and what each value may look like.

FreeRADIUS files have no escaping that one could rely on (`$`, `%`, quotes, braces and line ends all mean something
there), so whatever is not of a known harmless form is refused before it is written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final, Literal

from radius.errors import RaddbValueInvalid

FailMode = Literal["closed", "guest", "last-known-good"]
MAX_CACHE_SECONDS: Final = 300
PATH: Final = re.compile(
    r"/[A-Za-z0-9._/+-](?:[A-Za-z0-9._/+ -]{0,198}[A-Za-z0-9._/+-])?\Z"
)  # always written in quotes
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
SECRET: Final = re.compile(r"[A-Za-z0-9._~+/=:-]{8,128}\Z")
TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}\Z")
URL: Final = re.compile(
    r"https://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?/[A-Za-z0-9._/-]{0,200}\Z"
)
ORIGIN: Final = re.compile(r"[a-z]{1,16}://[a-z0-9._-]{1,253}\Z")
VLAN_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,31}\Z")
SERIAL: Final = re.compile(r"[0-9a-f]{1,40}\Z")
OID: Final = re.compile(r"[0-2](?:\.(?:0|[1-9][0-9]{0,9})){2,20}\Z")
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:./]{2,49}\Z")  # ipaddress would take any text behind a % in IPv6
_PEM: Final = re.compile(
    r"(?:-----BEGIN [A-Z ]{3,30}-----\n(?:[A-Za-z0-9+/=]{1,76}\n)+-----END [A-Z ]{3,30}-----\n)+\Z"
)


@dataclass(frozen=True, slots=True)
class NasEntry:
    """A RADIUS client: name, address or network in CIDR form, shared secret."""

    name: str
    address: str
    secret: str


@dataclass(frozen=True, slots=True)
class RadSec:
    """RADIUS over TLS for NAS that show a certificate of the infrastructure CA (RFC 6614).

    `origin` is scheme and trust domain of their names (`spiffe://campus.example/nas/NAME`), `serials` the serial
    numbers, lower-case hex, of the certificates that are live now: no other one is let in.
    """

    address: str
    ca_pem: str
    origin: str
    serials: Sequence[str] = ()
    port: int = 2083


@dataclass(frozen=True, slots=True)
class RaddbValues:
    """Everything that differs from site to site.

    `directory` is where the folder will stand, `certificate_chain_pem` the RADIUS server's certificate with its issuing
    CA, `client_ca_pem` the issuing CAs of those who may log in (agents; devices where the policy says so), never the
    root; `decision_ca_pem` the anchor for the decision port. `client_pem` and `client_key_pem`: the certificate that a
    decision port on another host demands. `failure_url` and `accounting_url` empty = not called. `fail_mode` says what
    a login gets while the decision port says nothing: reject, the guest VLAN, or for `cache_seconds` what it said last
    about the same certificate (then the guest VLAN if there is one). `mac_bypass` lets requests without EAP through to
    the decision, from this machine and over RadSec only. `limit_proxy_state`: this FreeRADIUS knows the option.
    """

    directory: str
    address: str
    port: int
    decision_url: str
    decision_ca_pem: str
    token: str
    certificate_chain_pem: str
    key_pem: str
    client_ca_pem: str
    owner_id_oid: str
    nas: Sequence[NasEntry]
    more_addresses: Sequence[str] = ()
    library_directory: str = "/usr/lib/freeradius"
    tls_min: Literal["1.2", "1.3"] = "1.2"
    tls_max: Literal["1.2", "1.3"] = "1.3"
    fragment_bytes: int = 1000
    session_seconds: int = 30
    max_sessions: int = 4096
    reject_delay_seconds: int = 1
    fail_mode: FailMode = "closed"
    guest_vlan: int | str | None = None
    cache_seconds: int = 120
    client_pem: str = ""
    client_key_pem: str = ""
    failure_url: str = ""
    accounting_url: str = ""
    accounting_port: int = 1813
    radsec: RadSec | None = None
    mac_bypass: bool = False
    limit_proxy_state: bool = False


def check_nas(entry: NasEntry) -> None:
    """Raises RaddbValueInvalid unless the NAS can be written into clients.conf."""
    checked("name", entry.name, NAME)
    network("address", entry.address)
    checked("secret", entry.secret, SECRET, secret=True)


def checked(name: str, value: str, pattern: re.Pattern[str], *, secret: bool = False) -> str:
    """`value` if it has the form; the refusal shows it unless it is a secret."""
    if not isinstance(value, str) or not pattern.match(value):
        shown = "" if secret else f": {value!r:.80}"
        raise RaddbValueInvalid(
            f"{name} has characters or a length that must not go into a FreeRADIUS file{shown}", name=name
        )
    return value


def number(name: str, value: int, low: int, high: int) -> str:
    if type(value) is not int or not low <= value <= high:
        raise RaddbValueInvalid(f"{name} must be a whole number from {low} to {high}", name=name)
    return str(value)


def vlan(name: str, value: int | str) -> str:
    """A VLAN's number or its name at the switches."""
    return checked(name, value, VLAN_NAME) if isinstance(value, str) else number(name, value, 1, 4094)


def version(name: str, value: str) -> str:
    if value not in ("1.2", "1.3"):
        raise RaddbValueInvalid(f"{name} must be 1.2 or 1.3", name=name)
    return value


def address(name: str, value: str) -> str:
    try:
        return str(ip_address(checked(name, value, _ADDRESS)))
    except ValueError as cause:
        raise RaddbValueInvalid(f"{name} is not an IP address", name=name) from cause


def network(name: str, value: str) -> str:
    try:
        found = ip_network(checked(name, value, _ADDRESS), strict=True)
    except ValueError as cause:
        raise RaddbValueInvalid(f"{name} is neither an IP address nor a network", name=name) from cause
    return str(found.network_address) if found.prefixlen == found.max_prefixlen else str(found)


def pem(name: str, value: str, *, secret: bool = False) -> str:
    text = value.replace("\r\n", "\n")
    text = text if text.endswith("\n") else text + "\n"
    return checked(name, text, _PEM, secret=secret)
