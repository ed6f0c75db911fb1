from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from est.transfer import read_json_pairs
from radius.dropped import MAX_TIMES, MAX_TOLD, Dropped, read_dropped, read_dropped_line, write_dropped
from radius.errors import HookMalformed
from radius.failures import read_failure
from tests.radius.failures import LOG_LINES
from tests.radius.test_hook import document
from tests.radius.world import OWNER_ID_OID

STRANGER = Dropped("nas-unknown", "", "127.0.0.1")
SWITCH = Dropped("radius-secret-wrong", "switch-1", "127.0.0.2")


def pairs(body: bytes) -> object:
    return read_json_pairs(body, max_bytes=65_536)


def test_a_line_that_tells_of_a_dropped_packet_is_one_and_every_other_is_none() -> None:
    assert read_dropped_line(LOG_LINES["unknown NAS"]) == STRANGER
    assert read_dropped_line(LOG_LINES["wrong secret"]) == SWITCH
    assert read_dropped_line("Sat Nov 28 16:34:00 2026 : Info: Ready to process requests") is None
    assert read_dropped_line(LOG_LINES["unknown NAS"].replace("client 127.0.0.1", "client 12:7")) is None


def test_what_is_written_is_read_with_its_numbers() -> None:
    found = read_dropped(pairs(write_dropped({STRANGER: 1, SWITCH: 7, STRANGER._replace(many=True): 2 * MAX_TIMES})))
    assert found is not None
    assert [(one.code, one.request.nas, one.request.nas_address, times) for one, times in found] == [
        ("nas-unknown", "", "127.0.0.1", 1),
        ("radius-secret-wrong", "switch-1", "127.0.0.2", 7),
        ("nas-unknown", "", "", MAX_TIMES),
    ]
    assert found[2][0].detail.startswith("of many senders, the last one: ")


def test_neither_document_is_taken_for_the_other() -> None:
    assert read_dropped(pairs(json.dumps(document()).encode())) is None
    with pytest.raises(HookMalformed):
        read_failure(pairs(write_dropped({STRANGER: 1})), owner_id_oid=OWNER_ID_OID)


def changed(**members: object) -> Callable[[], object]:
    row = json.loads(write_dropped({SWITCH: 1}))["dropped"][0] | members
    return lambda: [{name: value for name, value in row.items() if value is not None}]


@pytest.mark.parametrize(
    "rows",
    [
        lambda: {"reason": "nas-unknown"},
        lambda: ["nas-unknown"],
        lambda: changed()() * (MAX_TOLD + 1),  # type: ignore[operator]
        changed(reason="tls-unknown-ca"),
        changed(nas="a b"),
        changed(nas=None),
        changed(address="nowhere"),
        changed(address="fe80::1%" + "x" * 60),
        changed(many=0),
        changed(times=0),
        changed(times=True),
        changed(times=MAX_TIMES + 1),
        changed(more="x"),
    ],
)
def test_what_no_supervisor_writes_is_refused(rows: Callable[[], object]) -> None:
    with pytest.raises(HookMalformed):
        read_dropped(pairs(json.dumps({"dropped": rows()}).encode()))


def test_a_member_given_twice_is_refused() -> None:
    body = write_dropped({SWITCH: 1}).replace(b'"times"', b'"times": 1, "times"')
    with pytest.raises(HookMalformed):
        read_dropped(pairs(body))
