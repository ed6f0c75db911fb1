"""Statements of SQLAlchemy Core, compiled once to text and run on the driver's cursor.

Building and compiling Core statements per call costs several times what SQLite needs to run them. Repositories keep
their statements as module constants; the first use compiles one for its set of parameter names, later uses only bind.
Anything that cannot be a fixed text (an IN list, Python-side defaults) goes through Core itself.
"""

from __future__ import annotations

import keyword
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import Executable

Row: TypeAlias = Any
"""One result row: a named tuple, columns as attributes; `_mapping` is the same as a dict."""

_MAX_CACHED = 1024
_Processor = Callable[[Any], Any]


class Result:
    """What a statement gave: its rows, the number of rows it changed, the key of the row it inserted."""

    __slots__ = ("lastrowid", "rowcount", "rows")

    def __init__(self, rows: Sequence[Row], rowcount: int, lastrowid: int | None) -> None:
        self.rows = rows
        self.rowcount = rowcount
        self.lastrowid = lastrowid

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def all(self) -> list[Row]:
        return list(self.rows)

    def first(self) -> Row | None:
        return self.rows[0] if self.rows else None

    def scalar(self) -> Any:
        return self.rows[0][0] if self.rows else None


class Statements:
    """The compiled form of every statement used on one thread's connection."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._cache: dict[tuple[Executable, tuple[str, ...]], _Prepared | None] = {}

    def run(self, connection: Connection, cursor: Any, statement: Executable, values: Mapping[str, Any]) -> Result:
        """Execute with the given values; driver errors come as the driver raises them."""
        prepared = self._prepare(statement, tuple(values))
        if prepared is None:
            return _through_core(connection, statement, values)
        cursor.execute(prepared.sql, prepared.bind(values))
        return prepared.read(cursor)

    def _prepare(self, statement: Executable, names: tuple[str, ...]) -> _Prepared | None:
        try:
            return self._cache[statement, names]
        except KeyError:
            if len(self._cache) >= _MAX_CACHED:  # statements built per call must not grow the process
                self._cache.clear()
            prepared = self._cache[statement, names] = _prepare(statement, names, self._dialect)
            return prepared


class _Prepared:
    __slots__ = ("_binds", "_row", "_row_processors", "sql")

    def __init__(
        self,
        sql: str,
        binds: tuple[tuple[str, Any, _Processor | None], ...],
        row: Callable[..., Row] | None,
        row_processors: tuple[_Processor | None, ...],
    ) -> None:
        self.sql = sql
        self._binds = binds
        self._row = row
        self._row_processors = row_processors if any(row_processors) else ()

    def bind(self, values: Mapping[str, Any]) -> list[Any]:
        bound = []
        for name, default, processor in self._binds:
            value = values.get(name, default)
            if value is _REQUIRED:
                raise TypeError(f"the statement needs a value for {name!r}")
            bound.append(processor(value) if processor is not None else value)
        return bound

    def read(self, cursor: Any) -> Result:
        if cursor.description is None:
            return Result((), cursor.rowcount, cursor.lastrowid)
        make = self._row
        if make is None:
            make = self._row = _row_class([column[0] for column in cursor.description])
        raw = cursor.fetchall()
        processors = self._row_processors
        if processors:
            rows = [
                make([value if p is None else p(value) for p, value in zip(processors, row, strict=True)])
                for row in raw
            ]
        else:
            rows = [make(row) for row in raw]
        return Result(rows, len(rows), None)


_REQUIRED = object()


def _prepare(statement: Executable, names: tuple[str, ...], dialect: Dialect) -> _Prepared | None:
    compiled = cast(
        SQLCompiler,
        statement.compile(dialect=cast(DefaultDialect, dialect), column_keys=list(names) or None),  # type: ignore[attr-defined]
    )
    if compiled.post_compile_params or compiled.insert_prefetch or compiled.update_prefetch:
        return None
    processors = compiled._bind_processors
    positions = compiled.positiontup
    if positions is None:
        return None
    by_name = {name: parameter for parameter, name in compiled.bind_names.items()}
    binds = []
    for name in positions:
        parameter = by_name[name]
        default: Any = _REQUIRED if parameter.required else parameter.effective_value
        processor = processors.get(name)
        binds.append((parameter.key, default, processor if callable(processor) else None))
    entries = compiled._result_columns
    row_processors = tuple(_result_processor(entry.type, dialect) for entry in entries)
    row = _row_class([entry.keyname for entry in entries]) if entries else None
    return _Prepared(compiled.string, tuple(binds), row, row_processors)


def _result_processor(kind: Any, dialect: Dialect) -> _Processor | None:
    return cast("_Processor | None", kind._cached_result_processor(dialect, None))


def _row_class(names: Sequence[str]) -> Callable[..., Row]:
    fields = [f"{name}_" if keyword.iskeyword(name) else name for name in names]  # agents.class is read as .class_
    base = namedtuple("Row", fields, rename=True)  # type: ignore[misc]
    cls = type("Row", (base,), {"__slots__": (), "_mapping": property(lambda self: self._asdict())})
    return cast("Callable[..., Row]", cls._make)  # type: ignore[attr-defined]


def _through_core(connection: Connection, statement: Executable, values: Mapping[str, Any]) -> Result:
    result = connection.execute(statement, dict(values))
    if not result.returns_rows:
        return Result((), result.rowcount, None)
    make = _row_class(list(result.keys()))
    rows = [make(row) for row in result.all()]
    return Result(rows, len(rows), None)
