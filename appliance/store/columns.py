"""Column types that keep one spelling of each value in the database: times, digests, JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, LargeBinary, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from est.json_text import encoder_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_encode = encoder_of()


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


def _stored_hex(value: str | bytes | None) -> str | None:
    return value.hex() if isinstance(value, bytes) else value


def _stored_octets(value: str | bytes | None) -> bytes | None:
    return bytes.fromhex(value) if isinstance(value, str) else value


def _read_octets(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _stored_serial(value: str | None) -> bytes | None:
    return None if value is None else bytes.fromhex(value if len(value) % 2 == 0 else f"0{value}")


def _read_serial(value: bytes | None) -> str | None:
    return None if value is None else value.hex().lstrip("0")


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


class Octets(TypeDecorator[str]):
    """As Hex for whoever reads and writes, but stored as the octets themselves: half the room, in a big table."""

    impl = LargeBinary
    cache_ok = True
    stored = staticmethod(_stored_octets)
    read = staticmethod(_read_octets)

    def process_bind_param(self, value: str | bytes | None, dialect: Dialect) -> bytes | None:
        return _stored_octets(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        return _read_octets(value)


class Serial(TypeDecorator[str]):
    """A certificate's serial number, above 0, as lower-case hex without leading zeros; stored as its octets."""

    impl = LargeBinary
    cache_ok = True
    stored = staticmethod(_stored_serial)
    read = staticmethod(_read_serial)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        return _stored_serial(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        return _read_serial(value)


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
