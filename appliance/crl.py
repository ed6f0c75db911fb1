"""Revocation lists: one per issuing CA, rebuilt at half its life and after every revocation.

The number never goes back, not even after a restored backup: it is at least the time in seconds. The list is written
and signed in another thread, because a hundred thousand entries take a while.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from datetime import datetime, timedelta
from functools import partial

from appliance import audit
from appliance.audit import APPLIANCE, AuditEvent
from appliance.ca import TOPIC, CertificateAuthority
from appliance.clock import Clock
from appliance.errors import ApplianceError, NotFound
from appliance.hierarchy import ROLES, IssuingCa, Role
from appliance.store import OutboxRow, Row, Store, Tx, certificates, crls
from est.profiles import assemble
from est.revocation import Revoked, crl_to_be_signed

_log = logging.getLogger(__name__)
CRL_TOPIC = "crl"
_SETTLE_SECONDS = 0.2
_RETRY_SECONDS = 5.0
# A revoked certificate stays listed a little past its expiry, so that it was on one list at least (RFC 5280, 3.3).
_LINGER = timedelta(days=1)
# A transaction dates a revocation when it begins, so one may be committed after a list that bears a later time.
_OVERLAP = timedelta(minutes=1)


class CrlKeeper:
    """Builds CRLs and keeps them fresh; run() is the one task behind it."""

    def __init__(self, ca: CertificateAuthority, store: Store, clock: Clock, *, life_hours: float) -> None:
        self._ca = ca
        self._store = store
        self._clock = clock
        self._life = timedelta(hours=life_hours)
        self._due: set[Role] = set()
        self._wake = asyncio.Event()

    async def crl(self, role: str) -> bytes:
        """The current list of a role, DER; NotFound before the first one."""
        row = await self._store.read(lambda tx: crls.get(tx, role))
        if row is None:
            raise NotFound("there is no CRL of this name")
        der: bytes = row.der
        return der

    async def age_seconds(self, role: Role) -> float | None:
        """How long ago the current list was made; None if there is none."""
        row = await self._store.read(lambda tx: crls.get(tx, role))
        return None if row is None else float((self._clock.now() - row.this_update).total_seconds())

    async def build(self, role: Role) -> int:
        """Make, sign and store the list of one role; returns its number."""
        issuing = self._ca.issuing(role)
        now = self._clock.now()
        old, rows = await self._store.read(
            lambda tx: (crls.get(tx, role), certificates.revoked(tx, role, now - _LINGER))
        )
        number = max(int(now.timestamp()), old.number + 1 if old is not None else 0)
        der = await asyncio.to_thread(self._write, issuing, number, now, rows)
        digest = hashlib.sha256(der).hexdigest()

        def put(tx: Tx) -> None:
            crls.put(tx, role, number=number, this_update=now, next_update=now + self._life, der=der)
            fields = {"number": number, "entries": len(rows), "crl_sha256": digest}
            audit.append(tx, AuditEvent("crl-issued", APPLIANCE, object=role, fields=fields))
            tx.emit(CRL_TOPIC, role, {"number": number, "entries": len(rows)})

        await self._store.write(put, essential=True)
        return number

    async def build_all(self) -> None:
        """Make every list anew."""
        for role in ROLES:
            await self.build(role)

    async def build_missing(self) -> None:
        """Make the lists that do not exist, are past half their life, or lack a revocation.

        One may be lacking when a command revoked while nobody ran here, or when a kill came before the new list.
        """
        for role in ROLES:
            listed, last = await self._store.read(partial(_listed_and_last_revoked, role=role))
            age = float("inf") if listed is None else (self._clock.now() - listed).total_seconds()
            lacks = listed is not None and last is not None and last > listed - _OVERLAP
            if age < 0 or age > self._life.total_seconds() / 2 or lacks:
                await self.build(role)

    async def run(self) -> None:
        """Keep the lists fresh until cancelled; subscribes to the store itself."""
        self._store.subscribe(self._on_events)
        while True:
            try:
                due, self._due = self._due, set()
                self._wake.clear()
                for role in ROLES:
                    if role in due:
                        await self.build(role)
                await self.build_missing()
            except ApplianceError as error:  # disk full, store busy: the old list stands until then
                _log.error("event=crl-not-built reason=%s detail=%r", error.reason, error.detail)
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
                self._due.add(row.body["issuer_role"])
                self._wake.set()

    def _write(self, issuing: IssuingCa, number: int, now: datetime, rows: list[Row]) -> bytes:
        key = issuing.signer.public_key()
        tbs = crl_to_be_signed(
            issuing.certificate.subject,
            issuer_key=key,
            issuer_key_identifier=issuing.key_identifier,
            number=number,
            this_update=now,
            next_update=now + self._life,
            entries=(
                Revoked(int(row.serial, 16), row.revoked_at, row.revocation_reason or "unspecified") for row in rows
            ),
        )
        return assemble(tbs, issuing.signer.sign(tbs), key)


def _listed_and_last_revoked(tx: Tx, role: str) -> tuple[datetime | None, datetime | None]:
    row = crls.get(tx, role)
    return None if row is None else row.this_update, certificates.last_revoked(tx, role)
