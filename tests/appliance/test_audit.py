"""The audit log: gapless, chained, and a change to it is named by its position."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import audit
from appliance.audit import Actor, AuditEvent, AuditRow, Head
from appliance.errors import AuditBroken
from appliance.store import Store, Tx
from tests.stores import open_store
from tests.support import NOW, FixedClock

ROOT = Path(__file__).parents[2]
ADMIN = Actor("administrator", "uid 0", address="unix")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path / 'a.db'}", FixedClock())
    for number in range(6):
        event = AuditEvent("owner-added", ADMIN, object=f"owner {number} é", fields={"number": number})
        opened.write_sync(lambda tx, e=event: audit.append(tx, e))
    yield opened
    opened.close()


@pytest.fixture
def rows(store: Store) -> list[AuditRow]:
    return store.read_sync(lambda tx: list(audit.rows(tx)))


def test_a_whole_log_verifies_and_gives_its_head(rows: list[AuditRow]) -> None:
    assert audit.verify(rows) == Head(6, rows[-1].hash)
    assert audit.verify(rows, known=Head(3, rows[2].hash)).seq == 6
    assert audit.verify([]) == Head(0, bytes(32))


@pytest.mark.req("A-112")
def test_an_entry_says_who_did_what_when_and_how_it_ended(rows: list[AuditRow]) -> None:
    entry = rows[2].entry
    assert entry == {
        "seq": 3,
        "time": "2026-01-01T12:00:00.000000Z",
        "event": "owner-added",
        "actor": {"kind": "administrator", "identifier": "uid 0", "fingerprint": "", "address": "unix"},
        "object": "owner 2 é",
        "outcome": "done",
        "reason": "",
        "request_id": "",
        "fields": {"number": 2},
    }
    assert rows[2].time == NOW


def damaged(rows: list[AuditRow], kind: str) -> list[AuditRow]:
    third = rows[2]
    match kind:
        case "edited":
            return [*rows[:2], replace(third, body=third.body.replace("owner 2", "owner 9")), *rows[3:]]
        case "deleted":
            return [*rows[:2], *rows[3:]]
        case "reordered":
            return [*rows[:2], rows[3], third, *rows[4:]]
        case "time column":
            return [*rows[:2], replace(third, time=NOW.replace(year=2020)), *rows[3:]]
        case "event column":
            return [*rows[:2], replace(third, event="owner-revoked"), *rows[3:]]
        case "hash":
            return [*rows[:2], replace(third, hash=bytes(32)), *rows[3:]]
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["edited", "deleted", "reordered", "time column", "event column", "hash"])
def test_a_changed_log_is_reported_with_its_position(rows: list[AuditRow], kind: str) -> None:
    with pytest.raises(AuditBroken) as broken:
        audit.verify(damaged(rows, kind))
    assert broken.value.fields["position"] == 3


def test_every_flipped_bit_of_a_body_is_noticed(rows: list[AuditRow]) -> None:
    body = rows[3].body.encode()
    for at in range(len(body)):
        flipped = bytearray(body)
        flipped[at] ^= 1
        changed = [*rows[:3], replace(rows[3], body=flipped.decode(errors="replace")), *rows[4:]]
        with pytest.raises(AuditBroken) as broken:
            audit.verify(changed)
        assert broken.value.fields["position"] == 4


def test_a_cut_or_rewritten_log_does_not_contain_a_head_known_before(rows: list[AuditRow]) -> None:
    with pytest.raises(AuditBroken) as broken:
        audit.verify(rows[:4], known=Head(6, rows[5].hash))
    assert broken.value.fields["position"] == 5
    with pytest.raises(AuditBroken):
        audit.verify(rows, known=Head(3, bytes(32)))


def test_the_export_can_be_verified_offline(rows: list[AuditRow]) -> None:
    import hashlib

    previous = bytes(32)
    for line in audit.export(rows):
        entry = json.loads(line)
        assert bytes.fromhex(entry["prev"]) == previous
        previous = hashlib.sha256(previous + entry["body"].encode()).digest()
        assert entry["hash"] == previous.hex()


@pytest.mark.parametrize("name", ["password", "secret", "token", "private_key", "passphrase"])
def test_secrets_are_never_audited(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="secrets"):
        store.write_sync(lambda tx: audit.append(tx, AuditEvent("owner-added", ADMIN, fields={name: "x"})))
    with pytest.raises(TypeError):
        store.write_sync(lambda tx: audit.append(tx, AuditEvent("owner-added", ADMIN, fields={"raw": b"x"})))
    assert store.read_sync(lambda tx: audit.verify(audit.rows(tx))).seq == 6


def test_an_event_outside_the_contract_is_our_mistake(store: Store) -> None:
    with pytest.raises(ValueError, match="not an audit event"):
        store.write_sync(lambda tx: audit.append(tx, AuditEvent("something-happened", ADMIN)))


@pytest.mark.slow
def test_every_event_named_in_the_code_is_in_the_contract() -> None:
    wrong = []
    for path in (ROOT / "appliance").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "AuditEvent":
                name = node.args[0] if node.args else None
                if isinstance(name, ast.Constant) and name.value not in audit.EVENTS:
                    wrong.append((path.name, name.value))
    assert not wrong


def test_pages_go_on_where_the_last_one_ended(store: Store) -> None:
    first = store.read_sync(lambda tx: audit.page(tx, count=4))
    rest = store.read_sync(lambda tx: audit.page(tx, after=4))
    assert [row.seq for row in (*first, *rest)] == [1, 2, 3, 4, 5, 6]


def test_a_thousand_and_some_entries_are_read_in_pages(store: Store) -> None:
    def many(tx: object) -> None:
        for _ in range(1500):
            audit.append(tx, AuditEvent("owner-changed", ADMIN))  # type: ignore[arg-type]

    store.write_sync(many)
    assert store.read_sync(lambda tx: audit.verify(audit.rows(tx))).seq == 1506


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(
    actor=st.builds(Actor, TEXT, TEXT, TEXT, TEXT),
    texts=st.tuples(TEXT, TEXT, TEXT),
    outcome=st.sampled_from(["done", "refused", "failed"]),
    fields=st.dictionaries(TEXT.map("x".__add__), VALUES, max_size=4),
    seq=st.integers(1, 1 << 62),
)
def test_a_body_is_byte_for_byte_the_canonical_json_of_its_entry(
    actor: Actor, texts: tuple[str, str, str], outcome: str, fields: dict[str, object], seq: int
) -> None:
    what, reason, request_id = texts
    event = AuditEvent("owner-added", actor, what, outcome, reason, request_id, fields)  # type: ignore[arg-type]
    entry = {
        "seq": seq,
        "time": "2026-01-01T12:00:00.000000Z",
        "event": "owner-added",
        "actor": {
            "kind": actor.kind,
            "identifier": actor.identifier,
            "fingerprint": actor.fingerprint,
            "address": actor.address,
        },
        "object": what,
        "outcome": outcome,
        "reason": reason,
        "request_id": request_id,
        "fields": fields,
    }
    canonical = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    assert audit.body_of(seq, entry["time"], event) == canonical  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), object(), {1, 2}, b"x"], ids=["nan", "inf", "object", "set", "bytes"]
)
def test_what_json_does_not_know_is_our_mistake(store: Store, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        store.write_sync(lambda tx: audit.append(tx, AuditEvent("owner-added", ADMIN, fields={"x": value})))
    assert store.read_sync(lambda tx: audit.verify(audit.rows(tx))).seq == 6


def test_text_that_utf8_cannot_hold_fails_in_its_own_function(store: Store) -> None:
    with pytest.raises(UnicodeEncodeError):
        store.write_sync(lambda tx: audit.append(tx, AuditEvent("owner-added", ADMIN, object="\ud800")))
    assert store.read_sync(lambda tx: audit.verify(audit.rows(tx))).seq == 6


def test_a_function_reads_the_entries_that_it_has_appended(store: Store) -> None:
    def write(tx: Tx) -> list[int]:
        first = audit.append(tx, AuditEvent("owner-changed", ADMIN))
        seen = audit.last_seq(tx)
        second = audit.append(tx, AuditEvent("owner-changed", ADMIN))
        return [first, seen, second, audit.page(tx, after=6)[-1].seq]

    assert store.write_sync(write) == [7, 7, 8, 8]
    assert store.read_sync(lambda tx: audit.verify(audit.rows(tx))).seq == 8
