"""hostapd as the authenticator of an access port: its configuration, and its control socket."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.wired.fabric import bridge_of

_STATION: Final = r"((?:[0-9a-f]{2}:){5}[0-9a-f]{2})"
_EVENT: Final = re.compile(
    rf"<\d>(AP-STA-CONNECTED|AP-STA-DISCONNECTED|CTRL-EVENT-EAP-SUCCESS2?|CTRL-EVENT-EAP-FAILURE2?) {_STATION}\b"
)
SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class RadiusServer:
    """Whom hostapd asks."""

    address: str
    port: int
    accounting_port: int
    secret: str


def configuration(
    interface: str,
    number: int,
    *,
    nas: str,
    own_address: str,
    server: RadiusServer,
    control: Path,
    vlan_file: Path,
    driver: str = "wired",
) -> str:
    """hostapd.conf of one access port.

    dynamic_vlan=2: an Accept that names no VLAN, or one that is not in vlan_file, does not open the port.
    """
    lines = [
        f"interface={interface}",
        f"driver={driver}",
        "logger_stdout=-1",
        "logger_stdout_level=2",
        f"ctrl_interface={control}",
        "ieee8021x=1",
        "eapol_version=2",
        "use_pae_group_addr=1",
        "dynamic_vlan=2",
        f"vlan_file={vlan_file}",
        f"nas_identifier={nas}",
        f"own_ip_addr={own_address}",
        f"auth_server_addr={server.address}",
        f"auth_server_port={server.port}",
        f"auth_server_shared_secret={server.secret}",
        f"radius_auth_req_attr=87:s:{interface}",
        f"radius_auth_req_attr=5:d:{number}",
        "radius_auth_req_attr=61:d:15",
    ]
    if server.accounting_port:
        lines += [
            f"acct_server_addr={server.address}",
            f"acct_server_port={server.accounting_port}",
            f"acct_server_shared_secret={server.secret}",
            f"radius_acct_req_attr=87:s:{interface}",
            f"radius_acct_req_attr=5:d:{number}",
            "radius_acct_req_attr=61:d:15",
        ]
    return "\n".join(lines) + "\n"


def vlan_lines(vlans: Sequence[int]) -> str:
    """hostapd's vlan_file: only these VLANs exist; the interfaces stand there already, empty."""
    return "".join(f"{vlan} {bridge_of(vlan)}\n" for vlan in vlans)


def read_event(text: str) -> tuple[str, str] | None:
    """(event, station) of a line from the control socket; None for anything else."""
    found = _EVENT.match(text)
    return (found[1].removesuffix("2"), found[2]) if found else None


def read_station(text: str) -> tuple[bool, int]:
    """(authorized, VLAN) in the answer to `STA <mac>`; VLAN 0 where hostapd names none."""
    values: Mapping[str, str] = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    vlan = values.get("vlan_id", "0")
    return "[AUTHORIZED]" in values.get("flags", ""), int(vlan) if vlan.isdecimal() else 0


class Control:
    """One connection to the control socket of one interface (a datagram socket of the Unix domain)."""

    def __init__(self, control: Path, interface: str, own: Path) -> None:
        """Raises OSError when hostapd is not there."""
        self._own = own
        self._own.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(SECONDS)
        try:
            self.socket.bind(str(own))
            self.socket.connect(str(control / interface))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.socket.close()
        self._own.unlink(missing_ok=True)

    def ask(self, command: str) -> str:
        """hostapd's answer. Raises OSError, also TimeoutError."""
        self.socket.send(command.encode("ascii"))
        return self.socket.recv(8192).decode("utf-8", "replace")

    def attach(self) -> None:
        """From now on events come in on this socket; use another Control for questions."""
        if self.ask("ATTACH") != "OK\n":
            raise ConnectionRefusedError("hostapd takes no listeners")
        self.socket.setblocking(False)
