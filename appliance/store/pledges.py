"""Records of pledges: where each bootstrap stands, keyed by (idevid-issuer, serial-number) (RFC 8995, section 5.3).

Devices whose certificate no known manufacturer vouches for have no record here: they stand in the list of who knocked
(knocks.py), so what an unverified certificate says never touches the record of a real device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from appliance.errors import Conflict, NotFound
from appliance.store.schema import pledges as table
from appliance.store.transaction import Tx

MAX_STEPS = 64

_INSERT = insert(table)
_BY_ID = select(table).where(table.c.id == bindparam("id"))
_BY_DEVICE = select(table).where(
    table.c.idevid_issuer == bindparam("idevid_issuer"), table.c.serial == bindparam("serial")
)
_BY_IDEVID = select(table).where(table.c.idevid_sha256 == bindparam("idevid_sha256")).order_by(table.c.updated_at)
_BY_SERIAL = select(table).where(table.c.serial == bindparam("serial")).order_by(table.c.updated_at)
_ALL = select(table).order_by(table.c.updated_at.desc()).limit(bindparam("limit"))
_SILENT = (
    select(table)
    .where(table.c.state == bindparam("state"), table.c.audit_verdict.is_(None))
    .where(table.c.updated_at < bindparam("before"))
    .order_by(table.c.updated_at)
    .limit(bindparam("limit"))
)
_UPDATE = (
    update(table)
    .where(table.c.id == bindparam("key"), table.c.state == bindparam("was"))
    .values(
        {
            name: bindparam(name)
            for name in (
                "idevid_sha256", "manufacturer_id", "state", "masa_url", "nonce", "pvr_sha256", "voucher_sha256",
                "voucher", "rvr", "assertion", "audit_verdict", "proxy_id", "timeline", "history", "history_override",
                "updated_at",
            )
        }
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened to a pledge.

    `at` is when it happened last, `times` how often in a row; `ms` is how long it took, `code` a reason or a status,
    `facts` what else is known of it.
    """

    step: str
    at: str
    ms: int | None = None
    code: str = ""
    times: int = 1
    facts: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PledgeRecord:
    """One row.

    `csr_attributes` is what the device was told when it asked for CSR attributes in this bootstrap, DER; None = it has
    not asked.

    `state` is a brski.states.RecordState value; `nonces` are those of every voucher ever asked for. `history` is the
    last judgement of the device's audit log, `history_override` what an administrator said to it; their members are
    those of appliance.registrar.history.
    """

    id: str
    idevid_issuer: str
    serial: str
    idevid_sha256: str
    manufacturer_id: str | None
    state: str
    created_at: datetime
    updated_at: datetime
    masa_url: str | None = None
    nonce: str | None = None
    pvr_sha256: str | None = None
    voucher_sha256: str | None = None
    voucher: bytes | None = field(default=None, repr=False)
    rvr: bytes | None = field(default=None, repr=False)
    assertion: str | None = None
    audit_verdict: str | None = None
    proxy_id: str | None = None
    history: Mapping[str, Any] | None = None
    history_override: Mapping[str, Any] | None = None
    steps: tuple[Step, ...] = ()
    nonces: tuple[str | None, ...] = ()
    csr_attributes: bytes | None = field(default=None, repr=False)


def add(tx: Tx, record: PledgeRecord) -> None:
    """Insert; raises Conflict when the device has a record."""
    values = _write(record)
    tx.execute(
        _INSERT,
        {
            **values,
            "id": record.id,
            "idevid_issuer": record.idevid_issuer,
            "serial": record.serial,
            "created_at": record.created_at,
        },
    )


def save(tx: Tx, record: PledgeRecord, *, was: str) -> None:
    """Write what may change, if the state is still `was`; raises Conflict otherwise."""
    if tx.execute(_UPDATE, {**_write(record), "key": record.id, "was": was}).rowcount != 1:
        raise Conflict("the pledge's record has changed meanwhile")


