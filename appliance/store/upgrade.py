"""Brings a database to the tables of this program; alembic is imported only when there is something to do."""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Engine, inspect, text
from sqlalchemy.engine import Connection

from appliance.errors import StoreForeign

_log = logging.getLogger(__name__)
HEAD = "0017"
"""The newest migration; a test compares it with the folder."""

_REVISION = text("SELECT version_num FROM alembic_version")
MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(engine: Engine, *, create: bool) -> None:
    """Run what is missing, each run whole or not at all; StoreForeign if the database is not one of ours."""
    with engine.begin() as connection:
        revision = _revision(connection)
        if revision == HEAD:
            return
        if revision is None and not create:
            raise StoreForeign("the database file has no tables of the appliance")
        _migrate(connection)
        _log.info("event=store-migrated from=%s to=%s", revision or "nothing", HEAD)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.execute(_REVISION).scalar()
    return str(revision) if revision is not None else None


def _migrate(connection: Connection) -> None:
    from alembic import command  # 0.3 s that a start without migrations saves
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreForeign("the database was made by a later version") from error
