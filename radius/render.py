"""Values -> a complete FreeRADIUS 3.2 configuration folder, made of the templates in radius/freeradius.

Every value is checked against what it may look like before it is written; FreeRADIUS files have no escaping that one
could rely on (`$`, `%`, quotes, braces and line ends all mean something there).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, Literal

from radius.errors import RaddbValueInvalid

FILE_MODE: Final = 0o640
FOLDER_MODE: Final = 0o750
_TEMPLATES: Final = (
    "radiusd.conf",
    "dictionary",
    "clients.conf",
    "mods-enabled/eap",
    "mods-enabled/rest",
    "mods-enabled/expr",
    "mods-enabled/always",
    "sites-enabled/default",
    "sites-enabled/check-eap-tls",
)
_MARK: Final = re.compile(r"@([a-z_]+)@")
_PATH: Final = re.compile(
    r"/[A-Za-z0-9._/+-](?:[A-Za-z0-9._/+ -]{0,198}[A-Za-z0-9._/+-])?\Z"
)  # always written in quotes
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_SECRET: Final = re.compile(r"[A-Za-z0-9._~+/=:-]{8,128}\Z")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}\Z")
_URL: Final = re.compile(
    r"https://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?/[A-Za-z0-9._/-]{0,200}\Z"
)
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:./]{2,49}\Z")  # ipaddress would take any text behind a % in IPv6
_OID: Final = re.compile(r"[0-2](?:\.(?:0|[1-9][0-9]{0,9})){2,20}\Z")
_PEM: Final = re.compile(
    r"(?:-----BEGIN [A-Z ]{3,30}-----\n(?:[A-Za-z0-9+/=]{1,76}\n)+-----END [A-Z ]{3,30}-----\n)+\Z"
)

_ASK_CLOSED: Final = "\t\trest"
_ASK_GUEST: Final = """\t\trest {{
			fail = 1
			invalid = 1
			notfound = 1
		}}
		if (fail || invalid || notfound) {{
			# The site's written choice for a silent appliance: the guest VLAN.
			update control {{
				&Auth-Type := Accept
			}}
			update reply {{
				&Tunnel-Type := VLAN
				&Tunnel-Medium-Type := IEEE-802
				&Tunnel-Private-Group-Id := "{vlan}"
			}}
		}}"""


@dataclass(frozen=True, slots=True)
class NasEntry:
    """A RADIUS client: name, address or network in CIDR form, shared secret."""

    name: str
    address: str
    secret: str


@dataclass(frozen=True, slots=True)
class RaddbValues:
    """Everything that differs from site to site.

    `directory` is where the folder will stand, `certificate_chain_pem` the RADIUS server's certificate with its issuing
    CA, `client_ca_pem` the agents' issuing CA alone, `decision_ca_pem` the anchor for the decision port. `silence` says
    what a login gets when the decision port does not answer; guest needs `guest_vlan`.
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
    library_directory: str = "/usr/lib/freeradius"
    tls_min: Literal["1.2", "1.3"] = "1.2"
    tls_max: Literal["1.2", "1.3"] = "1.3"
    fragment_bytes: int = 1000
    session_seconds: int = 30
    max_sessions: int = 4096
    reject_delay_seconds: int = 1
    silence: Literal["reject", "guest"] = "reject"
    guest_vlan: int | None = None


def render(values: RaddbValues) -> dict[str, str]:
    """File name -> text of the whole folder. Raises RaddbValueInvalid naming the value that may not be written."""
    marks = {
        "directory": _checked("directory", values.directory, _PATH),
        "library_directory": _checked("library_directory", values.library_directory, _PATH),
        "address": _address("address", values.address),
        "port": _number("port", values.port, 1, 65535),
        "decision_url": _checked("decision_url", values.decision_url, _URL),
        "token": _checked("token", values.token, _TOKEN, secret=True),
        "owner_id_oid": _checked("owner_id_oid", values.owner_id_oid, _OID),
        "tls_min": _version("tls_min", values.tls_min),
        "tls_max": _version("tls_max", values.tls_max),
        "fragment_bytes": _number("fragment_bytes", values.fragment_bytes, 200, 4000),
        "session_seconds": _number("session_seconds", values.session_seconds, 1, 600),
        "max_sessions": _number("max_sessions", values.max_sessions, 1, 1_000_000),
        "max_requests": str(max(1024, values.max_sessions)),
        "reject_delay_seconds": _number("reject_delay_seconds", values.reject_delay_seconds, 0, 5),
        "clients": _clients(values.nas),
        "ask": _ask(values),
    }
    if values.tls_min > values.tls_max:
        raise RaddbValueInvalid("tls_min is above tls_max", name="tls_min")
    files = {name: _fill(_template(name), marks) for name in _TEMPLATES}
    files["certs/server.pem"] = _pem("certificate_chain_pem", values.certificate_chain_pem)
    files["certs/server.key"] = _pem("key_pem", values.key_pem, secret=True)
    files["certs/agents-ca.pem"] = _pem("client_ca_pem", values.client_ca_pem)
    files["certs/decision-ca.pem"] = _pem("decision_ca_pem", values.decision_ca_pem)
    return files