def get(tx: Tx, identifier: str) -> PledgeRecord | None:
    """The record with this id."""
    return _maybe(tx.one(_BY_ID, {"id": identifier}))


def require(tx: Tx, identifier: str) -> PledgeRecord:
    """The record with this id; raises NotFound."""
    record = get(tx, identifier)
    if record is None:
        raise NotFound("there is no such pledge", id=identifier)
    return record


def by_device(tx: Tx, idevid_issuer: str, serial: str) -> PledgeRecord | None:
    """The record of a device (T-35: the serial alone does not tell two devices apart)."""
    return _maybe(tx.one(_BY_DEVICE, {"idevid_issuer": idevid_issuer, "serial": serial}))


def by_idevid(tx: Tx, idevid_sha256: str) -> list[PledgeRecord]:
    """Records whose last IDevID certificate has this fingerprint."""
    return [_read(row) for row in tx.all(_BY_IDEVID, {"idevid_sha256": idevid_sha256})]


def by_serial(tx: Tx, serial: str) -> list[PledgeRecord]:
    """Records of devices with this serial, of any manufacturer."""
    return [_read(row) for row in tx.all(_BY_SERIAL, {"serial": serial})]


def every(tx: Tx, *, limit: int = 1000) -> list[PledgeRecord]:
    """Records, the one that changed last first."""
    return [_read(row) for row in tx.all(_ALL, {"limit": limit})]


def unjudged(tx: Tx, state: str, *, before: datetime, limit: int = 20) -> list[PledgeRecord]:
    """Records that have stood in `state` since `before` without an audit verdict, oldest first."""
    rows = tx.all(_SILENT, {"state": state, "before": before, "limit": limit})
    return [_read(row) for row in rows]


_PLAIN = tuple(one.name for one in fields(PledgeRecord) if one.name not in ("steps", "nonces", "csr_attributes"))


def _write(record: PledgeRecord) -> dict[str, Any]:
    timeline: dict[str, Any] = {
        "steps": [step_json(one) for one in record.steps[-MAX_STEPS:]],
        "nonces": list(record.nonces),
    }
    if record.csr_attributes is not None:
        timeline["csr_attributes"] = record.csr_attributes.hex()
    return {
        "idevid_sha256": record.idevid_sha256,
        "manufacturer_id": record.manufacturer_id,
        "state": record.state,
        "masa_url": record.masa_url,
        "nonce": record.nonce,
        "pvr_sha256": record.pvr_sha256,
        "voucher_sha256": record.voucher_sha256,
        "voucher": record.voucher,
        "rvr": record.rvr,
        "assertion": record.assertion,
        "audit_verdict": record.audit_verdict,
        "proxy_id": record.proxy_id,
        "timeline": timeline,
        "history": record.history,
        "history_override": record.history_override,
        "updated_at": record.updated_at,
    }


def step_json(step: Step) -> dict[str, Any]:
    """A step as it is kept and shown; members that say nothing are left out."""
    members: dict[str, Any] = {"step": step.step, "at": step.at}
    if step.ms is not None:
        members["ms"] = step.ms
    members["code"] = step.code
    if step.times > 1:
        members["times"] = step.times
    if step.facts:
        members["facts"] = dict(step.facts)
    return members


def _maybe(row: Any) -> PledgeRecord | None:
    return None if row is None else _read(row)


def _read(row: Any) -> PledgeRecord:
    timeline: Mapping[str, Any] = row.timeline or {}
    told = timeline.get("csr_attributes")
    return PledgeRecord(
        **{name: getattr(row, name) for name in _PLAIN},
        steps=tuple(
            Step(one["step"], one["at"], one.get("ms"), one.get("code", ""), one.get("times", 1), one.get("facts"))
            for one in timeline.get("steps", ())
        ),
        nonces=tuple(timeline.get("nonces", ())),
        csr_attributes=None if told is None else bytes.fromhex(told),
    )
