"""Statements of SQLAlchemy Core, compiled once to text and run on the driver's cursor.

Building and compiling Core statements per call costs several times what SQLite needs to run them. Repositories keep
their statements as module constants; the first use compiles one for its set of parameter names, later uses only bind.
Anything that cannot be a fixed text (an IN list, Python-side defaults) goes through Core itself.

The few statements that every issuance runs are `plain`: compiled when their module is loaded, they take a tuple of
values as the database keeps them and give such tuples back, so nothing is looked up or converted per call.
"""

from __future__ import annotations

import keyword
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar, TypeAlias, cast

from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import Executable

from appliance.store.columns import Hex, Json, Octets, Serial, Time

Row: TypeAlias = Any
"""One result row: a named tuple, columns as attributes; `_mapping` is the same as a dict."""

_MAX_CACHED = 1024
_SQLITE = sqlite.dialect(paramstyle="qmark")
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


class Plain:
    """The text of a statement that takes its values as a tuple, in stored form, and gives rows in stored form."""

    __slots__ = ("sql",)

    def __init__(self, sql: str) -> None:
        self.sql = sql


def plain(statement: Executable, *names: str) -> Plain:
    """Compile a statement whose values will come in this order; ValueError if that is not the order of the text.

    A name that the text uses twice stands there twice. Constants of the statement are values like others.
    """
    compiled = cast(SQLCompiler, statement.compile(dialect=_SQLITE, column_keys=list(names) or None))  # type: ignore[attr-defined]
    by_name = {name: parameter.key for parameter, name in compiled.bind_names.items()}
    found = tuple(by_name[name] for name in compiled.positiontup or ())
    if found != names:
        raise ValueError(f"the statement takes {found}, not {names}")
    return Plain(compiled.string)


class Statements:
    """One connection of one thread; the compiled form of a statement serves every connection of the process."""

    _cache: ClassVar[dict[tuple[Executable, tuple[str, ...], str], _Prepared | None]] = {}

    def __init__(self, connection: Connection, cursor: Any) -> None:
        self.cursor = cursor
        self._connection = connection
        self._dialect = connection.dialect
        self._language = connection.dialect.name

    def run(self, statement: Executable, values: Mapping[str, Any]) -> Result:
        """Execute with the given values; driver errors come as the driver raises them."""
        prepared = self._find(statement, tuple(values))
        if prepared is None:
            return _through_core(self._connection, statement, values)
        cursor = self.cursor
        cursor.execute(prepared.sql, prepared.bind(values))
        return prepared.read(cursor)

    def one(self, statement: Executable, values: Mapping[str, Any]) -> Row | None:
        """Execute a statement that gives rows; the first of them, or None."""
        prepared = self._find(statement, tuple(values))
        if prepared is None:
            return _through_core(self._connection, statement, values).first()
        cursor = self.cursor
        row = cursor.execute(prepared.sql, prepared.bind(values)).fetchone()
        return None if row is None else prepared.row(cursor, row)

    def some(self, statement: Executable, values: Mapping[str, Any], count: int) -> Iterator[list[Row]]:
        """Execute a statement that gives rows; so many of them at a time. Nothing else may run on this meanwhile."""
        prepared = self._find(statement, tuple(values))
        if prepared is None:
            yield list(_through_core(self._connection, statement, values).all())
            return
        cursor = self.cursor
        cursor.execute(prepared.sql, prepared.bind(values))
        while rows := cursor.fetchmany(count):
            yield [prepared.row(cursor, row) for row in rows]

    def run_many(self, statement: Executable, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute a statement that answers nothing once per row; every row has the names of the first."""
        prepared = self._find(statement, tuple(rows[0]))
        if prepared is None:
            for row in rows:
                _through_core(self._connection, statement, row)
        else:
            self.cursor.executemany(prepared.sql, [prepared.bind(row) for row in rows])

    def _find(self, statement: Executable, names: tuple[str, ...]) -> _Prepared | None:
        key = (statement, names, self._language)
        try:
            return self._cache[key]
        except KeyError:
            if len(self._cache) >= _MAX_CACHED:  # statements built per call must not grow the process
                self._cache.clear()
            prepared = self._cache[key] = _prepare(statement, names, self._dialect)  # two threads may do so; no matter
            return prepared


class _Prepared:
    __slots__ = ("_defaults", "_get", "_processors", "_row", "_row_processors", "sql")

    def __init__(
        self,
        sql: str,
        names: tuple[str, ...],
        defaults: Mapping[str, Any],
        processors: tuple[_Processor | None, ...],
        row: Callable[..., Row] | None,
        row_processors: tuple[_Processor | None, ...],
    ) -> None:
        self.sql = sql
        # One C call fetches every value; with a single name it gives the bare value, so that case is a lambda.
        self._get: Callable[[Mapping[str, Any]], tuple[Any, ...]]
        if len(names) > 1:
            self._get = itemgetter(*names)
        elif names:
            self._get = lambda values: (values[names[0]],)
        else:
            self._get = lambda values: ()
        self._defaults = defaults
        self._processors = tuple((at, one) for at, one in enumerate(processors) if one is not None)
        self._row = row
        self._row_processors = tuple((at, one) for at, one in enumerate(row_processors) if one is not None)

    def bind(self, values: Mapping[str, Any]) -> Sequence[Any]:
        try:
            bound = self._get({**self._defaults, **values} if self._defaults else values)
        except KeyError as error:
            raise TypeError(f"the statement needs a value for {error.args[0]!r}") from error
        if not self._processors:
            return bound
        changed = list(bound)
        for at, processor in self._processors:
            changed[at] = processor(changed[at])
        return changed

    def read(self, cursor: Any) -> Result:
        if cursor.description is None:
            return Result((), cursor.rowcount, cursor.lastrowid)
        row = self.row
        rows = [row(cursor, one) for one in cursor.fetchall()]
        return Result(rows, len(rows), None)

    def row(self, cursor: Any, values: Sequence[Any]) -> Row:
        make = self._row
        if make is None:
            make = self._row = _row_class([column[0] for column in cursor.description])
        if self._row_processors:
            changed = list(values)
            for at, processor in self._row_processors:
                changed[at] = processor(changed[at])
            values = changed
        return make(values)


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
    parameters = [by_name[name] for name in positions]
    binds = tuple(parameter.key for parameter in parameters)
    defaults = {one.key: one.effective_value for one in parameters if not one.required}
    bind_processors = tuple(
        _own(parameter.type, "stored", _callable(processors.get(name)))
        for parameter, name in zip(parameters, positions, strict=True)
    )
    entries = compiled._result_columns
    row_processors = tuple(_own(one.type, "read", _result_processor(one.type, dialect)) for one in entries)
    row = _row_class([entry.keyname for entry in entries]) if entries else None
    return _Prepared(compiled.string, binds, defaults, bind_processors, row, row_processors)


def _own(kind: Any, direction: str, otherwise: _Processor | None) -> _Processor | None:
    """The conversion of one of our column types without SQLAlchemy's calls around it."""
    return getattr(kind, direction) if isinstance(kind, Time | Hex | Octets | Serial | Json) else otherwise


def _callable(processor: Any) -> _Processor | None:
    return processor if callable(processor) else None


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