def check_nas(entry: NasEntry) -> None:
    """Raises RaddbValueInvalid unless the NAS can be written into clients.conf."""
    _checked("name", entry.name, _NAME)
    _network("address", entry.address)
    _checked("secret", entry.secret, _SECRET, secret=True)


def write_raddb(files: Mapping[str, str], directory: Path) -> None:
    """Write the rendered files under `directory`, each in one step, readable by owner and group only; make run/.

    Raises OSError as the file system does.
    """
    for folder in (directory, directory / "run"):
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(path)


def _template(name: str) -> str:
    found = resources.files("radius") / "freeradius"
    for part in name.split("/"):
        found = found / part
    return found.read_text(encoding="utf-8")


def _fill(template: str, marks: Mapping[str, str]) -> str:
    """One pass, so that a value can never bring a mark of its own."""
    return _MARK.sub(lambda match: marks[match[1]], template)


def _clients(entries: Sequence[NasEntry]) -> str:
    blocks: list[str] = []
    names: set[str] = set()
    networks: set[str] = set()
    for entry in entries:
        check_nas(entry)
        network = _network("address", entry.address)
        if entry.name in names or network in networks:
            raise RaddbValueInvalid(f"two NAS share the name or address of {entry.name}", name="nas")
        names.add(entry.name)
        networks.add(network)
        blocks.append(
            f"client {entry.name} {{\n\tipaddr = {network}\n\tshortname = {entry.name}\n"
            f'\tsecret = "{entry.secret}"\n\trequire_message_authenticator = yes\n}}'
        )
    return "\n".join(blocks)


def _ask(values: RaddbValues) -> str:
    if values.silence == "reject":
        return _ASK_CLOSED
    if values.silence != "guest" or values.guest_vlan is None:
        raise RaddbValueInvalid("silence must be reject, or guest with a guest_vlan", name="silence")
    return _ASK_GUEST.format(vlan=_number("guest_vlan", values.guest_vlan, 1, 4094))


def _checked(name: str, value: str, pattern: re.Pattern[str], *, secret: bool = False) -> str:
    if not isinstance(value, str) or not pattern.match(value):
        shown = "" if secret else f": {value!r:.80}"
        raise RaddbValueInvalid(
            f"{name} has characters or a length that must not go into a FreeRADIUS file{shown}", name=name
        )
    return value


def _number(name: str, value: int, low: int, high: int) -> str:
    if type(value) is not int or not low <= value <= high:
        raise RaddbValueInvalid(f"{name} must be a whole number from {low} to {high}", name=name)
    return str(value)


def _version(name: str, value: str) -> str:
    if value not in ("1.2", "1.3"):
        raise RaddbValueInvalid(f"{name} must be 1.2 or 1.3", name=name)
    return value


def _address(name: str, value: str) -> str:
    try:
        return str(ip_address(_checked(name, value, _ADDRESS)))
    except ValueError as cause:
        raise RaddbValueInvalid(f"{name} is not an IP address", name=name) from cause


def _network(name: str, value: str) -> str:
    try:
        network = ip_network(_checked(name, value, _ADDRESS), strict=True)
    except ValueError as cause:
        raise RaddbValueInvalid(f"{name} is neither an IP address nor a network", name=name) from cause
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _pem(name: str, value: str, *, secret: bool = False) -> str:
    text = value.replace("\r\n", "\n")
    text = text if text.endswith("\n") else text + "\n"
    return _checked(name, text, _PEM, secret=secret)
