"""Alembic migrations, run by appliance/store/upgrade.py inside one transaction."""
