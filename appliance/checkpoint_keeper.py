"""Signs checkpoints of the audit log while the appliance runs, and keeps them in the store and in a file of their own.

The file may lie on another device. What stands in it was signed, so a store that does not contain it is an older one:
the appliance then refuses to start, because a restored store has forgotten revocations and spent nonces (fault F5).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric import ec

from appliance import audit, checkpoint, merkle
from appliance.audit import Actor, AuditEvent, AuditRow
from appliance.binding import jws
from appliance.checkpoint import Checkpoint
from appliance.clock import Clock
from appliance.errors import ApplianceError, AuditBroken, NotFound
from appliance.store import checkpoints
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est.errors import Refusal
from est.signer import KeySigner

_log = logging.getLogger(__name__)
FILE_NAME = "audit-checkpoints.jsonl"
_LOOK_SECONDS = 2.0


class LogRolledBack(ApplianceError):
    """A checkpoint was signed over entries that the store no longer has: it is an older copy, or was rewritten."""

    reason: ClassVar[str] = "log-rolled-back"


class CheckpointKeeper:
    """run() is the one task behind it; the rest answers commands."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        key: ec.EllipticCurvePrivateKey,
        *,
        origin: str,
        file: Path,
        seconds: float,
        entries: int,
    ) -> None:
        """A checkpoint follows `seconds` after an entry at the latest, and after so many `entries` at once."""
        self._store = store
        self._clock = clock
        self._signer = KeySigner(key)
        self._origin = origin
        self._file = file
        self._seconds = seconds
        self._entries = entries
        self._tree: merkle.Frontier | None = None
        self._made_at = float("-inf")
        self._in_file: int | None = None
        self._lock = asyncio.Lock()

    @property
    def key(self) -> ec.EllipticCurvePublicKey:
        """The key that checkpoints verify with; an auditor keeps it."""
        return self._signer.public_key()

    @property
    def jwk(self) -> dict[str, str]:
        """The same as a JWK with its kid."""
        return {**jws.jwk(self.key, algorithm=True), "kid": jws.jkt(self.key), "use": "sig"}

    async def start(self) -> None:
        """Hold the store against the file, and give the file what it lacks; raises LogRolledBack."""
        kept = await asyncio.to_thread(self._read_file)
        if kept:
            await self._store.read(partial(_check_contains, signed=checkpoint.unseal(kept[-1], self.key)))
        self._in_file = None
        await self._keep()

    async def run(self) -> None:
        """Sign when it is time, until cancelled."""
        while True:
            await asyncio.sleep(min(_LOOK_SECONDS, self._seconds))
            try:
                await self._look()
            except Refusal as refused:
                _log.warning("event=checkpoint-not-made reason=%s detail=%r", refused.reason, refused.detail)
            except OSError as error:
                _log.error("event=checkpoint-not-kept file=%s error=%s", self._file, error.strerror)
            else:
                continue
            await asyncio.sleep(self._seconds)  # said once, not every two seconds

    async def sign(self) -> str:
        """A checkpoint over all that is in the log now, or the newest if that is it; NotFound for an empty log."""
        async with self._lock:
            tree = await self._catch_up()
            newest = await self._store.read(checkpoints.newest)
            if newest is not None and newest.size == tree.size:
                return str(newest.token)
            if not tree.size:
                raise NotFound("the audit log is empty")
            head = await self._store.read(partial(_entry, seq=tree.size))
            made = Checkpoint(self._origin, tree.size, tree.root(), head.hash, self._clock.now())
            token = checkpoint.seal(made, self._signer)
            await self._store.write(partial(checkpoints.add, size=tree.size, token=token, peaks=tree.dump()))
            self._made_at = self._clock.monotonic()
            await self._keep()
        _log.info("event=audit-checkpoint size=%d root=%s", made.size, made.root.hex())
        return token

    async def newest(self) -> str:
        """The newest token; NotFound before the first."""
        row = await self._store.read(checkpoints.newest)
        if row is None:
            raise NotFound("no checkpoint was signed yet")
        return str(row.token)

    async def listed(self, after: int = 0) -> list[dict[str, Any]]:
        """Up to 1000 checkpoints of longer logs than `after`: size, time, token."""
        rows = await self._store.read(partial(checkpoints.page, after=after))
        return [{"size": row.size, "time": _text(row.time), "token": row.token} for row in rows]

    async def verify(self) -> dict[str, Any]:
        """Check the log against itself and every checkpoint; `ok` and the head, or the first bad position."""
        try:
            tokens = [row["token"] for row in await self._every()]
            tokens += await asyncio.to_thread(self._read_file)
            signed = [checkpoint.unseal(token, self.key, origin=self._origin) for token in dict.fromkeys(tokens)]
            head = await self._store.read(lambda tx: checkpoint.verify(audit.rows(tx), signed))
        except AuditBroken as broken:
            return {"ok": False, "position": broken.fields.get("position"), "detail": broken.detail}
        except Refusal as refused:
            return {"ok": False, "position": None, "detail": f"a checkpoint cannot be used: {refused.detail}"}
        return {"ok": True, "entries": head.seq, "head": head.hash.hex(), "checkpoints": len(signed)}

    async def prove_entry(self, seq: int) -> dict[str, Any]:
        """A document that proves one entry to whoever has the key; NotFound."""
        if seq < 1 or seq > await self._store.read(audit.last_seq):
            raise NotFound(f"the log has no entry {seq}")
        token = await self.sign()
        size = checkpoint.unseal(token, self.key).size
        row = await self._store.read(partial(_entry, seq=seq))
        return checkpoint.inclusion(token, row, await self._roots(merkle.inclusion_ranges(seq - 1, size)))

    async def prove_growth(self, older: str) -> dict[str, Any]:
        """A document that proves that the log of now begins with that of an older checkpoint.

        Raises what checkpoint.unseal raises, and LogRolledBack if it does not.
        """
        first = checkpoint.unseal(older, self.key, origin=self._origin)
        token = await self.sign()
        second = checkpoint.unseal(token, self.key)
        await self._store.read(partial(_check_contains, signed=first))
        ranges = merkle.consistency_ranges(first.size, second.size)
        return checkpoint.consistency(older, token, await self._roots(ranges))

    async def accept_rollback(self, actor: Actor, comment: str) -> dict[str, Any]:
        """Go on with the store as it is, although checkpoints know more: the file is put aside and begins anew.

        NotFound if store and file agree.
        """
        try:
            await self.start()
        except LogRolledBack as found:
            detail = found.detail
        else:
            raise NotFound("the store contains every checkpoint; there is nothing to accept")
        aside = self._file.with_name(f"{self._file.name}.superseded-{self._clock.now():%Y%m%dT%H%M%SZ}")
        event = AuditEvent("audit-rollback-accepted", actor, reason=detail[:200], fields={"comment": comment})
        await self._store.write(partial(_append_event, event=event))
        self._file.rename(aside)
        await self.start()
        return {"accepted": detail, "kept": str(aside)}

    async def _keep(self) -> None:
        """Give the file what it lacks."""
        if self._in_file is None:
            kept = await asyncio.to_thread(self._read_file)
            self._in_file = checkpoint.unseal(kept[-1], self.key).size if kept else 0
        while rows := await self._store.read(partial(checkpoints.page, after=self._in_file)):
            await asyncio.to_thread(self._append, [row.token for row in rows])
            self._in_file = rows[-1].size

    async def _look(self) -> None:
        newest = await self._store.read(checkpoints.newest)
        if newest is not None and newest.size > (self._in_file or 0):
            await self._keep()
        fresh = await self._store.read(audit.last_seq) - (newest.size if newest is not None else 0)
        waited = self._clock.monotonic() - self._made_at
        if fresh and (waited >= self._seconds or fresh >= self._entries):
            await self.sign()

    async def _catch_up(self) -> merkle.Frontier:
        """The tree over everything in the log; after a start it goes on from the newest checkpoint."""
        tree = self._tree
        if tree is None:
            row = await self._store.read(checkpoints.newest)
            tree = merkle.Frontier() if row is None else merkle.Frontier.load(row.size, row.peaks)
            if row is not None and checkpoint.unseal(row.token, self.key).root != tree.root():
                raise AuditBroken("the newest checkpoint does not fit what is stored beside it", position=row.size)
        while (grown := await self._store.read(partial(_grown, tree=tree))).size > tree.size:
            tree = grown
        self._tree = tree
        return tree

    async def _roots(self, ranges: list[merkle.Range]) -> list[bytes]:
        return await self._store.read(
            lambda tx: merkle.roots_of(ranges, (checkpoint.leaf_of(row) for row in audit.rows(tx)))
        )

    async def _every(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while page := await self.listed(found[-1]["size"] if found else 0):
            found += page
        return found

    def _read_file(self) -> list[str]:
        """The tokens in the file; a last line that was cut off by a crash is left out."""
        try:
            text = self._file.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return []
        return [_token(line, at, self._file) for at, line in enumerate(text.split("\n")[:-1], 1)]

    def _append(self, tokens: list[str]) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:  # a line that a crash has cut off is written over
                file.seek(max(0, end - jws.MAX_BYTES))
                tail = file.read()
                file.seek(end - (len(tail) - (tail.rfind(b"\n") + 1)))
                file.truncate()
            for token in tokens:
                file.write(json.dumps({"checkpoint": token}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_tokens(text: str, name: Path) -> list[str]:
    """The tokens of a file of checkpoints that somebody kept; raises AuditBroken with the line that is none."""
    return [_token(line, at, name) for at, line in enumerate(text.splitlines(), 1) if line.strip()]


def _token(line: str, at: int, file: Path) -> str:
    try:
        value = json.loads(line)["checkpoint"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AuditBroken(f"line {at} of {file} is no checkpoint", position=0) from error
    if not isinstance(value, str):
        raise AuditBroken(f"line {at} of {file} is no checkpoint", position=0)
    return value


def _check_contains(tx: Tx, *, signed: Checkpoint) -> None:
    found = audit.page(tx, after=signed.size - 1, count=1)
    if not found or found[0].seq != signed.size:
        raise LogRolledBack(
            f"a checkpoint was signed over {signed.size} audit entries and the store has {audit.last_seq(tx)}: it is "
            f"an older copy. Restore a newer one, or say: appliance audit accept-rollback --comment WHY"
        )
    if found[0].hash != signed.head:
        raise LogRolledBack(
            f"audit entry {signed.size} is not the one that was signed: the store is another copy, or was rewritten. "
            f"Restore the right one, or say: appliance audit accept-rollback --comment WHY"
        )


def _grown(tx: Tx, *, tree: merkle.Frontier) -> merkle.Frontier:
    """The tree with the next entries, as another one: a reader that nobody waits for any more changes nothing."""
    grown = merkle.Frontier(tree.size, list(tree.peaks))
    for body in audit.bodies(tx, after=tree.size):
        grown.add(merkle.leaf_hash(body.encode()))
    return grown


def _entry(tx: Tx, *, seq: int) -> AuditRow:
    return audit.page(tx, after=seq - 1, count=1)[0]


def _append_event(tx: Tx, *, event: AuditEvent) -> None:
    audit.append(tx, event)


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
