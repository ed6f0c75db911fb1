"""Changes the CAs while everything runs: starts, moves and takes back rollovers, and takes in what the root signed.

One step is: see that the CAs would hold in the new state, write the state with its audit entry, be those CAs, tell
whoever serves with them. The last two are done again by every start, so a kill between them costs nothing; a step that
is asked for twice is taken once.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.authorities import check_authorities, load_authorities, read_places
from appliance.ca import CertificateAuthority
from appliance.clock import Clock
from appliance.errors import ApplianceError, NotFound
from appliance.hierarchy import ROLES, ROOT, key_file, key_tag, ocsp_key, record_ca
from appliance.keys import KEY_COST, generate, read_key, read_signer, write_key
from appliance.rollover_states import (
    OPEN,
    RENEWAL,
    RolloverEvent,
    RolloverOutOfOrder,
    RolloverState,
    step,
)
from appliance.root_export import export_root
from appliance.root_signing import RootRequest, make_csr, read_answer, sign, write_request
from appliance.settings import Settings
from appliance.store import Store, Tx
from appliance.store import rollovers as rows_of
from appliance.store.rollovers import RolloverRow
from appliance.token import open_token
from est import profiles
from est.signer import Signer

NAMES = (*ROLES, ROOT)
Changed = Callable[[], Awaitable[None]]
_LEFT = {
    RolloverState.PREPARED: "nobody sees the new one yet: advance, or back to forget it",
    RolloverState.PUBLISHED: "wait until whoever trusts the old one has the new one: advance, or back",
    RolloverState.SIGNING_WITH_NEW: "wait until what the old one signed has ended: advance",
    RolloverState.OLD_RETIRED: "done",
    RolloverState.TAKEN_BACK: "done",
}


class RolloverWaitsForRoot(ApplianceError):
    """The root's key is not in this home: it has to sign a request first, where it lies."""

    reason: ClassVar[str] = "rollover-waits-for-root"


class RolloverTooEarly(ApplianceError):
    """Somebody still depends on the old CA; `waiting` says how many."""

    reason: ClassVar[str] = "rollover-too-early"


