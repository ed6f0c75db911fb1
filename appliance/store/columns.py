"""Column types that keep one spelling of each value in the database: times, digests, JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from appliance.store.json_text import encoder_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_encode = encoder_of(sort_keys=False)


def to_micros(time: datetime) -> int:
    """Microseconds since 1970 of an aware time; exact, also for the year 9999."""
    return (time - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The aware UTC time of a stored number."""
    return _EPOCH + timedelta(microseconds=micros)


def _stored_time(value: datetime | None) -> int | None:
    return None if value is None else (value - _EPOCH) // _MICROSECOND


def _read_time(value: int | None) -> datetime | None:
    return None if value is None else _EPOCH + timedelta(microseconds=value)


def stored_hex(value: str | bytes) -> str:
    """Octets as stored; what is hex already stays."""
    return value.hex() if isinstance(value, bytes) else value


def _stored_hex(value: str | bytes | None) -> str | None:
    return None if value is None else stored_hex(value)


def _stored_json(value: Any) -> str | None:
    return None if value is None else _encode(value)


def _read_json(value: str | None) -> Any:
    return None if value is None else json.loads(value)


# Each type says its two conversions twice: as SQLAlchemy calls them, and as functions that `statements` calls with
# nothing in between.


class Time(TypeDecorator[datetime]):
    """An aware UTC datetime, stored as integer microseconds."""

    impl = BigInteger
    cache_ok = True
    stored = staticmethod(_stored_time)
    read = staticmethod(_read_time)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return _stored_time(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return _read_time(value)


class Hex(TypeDecorator[str]):
    """Octets (digests, key identifiers) as lower-case hex text; bytes are taken too."""

    impl = Text
    cache_ok = True
    stored = staticmethod(_stored_hex)
    read = None

    def process_bind_param(self, value: str | bytes | None, dialect: Dialect) -> str | None:
        return _stored_hex(value)


class Json(TypeDecorator[Any]):
    """A JSON value as text; None is NULL."""

    impl = Text
    cache_ok = True
    stored = staticmethod(_stored_json)
    read = staticmethod(_read_json)

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return _stored_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return _read_json(value)
