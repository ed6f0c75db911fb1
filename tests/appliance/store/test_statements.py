"""Statements compiled once to text give what SQLAlchemy Core itself gives."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import bindparam, delete, func, insert, select, text, update
from sqlalchemy.dialects.sqlite import insert as upsert

from appliance.errors import Conflict
from appliance.store import Store, Tx, schema
from appliance.store.columns import from_micros, to_micros
from appliance.store.statements import plain
from tests.stores import open_store
from tests.support import NOW, FixedClock

OWNER = {
    "id": "o1",
    "identifier": "spiffe://campus.example/owner/1",
    "ref": "alice",
    "name": "Alice",
    "kind": "person",
    "department": "R&D",
    "state": "active",
    "created_at": NOW,
    "updated_at": NOW,
}
ADD = insert(schema.owners)
BY_ID = select(schema.owners).where(schema.owners.c.id == bindparam("id"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path / 'a.db'}", FixedClock())
    opened.write_sync(lambda tx: tx.execute(ADD, OWNER))
    yield opened
    opened.close()


def test_rows_have_columns_as_attributes_and_times_as_aware_utc(store: Store) -> None:
    row = store.read_sync(lambda tx: tx.one(BY_ID, {"id": "o1"}))
    assert row is not None
    assert {name: row._mapping[name] for name in OWNER} == OWNER
    assert row.created_at.tzinfo is UTC


def test_the_same_statement_serves_different_sets_of_columns(store: Store) -> None:
    second = {**OWNER, "id": "o2", "identifier": "i2", "ref": "bob"}
    del second["department"]
    store.write_sync(lambda tx: tx.execute(ADD, second))
    row = store.read_sync(lambda tx: tx.one(BY_ID, {"id": "o2"}))
    assert row is not None and row.department is None


def test_a_forgotten_value_is_our_mistake_and_no_null(store: Store) -> None:
    with pytest.raises(TypeError, match="id"):
        store.read_sync(lambda tx: tx.one(BY_ID))


def test_literals_defaults_in_lists_updates_and_upserts_work(store: Store) -> None:
    owners = schema.owners
    change = update(owners).where(owners.c.state == "active", owners.c.id == bindparam("key")).values(state="revoked")
    assert store.write_sync(lambda tx: tx.execute(change, {"key": "o1"}).rowcount) == 1
    assert store.write_sync(lambda tx: tx.execute(change, {"key": "o1"}).rowcount) == 0
    among = select(owners.c.name).where(owners.c.id.in_(bindparam("ids", expanding=True)))
    assert store.read_sync(lambda tx: tx.scalar(among, {"ids": ["o1", "o9"]})) == "Alice"
    assert store.read_sync(lambda tx: tx.scalar(select(func.count()).select_from(owners))) == 1
    assert (
        store.read_sync(lambda tx: tx.scalar(text("SELECT name FROM owners WHERE id = :id"), {"id": "o1"})) == "Alice"
    )
    put = upsert(schema.meta).values(key=bindparam("k"), value=bindparam("v"))
    put = put.on_conflict_do_nothing()
    assert store.write_sync(lambda tx: tx.execute(put, {"k": "a", "v": "1"}).rowcount) == 1
    assert store.write_sync(lambda tx: tx.execute(put, {"k": "a", "v": "2"}).rowcount) == 0
    returning = delete(schema.meta).where(schema.meta.c.key == "a").returning(schema.meta.c.value)
    assert store.write_sync(lambda tx: tx.scalar(returning)) == "1"


def test_json_and_digest_columns_keep_one_spelling(store: Store) -> None:
    add = insert(schema.manufacturers)
    row = {"id": "m", "name": "Acme", "anchors_pem": "", "options": {"ü": [1, None]}, "created_at": NOW}
    store.write_sync(lambda tx: tx.execute(add, row))
    assert store.read_sync(lambda tx: tx.scalar(select(schema.manufacturers.c.options))) == {"ü": [1, None]}
    server = {"id": "r", "name": "radius", "token_sha256": b"\x01\xab", "created_at": NOW}
    store.write_sync(lambda tx: tx.execute(insert(schema.radius_servers), server))
    found = select(schema.radius_servers.c.name).where(schema.radius_servers.c.token_sha256 == bindparam("token"))
    assert store.read_sync(lambda tx: tx.scalar(found, {"token": b"\x01\xab"})) == "radius"
    assert store.read_sync(lambda tx: tx.scalar(found, {"token": "01ab"})) == "radius"


def test_a_column_named_like_a_keyword_is_read_with_an_underscore(store: Store) -> None:
    agent = {"id": "a", "identifier": "i", "proxy_id": "p", "jkt": "j", "class": "browser", "state": "reserved"}
    times = {"created_at": NOW, "updated_at": NOW}
    store.write_sync(lambda tx: tx.execute(insert(schema.agents), {**agent, **times}))
    assert store.read_sync(lambda tx: tx.one(select(schema.agents))).class_ == "browser"


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC)))
def test_times_survive_exactly_from_year_1_to_9999(time: datetime) -> None:
    assert from_micros(to_micros(time)) == time
    assert to_micros(time + timedelta(microseconds=1)) == to_micros(time) + 1


def test_a_plain_statement_takes_and_gives_stored_form(store: Store) -> None:
    owners = schema.owners
    names = tuple(OWNER)
    add = plain(insert(owners), *names)
    values = {**OWNER, "id": "o2", "identifier": "i2", "ref": "bob", "created_at": 1, "updated_at": 2}
    rename = plain(
        update(owners).where(owners.c.id == bindparam("key")).values(name=bindparam("new")), "new", "key"
    )  # fmt: skip
    get = plain(select(owners.c.name, owners.c.created_at).where(owners.c.id == bindparam("id")), "id")

    def write(tx: Tx) -> tuple[int, int]:
        assert tx.insert(add, tuple(values.values())) > 0
        return tx.change(rename, ("Bob", "o2")), tx.change(rename, ("Bob", "o9"))

    assert store.write_sync(write) == (1, 0)
    assert store.read_sync(lambda tx: tx.row(get, ("o2",))) == ("Bob", 1)
    assert store.read_sync(lambda tx: tx.row(get, ("o9",))) is None
    assert store.read_sync(lambda tx: tx.rows(get, ("o1",))) == [("Alice", to_micros(NOW))]
    with pytest.raises(Conflict):
        store.write_sync(lambda tx: tx.insert(add, tuple(values.values())))


def test_the_values_of_a_plain_statement_are_named_in_the_order_of_its_text() -> None:
    owners = schema.owners
    change = update(owners).where(owners.c.id == bindparam("key")).values(name=bindparam("new"))
    with pytest.raises(ValueError, match="'new', 'key'"):
        plain(change, "key", "new")
    with pytest.raises(ValueError):
        plain(change.where(owners.c.state == "active"), "new", "key")
