"""Migrations and schema say the same."""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from appliance.store import Store, schema
from appliance.store.engine import migration_engine
from appliance.store.upgrade import HEAD, MIGRATIONS
from tests.support import FixedClock


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


def test_schema_has_no_deferred_keys_and_no_defaults_in_python() -> None:
    for table in schema.metadata.tables.values():
        assert not table.foreign_keys, table.name
        for column in table.columns:
            assert column.default is None and column.onupdate is None, (table.name, column.name)
