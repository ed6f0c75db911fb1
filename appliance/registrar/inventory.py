"""What administrators do about devices: look, admit, refuse, revoke, hand out one-time secrets.

Answers are JSON values, the same for command line, console and API.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.clock import Clock
from appliance.errors import Conflict, NotFound, RequestMalformed
from appliance.registrar import records, timeline
from appliance.registrar.admission import ProxyIdentities, ldevids_of
from appliance.registrar.maker_options import read_options
from appliance.store import est_secrets, knocks, manufacturers, pledges, proxies
from appliance.store.est_secrets import SecretRow
from appliance.store.pledges import PledgeRecord
from appliance.store.proxies import ProxyRow
from appliance.store.store import Store
from appliance.store.transaction import Tx
from brski import audit_log
from brski.dialect import STRICT, Dialect, read_dialect
from brski.states import RecordEvent, RecordState

SECRET_BYTES = 24
MAX_NAME = 64

Json = Mapping[str, Any]


class Inventory:
    """Pledges, proxies and enrolment secrets, for administrators."""

    def __init__(self, *, store: Store, clock: Clock, identities: ProxyIdentities) -> None:
        self._store = store
        self._clock = clock
        self._identities = identities

    async def pledges(self) -> list[Json]:
        """Devices of known manufacturers that asked for a voucher, the latest first."""

        def read(tx: Tx) -> list[Json]:
            makers = {row.id: row.name for row in manufacturers.every(tx)}
            return [_summary(tx, record, makers) for record in pledges.every(tx)]

        return await self._store.read(read)

    async def pledge(self, key: str) -> Json:
        """One pledge by serial, fingerprint or id, with its timeline; raises NotFound, or Conflict if several match."""

        def read(tx: Tx) -> Json:
            makers = {row.id: row.name for row in manufacturers.every(tx)}
            return _pledge_json(tx, _find(tx, key), makers)

        return await self._store.read(read)

    async def admit(self, key: str, *, actor: Actor) -> Json:
        """An administrator's yes: to one that waits, or that an administrator refused. Its next message finds it in.

        Who was refused for its history needs `override`. Raises NotFound, Conflict.
        """
        return await self._decide(key, partial(self._admit, actor=actor))

    async def override(self, key: str, *, actor: Actor, reason: str) -> Json:
        """Let a device in with the findings that its history was refused for (RFC 8995, section 5.8.3).

        What is found later is judged as before. Raises NotFound, Conflict, RequestMalformed without a reason.
        """
        if not reason.strip():
            raise RequestMalformed("an override says why: give --reason")
        return await self._decide(key, partial(self._override, actor=actor, reason=reason))

    async def withdraw(self, key: str, *, actor: Actor, reason: str = "") -> Json:
        """Take an override back: the device is refused again, its proxy identity and certificates end.

        Raises NotFound, Conflict.
        """
        return await self._decide(key, partial(self._withdraw, actor=actor, reason=reason))

    async def refuse(self, key: str, *, actor: Actor, reason: str = "") -> Json:
        """An administrator's no, at any time; the device's proxy identity and certificates end with it."""
        return await self._decide(key, partial(self._refuse, actor=actor, reason=reason))

    async def proxies(self) -> list[Json]:
        """Identity proxies, newest first."""
        return await self._store.read(lambda tx: [_proxy_json(tx, row) for row in proxies.every(tx)])

    async def revoke_proxy(self, key: str, *, actor: Actor, reason: str = "") -> Json:
        """End a proxy by identifier, UUID or name, with its certificates and what other services hang on it.

        Raises NotFound, Conflict.
        """

        def write(tx: Tx) -> Json:
            row = _find_proxy(tx, key)
            count = self._identities.revoke(tx, row, actor, reason=reason)
            record = pledges.get(tx, row.pledge_id) if row.pledge_id else None
            if record is not None and records.state_of(record) is not RecordState.REFUSED:
                refused = records.moved(record, RecordEvent.REFUSED, now=tx.now, code="proxy-revoked", voucher=None)
                pledges.save(tx, refused, was=record.state)
            return {"identifier": row.identifier, "state": proxies.REVOKED, "certificates": count}

        return await self._store.write(write, essential=True)

    async def suspend_proxy(self, key: str, *, actor: Actor, reason: str = "") -> Json:
        """Take no requests and renewals from a proxy until it is resumed; its agents' credentials stay.

        Raises NotFound, Conflict.
        """
        return await self._move_proxy(key, proxies.ACTIVE, proxies.SUSPENDED, "proxy-suspended", actor, reason)

    async def resume_proxy(self, key: str, *, actor: Actor) -> Json:
        """End a suspension; raises NotFound, Conflict."""
        return await self._move_proxy(key, proxies.SUSPENDED, proxies.ACTIVE, "proxy-resumed", actor, "")

    async def _move_proxy(self, key: str, was: str, state: str, event: str, actor: Actor, reason: str) -> Json:
        def write(tx: Tx) -> Json:
            row = _find_proxy(tx, key)
            if row.state != was:
                raise Conflict(f"the proxy is {row.state}")
            proxies.move(tx, row, state)
            audit.append(tx, AuditEvent(event, actor, row.identifier, reason=reason))
            return {"identifier": row.identifier, "state": state}

        return await self._store.write(write, essential=True)

    async def new_est_secret(
        self, name: str, *, actor: Actor, label: str = "", life: timedelta = timedelta(hours=24)
    ) -> Json:
        """A one-time enrolment secret for plain EST; the answer is the only place where it ever stands.

        It is good under its EST label only. An unspent one of the same name is void from now on. Raises
        RequestMalformed.
        """
        if not name or len(name) > MAX_NAME or ":" in name or not name.isprintable():
            raise RequestMalformed(f"a name has 1 to {MAX_NAME} printable characters and no colon")
        if life <= timedelta(0):
            raise RequestMalformed("a secret lives longer than nothing")
        offered = secrets.token_urlsafe(SECRET_BYTES)
        now = self._clock.now()
        row = SecretRow(
            id=str(uuid.uuid4()),
            name=name,
            secret_sha256=hashlib.sha256(offered.encode()).hexdigest(),
            label=label,
            expires_at=now + life,
            spent_at=None,
            created_at=now,
        )
        event = AuditEvent(
            "est-secret-added", actor, object=name, fields={"expires_at": row.expires_at.isoformat(), "label": label}
        )

        def write(tx: Tx) -> None:
            est_secrets.put(tx, row)
            audit.append(tx, event)

        await self._store.write(write)
        return {
            "name": name,
            "label": label,
            "secret": offered,
            "credentials": f"{name}:{offered}",
            "expires_at": row.expires_at.isoformat(timespec="seconds"),
        }

    async def _decide(self, key: str, change: Any) -> Json:
        def write(tx: Tx) -> Json:
            record = _find(tx, key)
            changed: PledgeRecord = change(tx, record)
            pledges.save(tx, changed, was=record.state)
            knocks.remove(tx, record.idevid_sha256)
            makers = {row.id: row.name for row in manufacturers.every(tx)}
            return _pledge_json(tx, changed, makers)

        return await self._store.write(write, essential=True)

    def _admit(self, tx: Tx, record: PledgeRecord, *, actor: Actor) -> PledgeRecord:
        state = records.state_of(record)
        if state is RecordState.REFUSED:
            if _is_refused_for_history(record):
                raise Conflict(
                    f"it was refused for its history ({record.audit_verdict}); to let it in with that: "
                    f"appliance pledges override {record.serial} --reason TEXT"
                )
            admitted = _again(record, tx)
        elif state is RecordState.WAITING_FOR_ADMISSION:
            admitted = records.moved(record, RecordEvent.ADMITTED, now=tx.now, code=actor.identifier)
        else:
            raise Conflict(f"the pledge does not wait: {state.value}")
        admitted = self._identities.ensure(tx, admitted)
        _audit(tx, "pledge-admitted", record, actor, {"proxy": admitted.proxy_id})
        return admitted

    def _override(self, tx: Tx, record: PledgeRecord, *, actor: Actor, reason: str) -> PledgeRecord:
        if not _is_refused_for_history(record):
            raise Conflict(f"its history is not what keeps it out: {record.audit_verdict or record.state}")
        findings = (record.history or {}).get("findings", ())
        before = (record.history_override or {}).get("keys", ())
        keys = sorted({*before, *(one["key"] for one in findings if one["refuses"])}) or [audit_log.EVERYTHING]
        said = {"by": actor.identifier, "at": tx.now.isoformat(timespec="seconds"), "reason": reason, "keys": keys}
        let_in = self._identities.ensure(tx, _again(record, tx, code="history-overridden", history_override=said))
        _audit(tx, "history-overridden", record, actor, {"proxy": let_in.proxy_id, "keys": keys}, reason=reason)
        return let_in

    def _withdraw(self, tx: Tx, record: PledgeRecord, *, actor: Actor, reason: str) -> PledgeRecord:
        if record.history_override is None:
            raise Conflict("there is no override to withdraw")
        keys = list(record.history_override.get("keys", ()))
        verdict = "refused: override withdrawn"
        changes: dict[str, Any] = {"history_override": None, "audit_verdict": verdict, "voucher": None}
        if records.state_of(record) is RecordState.REFUSED:
            ended = replace(records.noted(record, "override-withdrawn", now=tx.now), **changes)
        else:
            ended = records.moved(record, RecordEvent.REFUSED, now=tx.now, code="override-withdrawn", **changes)
        history = {**(record.history or {}), "findings": _refusing(record.history, keys)}
        _audit(tx, "history-override-withdrawn", record, actor, {"keys": keys}, reason=reason)
        self._end_proxy(tx, record, actor, "history-override-withdrawn")
        return replace(ended, history=history, updated_at=tx.now)

    def _refuse(self, tx: Tx, record: PledgeRecord, *, actor: Actor, reason: str) -> PledgeRecord:
        if records.state_of(record) is RecordState.REFUSED:
            raise Conflict("the pledge is refused already")
        verdict = None if (record.audit_verdict or "").startswith("refused") else record.audit_verdict
        refused = records.moved(
            record, RecordEvent.REFUSED, now=tx.now, code=reason[:64], voucher=None, audit_verdict=verdict
        )
        _audit(tx, "pledge-refused", record, actor, {}, reason=reason)
        self._end_proxy(tx, record, actor, "pledge-refused")
        return replace(refused, updated_at=tx.now)

    def _end_proxy(self, tx: Tx, record: PledgeRecord, actor: Actor, reason: str) -> None:
        proxy = proxies.get(tx, record.proxy_id) if record.proxy_id else None
        if proxy is not None and not proxy.is_revoked:
            self._identities.revoke(tx, proxy, actor, reason=reason)


def _again(record: PledgeRecord, tx: Tx, *, code: str = "", **changes: Any) -> PledgeRecord:
    """A refused record at its beginning: the next request, also the same one, is a new transaction."""
    return records.moved(
        record,
        RecordEvent.FORGIVEN,
        now=tx.now,
        code=code,
        pvr_sha256=None,
        voucher=None,
        audit_verdict=None,
        **changes,
    )


def _is_refused_for_history(record: PledgeRecord) -> bool:
    is_out = records.state_of(record) is RecordState.REFUSED
    return is_out and (record.audit_verdict or "").startswith("refused")


def _refusing(history: Json | None, keys: list[str]) -> list[Json]:
    """The findings as they count without the override."""
    every = audit_log.EVERYTHING in keys
    found = (history or {}).get("findings", ())
    return [{**one, "refuses": one["refuses"] or every or one["key"] in keys} for one in found]


def _audit(tx: Tx, event: str, record: PledgeRecord, actor: Actor, fields: Json, *, reason: str = "") -> None:
    facts = {"issuer": record.idevid_issuer, "fingerprint": record.idevid_sha256, **fields}
    audit.append(tx, AuditEvent(event, actor, object=record.serial, reason=reason, fields=facts))


def _find(tx: Tx, key: str) -> PledgeRecord:
    direct = pledges.get(tx, key)
    found = [direct] if direct is not None else (pledges.by_serial(tx, key) or pledges.by_idevid(tx, key.lower()))
    if not found:
        if any(key.lower() == one.fingerprint or key == one.serial for one in knocks.every(tx)):
            raise NotFound(
                f"no known manufacturer vouches for {key}; see what to do in appliance pledges knocking", key=key
            )
        raise NotFound(f"no pledge {key} has knocked; to expect it: appliance pledges import FILE", key=key)
    if len(found) > 1:
        raise Conflict("several devices have this serial; name one by its fingerprint", key=key)
    return found[0]


def _find_proxy(tx: Tx, key: str) -> ProxyRow:
    row = proxies.by_identifier(tx, key) or proxies.get(tx, key)
    if row is not None:
        return row
    named = [one for one in proxies.every(tx) if one.name == key and not one.is_revoked]
    if not named:
        raise NotFound(f"there is no identity proxy {key}", key=key)
    if len(named) > 1:
        raise Conflict("several proxies have this name; give the identifier", key=key)
    return named[0]


def _summary(tx: Tx, record: PledgeRecord, makers: Mapping[str, str]) -> Json:
    proxy = proxies.get(tx, record.proxy_id) if record.proxy_id else None
    maker = makers.get(record.manufacturer_id or "", "")
    return {
        **records.as_json(record),
        "manufacturer": maker,
        "proxy": proxy.identifier if proxy is not None else "",
        "what_to_do": timeline.what_to_do(record, maker, tx.now),
    }


def _pledge_json(tx: Tx, record: PledgeRecord, makers: Mapping[str, str]) -> Json:
    maker = makers.get(record.manufacturer_id or "", "")
    return {
        **_summary(tx, record, makers),
        "history": record.history or {},
        "artefacts": timeline.artefacts(record, _dialect_of(tx, record)),
        "timeline": timeline.steps(record, maker),
    }


def _dialect_of(tx: Tx, record: PledgeRecord) -> Dialect:
    """What its artefacts are read with; that of a manufacturer removed since is not known any more."""
    rows = [row for row in manufacturers.every(tx) if row.id == record.manufacturer_id]
    return read_dialect(read_options(rows[0].options).dialect) if rows else STRICT


def _proxy_json(tx: Tx, row: ProxyRow) -> Json:
    live = ldevids_of(tx, row.id)
    return {
        "identifier": row.identifier,
        "id": row.id,
        "name": row.name,
        "method": row.method,
        "state": row.state,
        "serial": live[-1].serial if live else "",
        "not_after": live[-1].not_after.isoformat(timespec="seconds") if live else "",
        "pledge_id": row.pledge_id or "",
        "created_at": row.created_at.isoformat(timespec="seconds"),
    }
