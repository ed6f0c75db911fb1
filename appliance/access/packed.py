"""Credentials by issuer key and serial number, packed: some 65 octets each instead of a thousand.

A campus keeps every certificate in force in memory, and every revoked one until it expires. As objects a hundred
thousand of them are a hundred megabytes, through which the collector walks. Here each of many parts is three strings of
octets: keys of one width, where each record ends, and the records. A decision makes one credential of its record again;
a change makes the few parts anew that it touches, and who has the mapping of before keeps what it had.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Hashable, Iterator, Mapping
from typing import Final, Generic, TypeAlias, TypeVar

from appliance.store.columns import from_micros, to_micros
from radius import Credential

Key: TypeAlias = tuple[str, int]
_Part: TypeAlias = tuple[bytes, bytes, bytes]

BLOCKS: Final = 64
"""Of as many parts each, so that a change copies two short lists and not one long one."""
_EMPTY: Final[_Part] = (b"", b"", b"")
_SERIAL_OCTETS: Final = 20
_WIDTH: Final = 2 + _SERIAL_OCTETS
_END: Final = struct.Struct("<I")
_HEAD: Final = struct.Struct("<Hqq")
_NONE, _TEXT, _UUID = 0, 1, 2
MAX_PREFIXES: Final = 4096
MAX_PREFIX: Final = 128
_UUID_LENGTH: Final = 36
_IS_UUID: Final = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch

W = TypeVar("W", bound=Hashable)


class _Words(Generic[W]):
    """What many records have in common, kept once: values by number."""

    def __init__(self) -> None:
        self._numbers: dict[W, int] = {}
        self._values: list[W] = []

    def number(self, value: W) -> int:
        found = self._numbers.get(value)
        if found is None:
            found = self._numbers[value] = len(self._values)
            self._values.append(value)
        return found

    def known(self, value: W) -> int | None:
        return self._numbers.get(value)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, number: int) -> W:
        return self._values[number]


class _Tables:
    """The words of one mapping and of those that were made from it."""

    __slots__ = ("issuers", "kinds", "prefixes")

    def __init__(self) -> None:
        self.issuers: _Words[str] = _Words()
        self.kinds: _Words[tuple[str, str, str, str, str]] = _Words()
        self.prefixes: _Words[str] = _Words()


class Credentials(Mapping[Key, Credential]):
    """`with_changes` gives another one; this one keeps what it had."""

    __slots__ = ("_blocks", "_tables")

    def __init__(self, entries: Mapping[Key, Credential] | None = None) -> None:
        self._blocks: list[list[_Part]] = [[_EMPTY] * BLOCKS for _ in range(BLOCKS)]
        self._tables = _Tables()
        for key, credential in (entries or {}).items():
            self.put(key, credential)

    def put(self, key: Key, credential: Credential) -> None:
        """Only while it is being filled and nobody else has it."""
        block, at, octets = _place(self._tables.issuers.number(key[0]), key[1])
        parts = self._blocks[block]
        parts[at] = _with(parts[at], octets, _write(credential, self._tables))

    def with_changes(self, changes: Mapping[Key, Credential]) -> Credentials:
        """With these entries in place of, or beside, those of the same keys."""
        made = Credentials.__new__(Credentials)
        made._blocks = list(self._blocks)
        made._tables = self._tables
        for key, credential in changes.items():
            block, at, octets = _place(self._tables.issuers.number(key[0]), key[1])
            parts = made._blocks[block]
            if parts is self._blocks[block]:
                parts = made._blocks[block] = list(parts)
            parts[at] = _with(parts[at], octets, _write(credential, self._tables))
        return made

    def parts(self) -> Iterator[_Part]:
        """Every part: keys, ends and records."""
        for block in self._blocks:
            yield from block

    def find(self, aki: str, serial: int) -> Credential | None:
        """The credential of this issuer key and serial number, if there is one."""
        issuer = self._tables.issuers.known(aki)
        if issuer is None or not 0 <= serial < 1 << 8 * _SERIAL_OCTETS:
            return None
        block, at, octets = _place(issuer, serial)
        keys, ends, records = self._blocks[block][at]
        index = _index(keys, octets)
        if index is None:
            return None
        start = _END.unpack_from(ends, (index - 1) * _END.size)[0] if index else 0
        return _read(records, start, serial, self._tables)

    def __getitem__(self, key: Key) -> Credential:
        if (found := self.find(*key)) is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[Key]:
        for keys, _, _ in self.parts():
            for at in range(0, len(keys), _WIDTH):
                issuer = self._tables.issuers[int.from_bytes(keys[at : at + 2])]
                yield issuer, int.from_bytes(keys[at + 2 : at + _WIDTH])

    def __len__(self) -> int:
        return sum(len(keys) for keys, _, _ in self.parts()) // _WIDTH


def _place(issuer: int, serial: int) -> tuple[int, int, bytes]:
    block, at = divmod(hash(serial) % (BLOCKS * BLOCKS), BLOCKS)
    return block, at, issuer.to_bytes(2) + serial.to_bytes(_SERIAL_OCTETS)


def _index(keys: bytes, octets: bytes) -> int | None:
    at = keys.find(octets)
    while at >= 0 and at % _WIDTH:  # found across two keys
        at = keys.find(octets, at + 1)
    return None if at < 0 else at // _WIDTH


def _with(part: _Part, octets: bytes, record: bytes) -> _Part:
    keys, ends, records = part
    index = _index(keys, octets)
    if index is None:
        return keys + octets, ends + _END.pack(len(records) + len(record)), records + record
    start = _END.unpack_from(ends, (index - 1) * _END.size)[0] if index else 0
    (end,) = _END.unpack_from(ends, index * _END.size)
    if end - start == len(record):  # mostly the state alone has changed
        return keys, ends, records[:start] + record + records[end:]
    return _joined({**_split(part), octets: record})


def _split(part: _Part) -> dict[bytes, bytes]:
    keys, ends, records = part
    found, start = {}, 0
    for index, (end,) in enumerate(_END.iter_unpack(ends)):
        found[keys[index * _WIDTH : (index + 1) * _WIDTH]] = records[start:end]
        start = end
    return found


def _joined(entries: Mapping[bytes, bytes]) -> _Part:
    ends, end = [], 0
    for record in entries.values():
        end += len(record)
        ends.append(_END.pack(end))
    return b"".join(entries), b"".join(ends), b"".join(entries.values())


def _write(one: Credential, tables: _Tables) -> bytes:
    kind = tables.kinds.number((one.kind, one.issuer_role, one.state, one.model, one.tier))
    head = _HEAD.pack(kind, to_micros(one.not_before), to_micros(one.not_after))
    return head + b"".join(_text(one, tables) for one in (one.agent_id, one.owner_id, one.txn or None))


def _read(records: bytes, at: int, serial: int, tables: _Tables) -> Credential:
    number, not_before, not_after = _HEAD.unpack_from(records, at)
    kind, role, state, model, tier = tables.kinds[number]
    agent_id, at = _read_text(records, at + _HEAD.size, tables)
    owner_id, at = _read_text(records, at, tables)
    txn, _ = _read_text(records, at, tables)
    return Credential(
        kind=kind,
        agent_id=agent_id or "",
        owner_id=owner_id,
        serial=serial,
        issuer_role=role,
        state=state,
        not_before=from_micros(not_before),
        not_after=from_micros(not_after),
        model=model,
        txn=txn or "",
        tier=tier,
    )


def _text(value: str | None, tables: _Tables) -> bytes:
    """A text; one that ends in a UUID is the number of what stands before, and sixteen octets.

    A requester may write anything before a UUID, so there is room for so many such words and no more.
    """
    if value is None:
        return bytes((_NONE,))
    prefix, last = value[:-_UUID_LENGTH], value[-_UUID_LENGTH:]
    if (
        len(prefix) <= MAX_PREFIX
        and _IS_UUID(last)
        and (len(tables.prefixes) < MAX_PREFIXES or tables.prefixes.known(prefix) is not None)
    ):
        return bytes((_UUID,)) + tables.prefixes.number(prefix).to_bytes(2) + bytes.fromhex(last.replace("-", ""))
    octets = value.encode()
    return bytes((_TEXT,)) + len(octets).to_bytes(2) + octets


def _read_text(records: bytes, at: int, tables: _Tables) -> tuple[str | None, int]:
    kind = records[at]
    if kind == _NONE:
        return None, at + 1
    number, at = int.from_bytes(records[at + 1 : at + 3]), at + 3
    if kind == _TEXT:
        return records[at : at + number].decode(), at + number
    d = records[at : at + 16].hex()
    return f"{tables.prefixes[number]}{d[:8]}-{d[8:12]}-{d[12:16]}-{d[16:20]}-{d[20:]}", at + 16
