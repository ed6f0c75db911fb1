"""What kinds of NAS understand to change a live session: data, one row per kind (RFC 5176 and vendors' manuals).

Three things may be wanted of a session. `change`: the login stays good, its VLAN or role is another. `reauthenticate`:
ask the supplicant anew. `end`: the login is good no more. Each is one packet, a Disconnect-Request or a CoA-Request
with what the kind of NAS wants in it. What the attributes of a vendor mean is the vendor's word; only `hostapd` and
`reauthenticate` were tried against real programs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from radius.errors import NasProfileUnknown
from radius.wire import COA_REQUEST, DISCONNECT_REQUEST

Want = Literal["change", "reauthenticate", "end"]


@dataclass(frozen=True, slots=True)
class Order:
    """One packet: its code, whether the new reply attributes go into it, and vendors' attributes (vendor, type, value).

    `in_place`: after an ACK the session goes on with the new attributes; otherwise it ends or logs in anew.
    """

    code: int
    with_attributes: bool = False
    vendor: tuple[tuple[int, int, bytes], ...] = ()
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class NasProfile:
    """One kind of NAS. `signs_answers`: an answer without Message-Authenticator is not believed."""

    name: str
    about: str
    change: Order
    reauthenticate: Order
    end: Order
    signs_answers: bool = False

    def order(self, want: Want) -> Order:
        """The packet for what is wanted."""
        return {"change": self.change, "reauthenticate": self.reauthenticate, "end": self.end}[want]


CISCO: Final = 9
HP: Final = 11
JUNIPER: Final = 2636
ARUBA: Final = 14823

_DISCONNECT: Final = Order(DISCONNECT_REQUEST)
_VLAN: Final = Order(COA_REQUEST, with_attributes=True, in_place=True)


def _bounce(vendor: int, code: int, value: bytes) -> Order:
    return Order(COA_REQUEST, vendor=((vendor, code, value),))


_CISCO_AGAIN: Final = Order(
    COA_REQUEST,
    vendor=(
        (CISCO, 1, b"subscriber:command=reauthenticate"),
        (CISCO, 1, b"subscriber:reauthenticate-type=last"),
    ),
)
_SECONDS: Final = (5).to_bytes(4, "big")  # how long a bounced port stays down

DEFAULT: Final = "generic-disconnect"
PROFILES: Mapping[str, NasProfile] = MappingProxyType(
    {
        one.name: one
        for one in (
            NasProfile(DEFAULT, "knows Disconnect alone (RFC 5176)", _DISCONNECT, _DISCONNECT, _DISCONNECT),
            NasProfile(
                "generic-coa",
                "takes the tunnel attributes of RFC 3580 in a CoA-Request for a live session",
                _VLAN,
                _DISCONNECT,
                _DISCONNECT,
            ),
            NasProfile(
                "cisco",
                "Cisco IOS and IOS XE: a CoA-Request asks for re-authentication, the session keeps the link",
                _CISCO_AGAIN,
                _CISCO_AGAIN,
                _DISCONNECT,
            ),
            NasProfile(
                "cisco-bounce",
                "the same, but the port is bounced, so that hosts ask for a new address",
                _bounce(CISCO, 1, b"subscriber:command=bounce-host-port"),
                _CISCO_AGAIN,
                _DISCONNECT,
            ),
            NasProfile("aruba", "Aruba: tunnel attributes by CoA", _VLAN, _DISCONNECT, _DISCONNECT),
            NasProfile(
                "aruba-bounce",
                "Aruba: the port goes down for 5 s, so that hosts ask for a new address",
                _bounce(ARUBA, 40, _SECONDS),
                _DISCONNECT,
                _DISCONNECT,
            ),
            NasProfile("hpe", "HPE ArubaOS-Switch: tunnel attributes by CoA", _VLAN, _DISCONNECT, _DISCONNECT),
            NasProfile(
                "hpe-bounce",
                "the same, but the port goes down for 5 s",
                _bounce(HP, 23, _SECONDS),
                _DISCONNECT,
                _DISCONNECT,
            ),
            NasProfile("juniper", "Juniper EX and QFX: tunnel attributes by CoA", _VLAN, _DISCONNECT, _DISCONNECT),
            NasProfile(
                "juniper-bounce",
                "Juniper EX and QFX: the port is bounced",
                _bounce(JUNIPER, 52, b"Port-Bounce"),
                _DISCONNECT,
                _DISCONNECT,
            ),
            NasProfile(
                "hostapd",
                "hostapd: Disconnect alone; a CoA-Request is refused as unsupported",
                _DISCONNECT,
                _DISCONNECT,
                _DISCONNECT,
                signs_answers=True,
            ),
            NasProfile(
                "reauthenticate",
                "a port agent that answers a bare CoA-Request by re-authentication (EAPOL_REAUTH of hostapd)",
                Order(COA_REQUEST),
                Order(COA_REQUEST),
                _DISCONNECT,
                signs_answers=True,
            ),
        )
    }
)


def profile(name: str) -> NasProfile:
    """The profile of this name; raises NasProfileUnknown."""
    found = PROFILES.get(name)
    if found is None:
        raise NasProfileUnknown(f"no NAS profile {name[:40]!r}; there are {', '.join(PROFILES)}")
    return found
