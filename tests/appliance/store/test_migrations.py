"""Migrations and schema say the same."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, insert

from appliance.errors import Conflict
from appliance.store import Store, certificates, challenges, crls, meta, owners, schema
from appliance.store.engine import migration_engine
from appliance.store.upgrade import HEAD, MIGRATIONS
from tests.support import NOW, FixedClock


def test_the_named_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_the_migrations_make_exactly_the_schema(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    Store.open(url, FixedClock(), create=True).close()
    with migration_engine(url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, schema.metadata) == []
        tables = {row[0] for row in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type='table'")}
    assert tables - {"sqlite_sequence", "alembic_version"} == set(schema.metadata.tables)


def test_indexes_are_those_of_the_schema_with_their_conditions(tmp_path: Path) -> None:
    """Alembic compares columns, not conditions."""
    Store.open(f"sqlite:///{tmp_path / 'a.db'}", FixedClock(), create=True).close()
    plain = create_engine(f"sqlite:///{tmp_path / 'b.db'}")
    schema.metadata.create_all(plain)
    plain.dispose()
    assert indexes(tmp_path / "a.db") == indexes(tmp_path / "b.db")


def test_who_was_suspended_before_sources_were_known_is_held_by_an_administrator(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with migration_engine(url).begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
        for ref, state in (("alice", "active"), ("bob", "suspended")):
            connection.exec_driver_sql(
                "INSERT INTO owners (id, identifier, ref, name, kind, state, created_at, updated_at)"
                f" VALUES ('{ref}', 'spiffe://x/owner/{ref}', '{ref}', '{ref}', 'person', '{state}', 0, 0)"
            )
    store = Store.open(url, FixedClock())
    found = {one.ref: (one.state, one.held, one.source, one.source_state) for one in store.read_sync(owners.every)}
    store.close()
    assert found == {
        "alice": ("active", False, "local", "present"),
        "bob": ("suspended", True, "local", "present"),
    }


def test_a_database_of_the_first_version_is_brought_up_with_what_it_holds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with migration_engine(url).begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(insert(schema.meta), {"key": "k", "value": "v"})
    assert any("audit_event" in sql for sql in indexes(tmp_path / "a.db"))
    store = Store.open(url, FixedClock())
    assert store.read_sync(lambda tx: meta.get(tx, "k")) == "v"
    store.close()
    assert not any("audit_event" in sql for sql in indexes(tmp_path / "a.db"))


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("agent_id = ? AND state != ? AND not_after > ?", "certificates_agent"),
        ("owner_id = ? AND state != ? AND not_after > ?", "certificates_owner"),
        ("issuer_role = ? AND revoked_at IS NOT NULL AND not_after > ?", "certificates_revoked"),
    ],
)
def test_partial_indexes_serve_the_questions_that_are_asked(tmp_path: Path, query: str, index: str) -> None:
    Store.open(f"sqlite:///{tmp_path / 'a.db'}", FixedClock(), create=True).close()
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        values = ["x"] * query.count("?")
        plan = connection.execute(f"EXPLAIN QUERY PLAN SELECT * FROM certificates WHERE {query}", values).fetchall()
    assert f"USING INDEX {index}" in plan[0][3]


def indexes(file: Path) -> set[str]:
    with closing(sqlite3.connect(file)) as connection:
        found = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
    return {sql for (sql,) in found if "alembic" not in sql}


def test_schema_has_no_deferred_keys_and_no_defaults_in_python() -> None:
    for table in schema.metadata.tables.values():
        assert not table.foreign_keys, table.name
        for column in table.columns:
            assert column.default is None and column.onupdate is None, (table.name, column.name)


def test_crl_numbers_survive_the_move_of_lists_into_files(tmp_path: Path) -> None:
    """A list of the older form is no longer the current one, but the next one is numbered above it."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with migration_engine(url).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO crls VALUES ('agents', 77, 1, 2, X'3000')")
    store = Store.open(url, FixedClock())
    try:
        row = store.read_sync(lambda tx: crls.get(tx, "agents"))
        assert (row.number, row.sha256, row.entries) == (77, "", 0)
        with pytest.raises(Conflict):
            store.write_sync(lambda tx: crls.put(tx, "agents", crls.Crl(77, NOW, NOW, 0, 0, b"x")))
    finally:
        store.close()


def test_certificates_that_were_kept_as_text_are_found_as_before(tmp_path: Path) -> None:
    """Odd and even numbers of digits, with a digest or without; ids and dates stay."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    digest = "0" * 63 + "1"
    with migration_engine(url).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0013")
        for at, serial, whole in ((5, "abc", f"'{digest}'"), (6, "5c87", "NULL")):
            connection.exec_driver_sql(
                "INSERT INTO certificates (id, issuer_role, issuer_aki, serial, profile, state, tbs_sha256,"
                " spki_sha256, cert_sha256, der, not_before, not_after, created_at)"
                f" VALUES ({at}, 'agents', '{'aa' * 20}', '{serial}', 'agent', 'issued', '{digest}', '{digest}',"
                f" {whole}, X'3000', 1, 2, 3)"
            )
    store = Store.open(url, FixedClock())
    try:
        first, second = store.read_sync(certificates.page)
        assert (first.id, first.serial, first.cert_sha256, first.der) == (5, "abc", digest, b"0\x00")
        assert (second.id, second.serial, second.cert_sha256) == (6, "5c87", None)
        assert {one.issuer_aki for one in (first, second)} == {"aa" * 20}
        assert store.read_sync(lambda tx: certificates.by_serial(tx, b"\xaa" * 20, 0xABC)).id == 5  # type: ignore[union-attr]
        assert len(store.read_sync(lambda tx: certificates.of(tx, "spki_sha256", digest))) == 2
    finally:
        store.close()
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        kinds = connection.execute("SELECT DISTINCT typeof(serial), typeof(spki_sha256) FROM certificates").fetchall()
    assert kinds == [("blob", "blob")]


def test_a_challenge_of_before_is_the_only_place_in_its_list(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    names = "id, rqh, txn, owner_id, agent_id, proxy_id, nonce, state, request, challenge, created_at, expires_at"
    with migration_engine(url).begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0014")
        for at in "12":
            connection.exec_driver_sql(
                f"INSERT INTO challenges ({names}, updated_at) VALUES ('c{at}', 'r{at}', 't', 'o', 'a', 'p', 'n', "
                "'waiting', 'q', 'c', 0, 4102444800000000, 0)"
            )
    store = Store.open(url, FixedClock())
    (kept,) = store.read_sync(lambda tx: challenges.by_rqh(tx, "r2"))
    assert (kept.id, kept.seat, kept.state, kept.answer) == ("c2", 0, "waiting", None)
    assert [one.id for one in store.read_sync(lambda tx: challenges.waiting(tx, "o", count=9))] == ["c1", "c2"]
    store.close()
