"""What a switch port does when something happens at it: one pure function from (port, event) to (port, orders).

The port is the controlled port of IEEE 802.1X, section 6.3: closed, or open in one VLAN for one station. hostapd says
who may pass and in which VLAN; the port agent (lab/port_agent.py) carries the orders out. The rules, in short:

- The Accept's VLAN is the port's VLAN. A VLAN that this switch does not have closes the port.
- One station has the port. A second one is turned away, unless the first is there by MAC bypass only.
- Whoever spoke EAPOL is not let in by its MAC address afterwards, until the link goes down.
- Link loss, a failed login and a disconnect close the port. Hearing the same thing twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

EVERYBODY: Final = "ff:ff:ff:ff:ff:ff"
"""Every station that hostapd knows at a port, also one that waits after a failed login."""


class By(Enum):
    """Why a port is open."""

    NOBODY = "closed"
    LOGIN = "802.1X"
    ADDRESS = "MAC bypass"


@dataclass(frozen=True, slots=True)
class Port:
    """A port now. `asked` is the station whose MAC bypass is under way; `has_spoken`: EAPOL was heard on this link."""

    vlan: int = 0
    station: str = ""
    by: By = By.NOBODY
    asked: str = ""
    has_spoken: bool = False


@dataclass(frozen=True, slots=True)
class Switch:
    """What holds for every port of the switch, and whether this one lets stations in by their address."""

    vlans: Set[int]
    mac_bypass: bool = False


# -- what happens


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The carrier is gone. hostapd's wired driver does not notice that by itself."""


@dataclass(frozen=True, slots=True)
class Login:
    """hostapd told of a login; `authorized` and `vlan` are what it says of the station when asked just now."""

    station: str
    authorized: bool
    vlan: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A login failed, or hostapd has let the station go."""

    station: str


@dataclass(frozen=True, slots=True)
class Spoke:
    """A frame of EAPOL came in."""

    station: str


@dataclass(frozen=True, slots=True)
class Heard:
    """Another frame came in, and the time in which EAPOL could have come first is over."""

    station: str


@dataclass(frozen=True, slots=True)
class BypassAnswered:
    """The RADIUS server's answer about a MAC address; `vlan` 0 = no, or no answer."""

    station: str
    vlan: int


@dataclass(frozen=True, slots=True)
class ReauthenticationAsked:
    """The RADIUS server wants the station to log in again (CoA-Request)."""

    station: str


@dataclass(frozen=True, slots=True)
class DisconnectAsked:
    """The RADIUS server wants the station gone (Disconnect-Request)."""

    station: str


Event = (
    LinkDown | Login | Refused | Spoke | Heard | BypassAnswered | ReauthenticationAsked | DisconnectAsked
)  # fmt: skip

# -- what is to be done


@dataclass(frozen=True, slots=True)
class Open:
    """Put the port into this VLAN, out of any other, for this station only."""

    vlan: int
    station: str


@dataclass(frozen=True, slots=True)
class Close:
    """Take the port out of every VLAN."""


@dataclass(frozen=True, slots=True)
class Deauthenticate:
    """Tell hostapd that the station is gone."""

    station: str


@dataclass(frozen=True, slots=True)
class Reauthenticate:
    """Have hostapd ask the station to log in again; the port stays as it is meanwhile."""

    station: str


@dataclass(frozen=True, slots=True)
class AskBypass:
    """Ask the RADIUS server about a MAC address."""

    station: str


Order = Open | Close | Deauthenticate | Reauthenticate | AskBypass
Outcome = tuple[Port, tuple[Order, ...]]


def after(port: Port, event: Event, switch: Switch) -> Outcome:
    """The port after an event, and the orders that make it so."""
    match event:
        case LinkDown():
            # also an empty port closes: whatever is in the bridge after a crash of ours comes out
            return Port(), (Close(), Deauthenticate(EVERYBODY))
        case Login(station, authorized, vlan):
            return _login(port, station, vlan if authorized else 0, switch)
        case Refused(station):
            return _closed(port) if station == port.station else (port, ())
        case Spoke(_):
            return replace(port, has_spoken=True, asked=""), ()
        case Heard(station):
            if port.by is By.NOBODY and switch.mac_bypass and not port.has_spoken and not port.asked:
                return replace(port, asked=station), (AskBypass(station),)
            return port, ()
        case BypassAnswered(station, vlan):
            return _bypass(port, station, vlan, switch)
        case ReauthenticationAsked(station):
            if station != port.station:
                return port, ()
            if port.by is By.ADDRESS:
                return replace(port, asked=station), (AskBypass(station),)
            return port, (Reauthenticate(station),)
        case DisconnectAsked(station):
            if station != port.station:
                return port, ()
            gone = (Deauthenticate(station),) if port.by is By.LOGIN else ()
            return replace(port, vlan=0, station="", by=By.NOBODY, asked=""), (Close(), *gone)


def _login(port: Port, station: str, vlan: int, switch: Switch) -> Outcome:
    holds = port.by is By.LOGIN
    if holds and station != port.station:
        return port, ((Deauthenticate(station),) if vlan else ())
    if not vlan:
        return _closed(port) if station == port.station else (port, ())
    if vlan not in switch.vlans:
        done, orders = _closed(port)
        return done, (*(orders or (Close(),)), Deauthenticate(station))
    opened = Port(vlan, station, By.LOGIN, has_spoken=True)
    return opened, (() if holds and vlan == port.vlan else (Open(vlan, station),))


def _bypass(port: Port, station: str, vlan: int, switch: Switch) -> Outcome:
    if station != port.asked:  # the link went down, or EAPOL was heard in the meantime
        return port, ()
    port = replace(port, asked="")
    if vlan not in switch.vlans:
        return _closed(port)
    opened = replace(port, vlan=vlan, station=station, by=By.ADDRESS)
    return opened, (() if opened == port else (Open(vlan, station),))


def _closed(port: Port) -> Outcome:
    if port.by is By.NOBODY:
        return port, ()
    return replace(port, vlan=0, station="", by=By.NOBODY), (Close(),)
