"""Accounting as values: RFC 2866 packets and rlm_rest's JSON -> AccountingRecord. Nothing in it has been judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from radius import wire
from radius.errors import HookMalformed, PacketInvalid
from radius.hook import NAS_ADDRESS, NAS_NAME, values_of
from radius.packets import Request, port_of, text_of
from radius.request import clean_text

Status = Literal["start", "stop", "interim", "on", "off"]
_STATUS: Final[Mapping[str, Status]] = {
    "1": "start", "2": "stop", "3": "interim", "7": "on", "8": "off",
    "start": "start", "stop": "stop", "interim-update": "interim", "alive": "interim",
    "accounting-on": "on", "accounting-off": "off",
}  # fmt: skip
_CAUSES: Final = (
    "", "user-request", "lost-carrier", "lost-service", "idle-timeout", "session-timeout", "admin-reset",
    "admin-reboot",
    "port-error", "nas-error", "nas-request", "nas-reboot", "port-unneeded", "port-preempted", "port-suspended",
    "service-unavailable", "callback", "user-error", "host-request", "supplicant-restart", "reauthentication-failure",
    "port-reinitialized", "port-disabled",
)  # fmt: skip
"""Acct-Terminate-Cause by number (RFC 2866, section 5.10; RFC 3580, section 2.3)."""


@dataclass(frozen=True, slots=True)
class AccountingRecord:
    """One accounting message.

    `nas` is the name of the NAS whose secret was used, `nas_address` where it came from; `session` is Acct-Session-Id;
    `classes` are the Class attributes, `octets_in` what came from the supplicant.
    """

    status: Status
    nas: str
    nas_address: str
    nas_identifier: str = ""
    nas_port: str = ""
    calling_station: str = ""
    session: str = ""
    classes: tuple[str, ...] = ()
    user_name: str = ""
    octets_in: int = 0
    octets_out: int = 0
    seconds: int = 0
    cause: str = ""


def read_accounting_request(octets: bytes, *accepted: bytes) -> Request:
    """The authentic Accounting-Request or Status-Server in a datagram; several secrets are tried in turn.

    Raises PacketInvalid: another code, or a Request Authenticator (RFC 2866, section 3) that does not verify. A
    Message-Authenticator need not be there; one that is there must verify (RFC 5080, section 2.2.3).
    """
    packet = wire.read_packet(octets)
    if packet.code == wire.STATUS_SERVER:
        for secret in accepted:
            if wire.is_signed(packet, secret):
                return Request(packet, secret)
        raise PacketInvalid("a Status-Server that is not authentic")
    if packet.code != wire.ACCOUNTING_REQUEST:
        raise PacketInvalid(f"RADIUS code {packet.code} at the accounting port")
    for secret in accepted:
        if wire.is_request_authentic(packet, secret):
            if packet.mark and not wire.is_signed(packet, secret, bytes(16)):
                raise PacketInvalid("the Message-Authenticator does not verify")
            return Request(packet, secret)
    raise PacketInvalid("the Request Authenticator does not verify: wrong shared secret")


def read_accounting(request: Request, *, nas: str, nas_address: str) -> AccountingRecord:
    """The record in an authentic Accounting-Request. Raises PacketInvalid for a status that means nothing here."""
    numbers = request.get(40)
    status = _STATUS.get(str(int.from_bytes(numbers[0], "big"))) if len(numbers) == 1 else None
    if status is None:
        raise PacketInvalid("an accounting packet without an Acct-Status-Type that we know")
    causes = request.get(49)
    cause = int.from_bytes(causes[0], "big") if causes else 0
    return AccountingRecord(
        status,
        nas,
        nas_address,
        nas_identifier=text_of(request, 32),
        nas_port=port_of(request),
        calling_station=text_of(request, 31),
        session=text_of(request, 44),
        classes=tuple(clean_text(one.decode("utf-8", "replace")) for one in request.get(25)[:8]),
        user_name=text_of(request, 1),
        octets_in=_wide(_number(request, 42), _number(request, 52)),
        octets_out=_wide(_number(request, 43), _number(request, 53)),
        seconds=_number(request, 46),
        cause=_cause(cause),
    )


def read_accounting_json(document: object) -> AccountingRecord:
    """The record in rlm_rest's JSON. Raises HookMalformed."""
    values = values_of(document)

    def one(name: str) -> str:
        found = values.get(name)
        return clean_text(found[0]) if found else ""

    def number(name: str) -> int:
        text = one(name)
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else 0

    status = _STATUS.get(one("Acct-Status-Type").lower())
    if status is None:
        raise HookMalformed("an accounting call without an Acct-Status-Type that we know")
    cause = one("Acct-Terminate-Cause")
    return AccountingRecord(
        status,
        one(NAS_NAME) or one("NAS-Identifier"),
        one(NAS_ADDRESS) or one("NAS-IP-Address") or one("NAS-IPv6-Address"),
        nas_identifier=one("NAS-Identifier"),
        nas_port=one("NAS-Port-Id") or one("NAS-Port"),
        calling_station=one("Calling-Station-Id"),
        session=one("Acct-Session-Id"),
        classes=tuple(_class(text) for text in values.get("Class", [])[:8]),
        user_name=one("User-Name"),
        octets_in=_wide(number("Acct-Input-Octets"), number("Acct-Input-Gigawords")),
        octets_out=_wide(number("Acct-Output-Octets"), number("Acct-Output-Gigawords")),
        seconds=number("Acct-Session-Time") & 0xFFFFFFFF,
        cause=_cause(int(cause)) if cause.isascii() and cause.isdecimal() and len(cause) < 9 else cause.lower()[:60],
    )


_WITHOUT_SEPARATORS: Final = {ord(char): None for char in "-:. "}


def mac_key(text: str) -> str:
    """A MAC address in any of the usual spellings as twelve lower-case hex digits; other names as they are."""
    plain = text.translate(_WITHOUT_SEPARATORS).lower()
    return plain if len(plain) == 12 and not plain.strip("0123456789abcdef") else text


def _class(text: str) -> str:
    """Octets come as `0x` and hex from FreeRADIUS."""
    if text.startswith("0x"):
        try:
            return clean_text(bytes.fromhex(text[2:]).decode("utf-8", "replace"))
        except ValueError:
            return clean_text(text)
    return clean_text(text)


def _cause(number: int) -> str:
    return _CAUSES[number] if 0 <= number < len(_CAUSES) else f"cause-{number}"


def _number(packet: Any, code: int) -> int:
    values = packet.get(code)
    return int.from_bytes(values[0], "big") if values and len(values[0]) == 4 else 0


def _wide(low: int, high: int) -> int:
    """Octets with their gigawords (RFC 2869, section 5.1)."""
    return ((high & 0xFFFFFFFF) << 32) + (low & 0xFFFFFFFF)
