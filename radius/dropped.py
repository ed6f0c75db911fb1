"""Packets that a FreeRADIUS on its own dropped, as its supervisor tells the appliance of them: how many, of whom.

`{"dropped": [{"reason": "nas-unknown", "nas": "", "address": "192.0.2.9", "many": false, "times": 3}]}`, at the route
that takes failed logins. It is not of rlm_rest's form, so that neither is taken for the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final, NamedTuple

from radius.errors import HookMalformed
from radius.failures import LOG_CODES, Failure, of_dropped, read_log_line
from radius.raddb import NAME
from radius.request import AccessRequest

MAX_TIMES: Final = 1_000_000
MAX_TOLD: Final = 256
_ADDRESS_CHARS: Final = 45
_KEY: Final = "dropped"
_MEMBERS: Final = {"reason": str, "nas": str, "address": str, "many": bool, "times": int}


class Dropped(NamedTuple):
    """Packets with one fate: reason code, the client's name in clients.conf, the address they came from.

    `many`: they are of many senders, and these are name and address of one.
    """

    code: str
    nas: str
    address: str
    many: bool = False


def read_dropped_line(line: str) -> Dropped | None:
    """What a line of FreeRADIUS' log tells of a packet that it dropped; None for every other line."""
    found = read_log_line(line)
    if found is None or not _is_fit(found.request.nas, found.request.nas_address):
        return None
    return Dropped(found.code, found.request.nas, found.request.nas_address)


def write_dropped(counts: Mapping[Dropped, int]) -> bytes:
    """The body for the appliance."""
    rows = [
        {"reason": one.code, "nas": one.nas, "address": one.address, "many": one.many, "times": min(times, MAX_TIMES)}
        for one, times in counts.items()
    ]
    return json.dumps({_KEY: rows}).encode()


def read_dropped(document: object) -> list[tuple[Failure, int]] | None:
    """(failure, how many times) of a body as est.transfer.read_json_pairs() gives it; None where it is another one.

    Raises HookMalformed.
    """
    if type(document) is not tuple or len(document) != 1 or document[0][0] != _KEY:
        return None
    rows = document[0][1]
    if type(rows) is not list or len(rows) > MAX_TOLD:
        raise HookMalformed(f"{_KEY} must be a list of at most {MAX_TOLD}")
    return [_read(row) for row in rows]


def _read(row: object) -> tuple[Failure, int]:
    found = dict(row) if type(row) is tuple else {}
    if {name: type(value) for name, value in found.items()} != _MEMBERS or len(found) != len(row):  # type: ignore[arg-type]
        raise HookMalformed("each of the dropped has reason, nas, address, many and times")
    nas, address, times = found["nas"], found["address"], found["times"]
    if found["reason"] not in LOG_CODES or not _is_fit(nas, address) or not 1 <= times <= MAX_TIMES:
        raise HookMalformed("a reason, name, address or number that no log of FreeRADIUS leads to")
    failure = of_dropped(found["reason"], nas, address)
    if found["many"]:  # nobody is blamed for what others sent
        detail = f"of many senders, the last one: {failure.detail}"
        failure = failure._replace(request=AccessRequest(), detail=detail)
    return failure, times


def _is_fit(nas: str, address: str) -> bool:
    try:
        ip_address(address)
    except ValueError:
        return False
    return len(address) <= _ADDRESS_CHARS and (nas == "" or NAME.match(nas) is not None)
