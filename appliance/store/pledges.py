"""Records of pledges: where each bootstrap stands, keyed by (idevid-issuer, serial-number) (RFC 8995, section 5.3).

A stranger, whose certificate no known manufacturer vouches for, has a record of its own under its fingerprint: what an
unverified certificate says never touches the record of a real device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update

from appliance.errors import Conflict, NotFound
from appliance.store.schema import pledges as table
from appliance.store.transaction import Tx

STRANGER = "unverified:"
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
_STRANGERS = select(func.count()).select_from(table).where(table.c.manufacturer_id.is_(None))
_DROP_STRANGER = delete(table).where(table.c.idevid_issuer == bindparam("idevid_issuer"))
_UPDATE = (
    update(table)
    .where(table.c.id == bindparam("key"), table.c.state == bindparam("was"))
    .values(
        {
            name: bindparam(name)
            for name in (
                "idevid_sha256", "manufacturer_id", "state", "masa_url", "nonce", "pvr_sha256", "voucher_sha256",
                "voucher", "rvr", "assertion", "audit_verdict", "proxy_id", "timeline", "updated_at",
            )
        }
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened to a pledge: name, when, how long it took, and a code (a reason, a status)."""

    step: str
    at: str
    ms: int | None = None
    code: str = ""


@dataclass(frozen=True, slots=True)
class PledgeRecord:
    """One row. `state` is a brski.states.RecordState value; `nonces` are those of every voucher ever asked for."""

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
    steps: tuple[Step, ...] = ()
    nonces: tuple[str | None, ...] = ()

    @property
    def is_stranger(self) -> bool:
        """Whether no known manufacturer vouches for the certificate."""
        return self.idevid_issuer.startswith(STRANGER)


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


def stranger_key(idevid_sha256: str) -> str:
    """What stands for the issuer in the record of a stranger."""
    return STRANGER + idevid_sha256


def strangers(tx: Tx) -> int:
    """How many records of strangers there are."""
    return int(tx.scalar(_STRANGERS))


def drop_stranger(tx: Tx, idevid_sha256: str) -> None:
    """Forget a stranger, because its manufacturer is known now."""
    tx.execute(_DROP_STRANGER, {"idevid_issuer": stranger_key(idevid_sha256)})


_PLAIN = tuple(one.name for one in fields(PledgeRecord) if one.name not in ("steps", "nonces"))


def _write(record: PledgeRecord) -> dict[str, Any]:
    steps = [
        {"step": one.step, "at": one.at, **({} if one.ms is None else {"ms": one.ms}), "code": one.code}
        for one in record.steps[-MAX_STEPS:]
    ]
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
        "timeline": {"steps": steps, "nonces": list(record.nonces)},
        "updated_at": record.updated_at,
    }


def _maybe(row: Any) -> PledgeRecord | None:
    return None if row is None else _read(row)


def _read(row: Any) -> PledgeRecord:
    timeline: Mapping[str, Any] = row.timeline or {}
    return PledgeRecord(
        **{name: getattr(row, name) for name in _PLAIN},
        steps=tuple(
            Step(one["step"], one["at"], one.get("ms"), one.get("code", "")) for one in timeline.get("steps", ())
        ),
        nonces=tuple(timeline.get("nonces", ())),
    )
