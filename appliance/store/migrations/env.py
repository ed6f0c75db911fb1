"""Alembic's entry: the connection comes from the caller and so does its transaction."""

from __future__ import annotations

from alembic import context

from appliance.store import schema

context.configure(connection=context.config.attributes["connection"], target_metadata=schema.metadata)
context.run_migrations()