class Rollovers:
    """The verbs of `appliance ca rollover`, and the two that talk to the root."""

    def __init__(
        self,
        settings: Settings,
        *,
        ca: CertificateAuthority,
        store: Store,
        clock: Clock,
        passphrase: bytes,
        on_change: Changed,
        key_cost: int = KEY_COST,
    ) -> None:
        """`on_change` runs when the CAs have changed, and must do no harm when they have not."""
        self._settings = settings
        self._home: Path = settings.home
        self._ca = ca
        self._store = store
        self._clock = clock
        self._passphrase = passphrase
        self._on_change = on_change
        self._key_cost = key_cost
        self._turn = asyncio.Lock()

    # -- what is

    async def status(self) -> list[dict[str, Any]]:
        """Every rollover, oldest first."""
        rows = await self._rows()
        return [await self._told(row) for row in rows if row.ca != RENEWAL]

    async def _told(self, row: RolloverRow) -> dict[str, Any]:
        state = RolloverState(row.state)
        waiting = await self._waiting(row) if state is RolloverState.SIGNING_WITH_NEW else 0
        left = "the root has to sign: appliance ca root sign-request" if not row.made else _LEFT[state]
        return {
            "ca": row.ca,
            "label": row.label,
            "state": row.state,
            "since": row.changed_at.isoformat(timespec="seconds"),
            "waiting": waiting,
            "next": "done" if state is RolloverState.TAKEN_BACK else left,
        }

    # -- the steps

    async def start(self, name: str, actor: Actor) -> dict[str, Any]:
        """A new key for a role's CA or the root, and, where the root's key is here, its certificates.

        Asked again while it is prepared, it goes on where it stopped. Raises RolloverOutOfOrder, NotFound.
        """
        if name not in NAMES:
            raise NotFound(f"no CA {name}; there are {', '.join(NAMES)}")
        async with self._turn:
            rows = await self._rows()
            row = _open(rows, name)
            if row is None:
                others = [one.ca for one in rows if RolloverState(one.state) in OPEN]
                if others and (name == ROOT or ROOT in others):
                    raise RolloverOutOfOrder(
                        f"the rollover of {', '.join(sorted(others))} has to be finished or taken back before"
                    )
                row = await self._begin(name, actor)
            elif row.state != RolloverState.PREPARED.value:
                raise RolloverOutOfOrder(f"the rollover of {name} is {row.state} already", state=row.state)
            if not row.made:
                row = await self._sign_here(row, actor)
            return await self._told(row)

    async def advance(self, name: str, actor: Actor, *, force: bool = False) -> dict[str, Any]:
        """The next state. `force` retires the old CA though somebody still depends on it.

        Raises RolloverOutOfOrder, RolloverWaitsForRoot, RolloverTooEarly, and what would be wrong with the CAs then.
        """
        async with self._turn:
            row = await self._need(name)
            if not row.made:
                raise RolloverWaitsForRoot(
                    "the root has not signed yet: appliance ca root sign-request, sign there, and import the answer"
                )
            state = step(RolloverState(row.state), RolloverEvent.ADVANCE)
            if state is RolloverState.OLD_RETIRED and not force:
                waiting = await self._waiting(row)
                if waiting:
                    raise RolloverTooEarly(_too_early(row, waiting), waiting=waiting)
            return await self._told(await self._move(row, state, actor))

    async def back(self, name: str, actor: Actor) -> dict[str, Any]:
        """The state before, and from prepared: forget the new key. Raises RolloverOutOfOrder."""
        async with self._turn:
            row = await self._need(name)
            moved = await self._move(row, step(RolloverState(row.state), RolloverEvent.BACK), actor)
            if moved.state == RolloverState.TAKEN_BACK.value:
                key_file(self._home, row.label).unlink(missing_ok=True)  # one in a token stays there, unused
            return await self._told(moved)

    async def settle(self) -> None:
        """Be what files and store say, and tell everybody: the second half of a step, after a kill or a restart."""
        async with self._turn:
            await self._become(await self._rows())

    # -- the root's signature

    async def request(self) -> str:
        """What the root should sign: for the rollovers that wait, else new certificates for the issuing keys of now."""
        return write_request(await self._request(await self._rows()))

    async def export(self, file: Path, actor: Actor) -> dict[str, Any]:
        """Move the root's key out of the home; raises as export_root()."""
        async with self._turn:
            found = read_places(self._home, await self._rows())
            return await export_root(
                self._home, found.root_label, found.root, file, self._passphrase, store=self._store, actor=actor
            )

    async def take(self, answer: str, actor: Actor) -> list[dict[str, Any]]:
        """Take in what the root signed. Raises RootDocumentMalformed, CaUnsuitable, CaExpired."""
        async with self._turn:
            rows = await self._rows()
            request = await self._request(rows)
            made = read_answer(answer, request, self._clock.now())
            waiting = _waiting_rows(rows)
            if not waiting:
                await self._store.write(lambda tx: self._renewed(tx, made, actor))
                await self._become(await self._rows())
            for row in waiting:
                await self._fill(row, made, actor)
            return [await self._told(row) for row in await self._rows() if row.id in {one.id for one in waiting}]

    async def _request(self, rows: Sequence[RolloverRow]) -> RootRequest:
        settings, now = self._settings.ca, read_places(self._home, rows)
        waiting = _waiting_rows(rows)
        new_root = any(row.ca == ROOT for row in waiting)
        csrs: dict[str, bytes] = {}
        if waiting and not new_root:
            for row in waiting:
                signer = await asyncio.to_thread(self._signer, row.label)
                tag = key_tag(signer.public_key())
                subject = profiles.name(f"{row.ca.capitalize()} CA {tag}", self._settings.domain.organization)
                csrs[row.label] = await asyncio.to_thread(make_csr, signer, subject)
        else:
            for place in now.issuing.values():
                signer = self._ca.generation(place.label).signer
                csrs[place.label] = await asyncio.to_thread(make_csr, signer, place.certificate.subject)
        return RootRequest(
            now.root, csrs, settings.issuing_days, settings.root_days, settings.backdate_seconds, new_root
        )

    def _signer(self, label: str) -> Signer:
        token = open_token(self._settings.hsm)
        return read_signer(key_file(self._home, label), self._passphrase) if token is None else token.signer(label)

    # -- inside

    async def _rows(self) -> list[RolloverRow]:
        return await self._store.read(rows_of.every)

    async def _need(self, name: str) -> RolloverRow:
        if name not in NAMES:
            raise NotFound(f"no CA {name}; there are {', '.join(NAMES)}")
        row = _open(await self._rows(), name)
        if row is None:
            raise RolloverOutOfOrder(f"no rollover of {name} is under way: appliance ca rollover start --role {name}")
        return row

    async def _begin(self, name: str, actor: Actor) -> RolloverRow:
        """The key first, then the row: a key that no row names is never used."""
        label = f"{name}-{secrets.token_hex(4)}"
        places = read_places(self._home, await self._rows())
        if name != ROOT:
            await asyncio.to_thread(self._new_issuing_key, label)
        elif key_file(self._home, places.root_label).exists():
            await asyncio.to_thread(self._new_key, label)

        def add(tx: Tx) -> int:
            audit.append(tx, AuditEvent("ca-rollover-started", actor, object=name, fields={"label": label}))
            return rows_of.add(tx, ca=name, label=label, state=RolloverState.PREPARED.value, made={})

        row_id = await self._store.write(add)
        return await self._row(row_id)

    def _new_issuing_key(self, label: str) -> None:
        token = open_token(self._settings.hsm)
        if token is None:
            self._new_key(label)
        else:
            token.generate(label)
            token.generate(ocsp_key(label))

    def _new_key(self, label: str) -> None:
        write_key(key_file(self._home, label), generate(), self._passphrase, cost=self._key_cost)

    async def _sign_here(self, row: RolloverRow, actor: Actor) -> RolloverRow:
        """Sign at once where the root's key is in the home; else the row waits."""
        rows = await self._rows()
        path = key_file(self._home, read_places(self._home, rows).root_label)
        new_path = key_file(self._home, row.label) if row.ca == ROOT else None
        if not path.exists() or (new_path is not None and not new_path.exists()):
            return row
        request = await self._request([one for one in rows if one.id == row.id or one.made])
        key: ec.EllipticCurvePrivateKey = await asyncio.to_thread(read_key, path, self._passphrase)
        new = await asyncio.to_thread(read_key, new_path, self._passphrase) if new_path is not None else None
        answer = await asyncio.to_thread(sign, request, key, self._clock.now(), new)
        return await self._fill(row, read_answer(answer, request, self._clock.now()), actor)

    async def _fill(self, row: RolloverRow, made: dict[str, str], actor: Actor) -> RolloverRow:
        own = made if row.ca == ROOT else {row.label: made[row.label]}

        def fill(tx: Tx) -> None:
            rows_of.fill(tx, row, own)
            self._record(tx, own, actor)

        await self._store.write(fill)
        return await self._row(row.id)

    def _renewed(self, tx: Tx, made: dict[str, str], actor: Actor) -> None:
        rows_of.add(tx, ca=RENEWAL, label=RENEWAL, state=RolloverState.OLD_RETIRED.value, made=made)
        self._record(tx, made, actor)

    def _record(self, tx: Tx, made: dict[str, str], actor: Actor) -> None:
        """The new CA certificates in the store and the audit log, like those of `init`."""
        for name, pem in made.items():
            record_ca(tx, name, x509.load_pem_x509_certificate(pem.encode()), actor)

    async def _row(self, row_id: int) -> RolloverRow:
        return next(row for row in await self._rows() if row.id == row_id)

    async def _move(self, row: RolloverRow, state: RolloverState, actor: Actor) -> RolloverRow:
        now = self._clock.now()
        published = now if state is RolloverState.PUBLISHED else row.published_at
        rows = [
            replace(one, state=state.value, published_at=published) if one.id == row.id else one
            for one in await self._rows()
        ]
        check_authorities(await asyncio.to_thread(self._load, rows), now)

        def move(tx: Tx) -> None:
            rows_of.move(tx, row, state.value, published_at=published)
            fields = {"label": row.label, "was": row.state, "is": state.value}
            audit.append(tx, AuditEvent("ca-rollover-moved", actor, object=row.ca, fields=fields))

        await self._store.write(move)
        await self._become(await self._rows())
        return await self._row(row.id)

    def _load(self, rows: Sequence[RolloverRow]) -> Any:
        known = {one.label: one for one in self._ca.generations}
        return load_authorities(self._home, self._settings, self._passphrase, rows, known)

    async def _become(self, rows: Sequence[RolloverRow]) -> None:
        self._ca.adopt(await asyncio.to_thread(self._load, rows))
        await self._on_change()

    async def _waiting(self, row: RolloverRow) -> int:
        """How many holders of certificates speak against retiring the old CA now."""
        if row.ca == ROOT:
            since = row.published_at or row.started_at
            return await self._store.read(lambda tx: rows_of.proxies_before(tx, since))
        old = [one for one in self._ca.generations if one.role == row.ca and one.label != row.label]
        counts = [
            await self._store.read(lambda tx, one=one: rows_of.live_under(tx, one.role, one.key_identifier))  # type: ignore[misc]
            for one in old
        ]
        return sum(counts)


def _open(rows: Sequence[RolloverRow], name: str) -> RolloverRow | None:
    return next((row for row in rows if row.ca == name and RolloverState(row.state) in OPEN), None)


def _waiting_rows(rows: Sequence[RolloverRow]) -> list[RolloverRow]:
    """Prepared rollovers that the root has not signed yet."""
    return [row for row in rows if row.state == RolloverState.PREPARED.value and not row.made]


def _too_early(row: RolloverRow, waiting: int) -> str:
    if row.ca == ROOT:
        return f"{waiting} proxies have not renewed since the new root was published, and may not know it yet"
    return f"{waiting} holders of certificates in force have none of the new CA yet"
