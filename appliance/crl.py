"""Revocation lists: one per issuing CA, made anew at half its life and after every revocation.

Every generation of a CA has its own, by its label.

The number never goes back: it is above the last one, and at least the clock in milliseconds, so it goes on after a
restored backup as well. A list is a file in the home, replaced as a whole; the store holds its number and digest, and
is written first, so a kill between the two costs a number and never repeats one. Long lists are written by a process
of their own (`appliance.crl_entries`) and signed in a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile, mkstemp
from typing import ClassVar

from appliance import audit
from appliance.audit import APPLIANCE, AuditEvent
from appliance.ca import TOPIC, CertificateAuthority
from appliance.clock import Clock
from appliance.errors import ApplianceError, NotFound
from appliance.hierarchy import IssuingCa
from appliance.store import OutboxRow, Row, Store, Tx, certificates, crls
from est.profiles import assemble
from est.revocation import Revoked, crl_to_be_signed

_log = logging.getLogger(__name__)
CRL_TOPIC = "crl"
FOLDER = "crl"
_SETTLE_SECONDS = 0.5
_RETRY_SECONDS = 5.0
# Up to here a list is written where it is asked for: two milliseconds, less than a process takes to begin.
_SHORT = 1000
_CHILD_SECONDS = 120.0
_TEMPORARY = ".tmp"


class CrlNotBuilt(ApplianceError):
    """The process that writes the entries of a long revocation list failed; the old list stands."""

    reason: ClassVar[str] = "crl-not-built"


@dataclass(frozen=True, slots=True)
class PublishedCrl:
    """A finished list as it is handed out."""

    der: bytes
    number: int
    this_update: datetime
    next_update: datetime
    sha256: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a list is to be made of, as the store was at one moment; `rows` None = too many, ask the process."""

    number: int
    now: datetime
    since: datetime
    revoked: int
    rows: list[Row] | None


class CrlKeeper:
    """Builds CRLs and keeps them fresh; run() is the one task behind it."""

    def __init__(
        self, ca: CertificateAuthority, store: Store, clock: Clock, *, life_hours: float, short: int = _SHORT
    ) -> None:
        """`short`: lists of more entries are written by another process."""
        self._ca = ca
        self._store = store
        self._clock = clock
        self._life = timedelta(hours=life_hours)
        self._folder = store.path.parent / FOLDER
        self._short = short
        self._due: set[str] = set()
        self._wake = asyncio.Event()
        self._follows = False
        self._published: dict[str, PublishedCrl] = {}

    async def crl(self, role: str) -> bytes:
        """The current list of an issuing CA by its label, DER; NotFound before the first one."""
        return (await self.published(role)).der

    async def published(self, role: str) -> PublishedCrl:
        """The current list of a role with its dates; NotFound before the first one."""
        found = self._published.get(role)
        if found is None:
            found = await self._load(role)
        if found is None:
            raise NotFound("there is no CRL of this name")
        return found

    async def age_seconds(self, role: str) -> float | None:
        """How long ago the current list was made; None if there is none."""
        row = await self._store.read(lambda tx: crls.get(tx, role))
        return None if row is None else float((self._clock.now() - row.this_update).total_seconds())

    async def build(self, role: str) -> int:
        """Make, sign and publish the list of one issuing CA, named by its label; returns its number.

        Raises NotFound, CrlNotBuilt and what the store refuses; then the old list stands.
        """
        issuing = self._ca.generation(role)
        plan = await self._store.read(partial(self._plan, issuing=issuing))
        self._folder.mkdir(mode=0o700, exist_ok=True)
        entries, count = await self._entries(issuing, plan)
        tbs = await asyncio.to_thread(self._to_be_signed, issuing, plan, entries)
        del entries  # of a million revoked, 35 MB, beside which the list stands twice
        der, digest = await asyncio.to_thread(_sign, issuing, tbs)
        made = crls.Crl(plan.number, plan.now, plan.now + self._life, count, plan.revoked, digest)
        temporary = await asyncio.to_thread(_write_beside, self._path(role), der)
        try:
            await self._store.write(partial(_record, role=role, crl=made), essential=True)
            temporary.replace(self._path(role))
        finally:
            temporary.unlink(missing_ok=True)
        self._published[role] = PublishedCrl(der, made.number, made.this_update, made.next_update, digest.hex())
        return made.number

    async def build_all(self) -> None:
        """Make every list anew."""
        for one in self._ca.generations:
            await self.build(one.label)

    async def build_missing(self) -> None:
        """Make the lists that do not exist, are past half their life, or lack a revocation.

        One may be lacking when a command revoked while nobody ran here, or when a kill came before the new list.
        """
        for issuing in self._ca.generations:
            role = issuing.label
            row, revoked = await self._store.read(partial(_row_and_revoked, issuing=issuing))
            age = float("inf") if row is None else (self._clock.now() - row.this_update).total_seconds()
            current = row is not None and 0 <= age <= self._life.total_seconds() / 2 and row.revoked == revoked
            if not current or (role not in self._published and await self._load(role) is None):
                await self.build(role)

    async def start(self) -> None:
        """build_missing(), but what hinders a list (a full disk) does not hinder the start: run() tries again."""
        for left in self._folder.glob(f".*{_TEMPORARY}"):  # by a kill
            left.unlink(missing_ok=True)
        try:
            await self.build_missing()
        except (ApplianceError, OSError) as error:
            _log.error("event=crl-not-built error=%r", error)

    def look(self) -> None:
        """The CAs have changed: run() makes the lists that are missing."""
        self._wake.set()

    async def run(self) -> None:
        """Keep the lists fresh until cancelled; subscribes to the store itself."""
        if not self._follows:
            self._store.subscribe(self._on_events)
            self._follows = True
        while True:
            due, self._due = self._due, set()
            self._wake.clear()
            try:
                for issuing in self._ca.generations:
                    if issuing.label in due:
                        await self.build(issuing.label)
                await self.build_missing()
            except (ApplianceError, OSError) as error:  # disk full, store busy: the old list stands until then
                _log.error("event=crl-not-built error=%r", error)
                self._due |= due
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if await self._woken(self._life.total_seconds() / 8):
                await asyncio.sleep(_SETTLE_SECONDS)  # revocations come in flocks

    async def _woken(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._wake.wait()
        except TimeoutError:
            return False

    def _on_events(self, rows: list[OutboxRow]) -> None:
        for row in rows:
            if row.topic == TOPIC and row.body["state"] == certificates.REVOKED:
                issuing = self._ca.of_key(bytes.fromhex(row.body["issuer_aki"]))
                if issuing is not None:
                    self._due.add(issuing.label)
                    self._wake.set()

    def _path(self, role: str) -> Path:
        return self._folder / f"{role}.crl"

    async def _load(self, role: str) -> PublishedCrl | None:
        """The file of a role, if it is the list that the store speaks of."""
        row = await self._store.read(lambda tx: crls.get(tx, role))
        if row is None:
            return None
        der = await asyncio.to_thread(_read, self._path(role), row.sha256)
        if der is None:
            return None
        found = PublishedCrl(der, row.number, row.this_update, row.next_update, row.sha256)
        return self._published.setdefault(role, found)

    def _plan(self, tx: Tx, issuing: IssuingCa) -> _Plan:
        now, aki = self._clock.now(), issuing.key_identifier
        old = crls.get(tx, issuing.label)
        # A list made while the clock was ahead must not make us drop what has not expired.
        since = now if old is None else min(old.this_update, now)
        rows = crls.entries(tx, issuing.role, aki, since, count=self._short + 1)
        number = max(int(now.timestamp() * 1000), old.number + 1 if old is not None else 0)
        return _Plan(
            number, now, since, crls.revoked(tx, issuing.role, aki), rows if len(rows) <= self._short else None
        )

    async def _entries(self, issuing: IssuingCa, plan: _Plan) -> tuple[bytes | list[Revoked], int]:
        if plan.rows is not None:
            listed = [
                Revoked(int(row.serial, 16), row.revoked_at, row.revocation_reason or "unspecified")
                for row in plan.rows
            ]
            return listed, len(listed)
        with NamedTemporaryFile(prefix=f".{issuing.label}-", suffix=_TEMPORARY, dir=self._folder) as file:
            count = await self._write_apart(issuing, plan, Path(file.name))
            return await asyncio.to_thread(file.read), count

    async def _write_apart(self, issuing: IssuingCa, plan: _Plan, file: Path) -> int:
        """The entries of a long list, written by a process of its own; answers how many."""
        role = issuing.label
        sql, values = crls.entries_query(issuing.role, plan.since)
        order = {
            "database": str(self._store.path),
            "sql": sql,
            "values": dict(values),
            "aki": issuing.key_identifier.hex(),
            "file": str(file),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "appliance.crl_entries",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        try:
            async with asyncio.timeout(_CHILD_SECONDS):
                output, errors = await process.communicate(json.dumps(order).encode())
        except TimeoutError as error:
            raise CrlNotBuilt(f"the entries of the {role} CRL took too long", retry_after_seconds=60) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            last = (errors.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
            raise CrlNotBuilt(f"the entries of the {role} CRL were not written: {last}", retry_after_seconds=60)
        return int(json.loads(output)["entries"])

    def _to_be_signed(self, issuing: IssuingCa, plan: _Plan, entries: bytes | list[Revoked]) -> bytes:
        """In a thread."""
        return crl_to_be_signed(
            issuing.certificate.subject,
            issuer_key=issuing.signer.public_key(),
            issuer_key_identifier=issuing.key_identifier,
            number=plan.number,
            this_update=plan.now,
            next_update=plan.now + self._life,
            entries=entries,
        )


def _sign(issuing: IssuingCa, tbs: bytes) -> tuple[bytes, bytes]:
    """The finished list and its SHA-256; in a thread."""
    der = assemble(tbs, issuing.signer.sign(tbs), issuing.signer.public_key())
    return der, hashlib.sha256(der).digest()


def _record(tx: Tx, *, role: str, crl: crls.Crl) -> None:
    crls.put(tx, role, crl)
    fields = {"number": crl.number, "entries": crl.entries, "crl_sha256": crl.sha256.hex()}
    audit.append(tx, AuditEvent("crl-issued", APPLIANCE, object=role, fields=fields))
    tx.emit(CRL_TOPIC, role, {"number": crl.number, "entries": crl.entries})


def _row_and_revoked(tx: Tx, *, issuing: IssuingCa) -> tuple[Row | None, int]:
    return crls.get(tx, issuing.label), crls.revoked(tx, issuing.role, issuing.key_identifier)


def _write_beside(path: Path, der: bytes) -> Path:
    """The list on the disk, under another name until the store knows of it."""
    handle, name = mkstemp(prefix=f".{path.stem}-", suffix=_TEMPORARY, dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(der)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)


def _read(path: Path, sha256: str) -> bytes | None:
    """The bytes of a file, if these they are."""
    try:
        der = path.read_bytes()
    except OSError:
        return None
    return der if hashlib.sha256(der).hexdigest() == sha256 else None
