"""Certificate rows: written `pending` before the signature exists, `issued` after, `revoked` for ever.

A row that stayed pending after a crash may belong to a certificate that somebody holds; it can be revoked like any
other, and is on the CRL then.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, insert, select, update

from appliance.errors import CertificateUnknown, Conflict
from appliance.store import schema
from appliance.store.columns import from_micros, to_micros
from appliance.store.statements import Plain, Row, plain
from appliance.store.transaction import Tx

_t = schema.certificates
_c = _t.c
PENDING, ISSUED, REVOKED = "pending", "issued", "revoked"

_CALLERS = ("profile", "subject_id", "agent_id", "owner_id", "proxy_id", "pledge_id", "csr_sha256", "txn", "model",
            "tier")  # fmt: skip
_KNOWN = frozenset(_CALLERS)
_ADD = plain(
    insert(_t), "issuer_role", "issuer_aki", "serial", "profile", "subject_id", "agent_id", "owner_id", "proxy_id",
    "pledge_id", "state", "tbs_sha256", "spki_sha256", "csr_sha256", "not_before", "not_after", "txn", "model",
    "created_at", "tier",
)  # fmt: skip
_ISSUE = plain(
    update(_t)
    .where(_c.id == bindparam("row_id"), _c.state == bindparam("was"))
    .values(state=bindparam("is"), cert_sha256=bindparam("new_sha256"), der=bindparam("new_der")),
    "is", "new_sha256", "new_der", "row_id", "was",
)  # fmt: skip
_REVOKE = (
    update(_t)
    .where(_c.issuer_aki == bindparam("aki"), _c.serial == bindparam("number"), _c.state != REVOKED)
    .values(state=REVOKED, revoked_at=bindparam("at"), revocation_reason=bindparam("why"))
)
_BY_SERIAL = select(_t).where(_c.issuer_aki == bindparam("aki"), _c.serial == bindparam("number"))
_STANDING = plain(
    select(_c.state, _c.revoked_at, _c.revocation_reason).where(
        _c.serial == bindparam("number"), _c.issuer_aki == bindparam("aki")
    ),
    "number", "aki",
)  # fmt: skip
_BY_NUMBER = select(_t).where(_c.serial == bindparam("number")).order_by(_c.id)
_DER = select(_c.der).where(_c.id == bindparam("row_id"))
_BY_ROLE_SERIAL = select(_t).where(_c.issuer_role == bindparam("role"), _c.serial == bindparam("number"))
_LIVE = {
    column: select(_t)
    .where(_c[column] == bindparam("value"), _c.state != REVOKED, _c.not_after > bindparam("at"))
    .order_by(_c.id)
    for column in ("agent_id", "owner_id", "proxy_id", "pledge_id", "subject_id")
}
_ALL = {
    column: select(_t).where(_c[column] == bindparam("value")).order_by(_c.id)
    for column in ("agent_id", "owner_id", "proxy_id", "pledge_id", "subject_id", "spki_sha256", "csr_sha256")
}
_SOME_OF_PROXY = Plain(
    "SELECT 1 FROM certificates WHERE proxy_id = ? AND profile = ? AND state != ? AND not_after > ? LIMIT ?"
)
_PAGE = select(_t).where(_c.id > bindparam("after")).order_by(_c.id).limit(bindparam("count"))
_UNEXPIRED = (
    select(_t)
    .where(_c.id > bindparam("after"), _c.not_after > bindparam("at"))
    .order_by(_c.id)
    .limit(bindparam("count"))
)


class Pending(NamedTuple):
    """A certificate about to be signed; `columns` are the caller's own (profile, agent_id, owner_id, ...)."""

    issuer_role: str
    issuer_aki: bytes
    serial: int
    tbs_sha256: bytes
    spki_sha256: bytes
    not_before: datetime
    not_after: datetime
    columns: Mapping[str, Any]


class Standing(NamedTuple):
    """How one certificate stands."""

    state: str
    revoked_at: datetime | None
    revocation_reason: str | None


def serial_text(serial: int) -> str:
    """A serial number as rows show it: lower-case hex without leading zeros."""
    return format(serial, "x")


def serial_octets(serial: int) -> bytes:
    """A serial number as the column keeps it: for plain statements."""
    return serial.to_bytes((serial.bit_length() + 7) // 8, "big")


def add(tx: Tx, row: Pending) -> int:
    """Insert a pending row and return its id; Conflict if the serial was used before under this issuer."""
    columns = row.columns
    if not _KNOWN.issuperset(columns):
        raise TypeError(f"callers give {_CALLERS}, not {tuple(columns)}")
    get = columns.get
    asked = get("csr_sha256")
    return tx.insert(
        _ADD,
        (
            row.issuer_role,
            row.issuer_aki,
            serial_octets(row.serial),
            columns["profile"],
            get("subject_id"),
            get("agent_id"),
            get("owner_id"),
            get("proxy_id"),
            get("pledge_id"),
            PENDING,
            row.tbs_sha256,
            row.spki_sha256,
            None if asked is None else bytes.fromhex(asked),
            to_micros(row.not_before),
            to_micros(row.not_after),
            get("txn"),
            get("model"),
            tx.micros,
            get("tier"),
        ),
    )


def issue(tx: Tx, row_id: int, der: bytes, sha256: bytes) -> None:
    """Make a pending row issued; Conflict if it is not pending any more (it was revoked meanwhile)."""
    if tx.change(_ISSUE, (ISSUED, sha256, der, row_id, PENDING)) != 1:
        raise Conflict("the certificate was revoked before it was signed")


def by_serial(tx: Tx, issuer_aki: bytes | str, serial: int) -> Row | None:
    """The row of one certificate by its issuer's key identifier and its serial number, or None."""
    return tx.one(_BY_SERIAL, {"aki": issuer_aki, "number": serial_text(serial)})


def by_number(tx: Tx, serial: str) -> list[Row]:
    """Every certificate with this serial number as rows show it, whoever issued it."""
    return tx.all(_BY_NUMBER, {"number": serial})


def der(tx: Tx, row_id: int) -> bytes | None:
    """The certificate of a row, or None while it is pending."""
    found: bytes | None = tx.scalar(_DER, {"row_id": row_id})
    return found


def standing(tx: Tx, issuer_aki: bytes, serial: int) -> Standing | None:
    """How one certificate stands, None for any other number; what OCSP asks a thousand times a second."""
    row = tx.row(_STANDING, (serial_octets(serial), issuer_aki)) if serial > 0 else None
    if row is None:
        return None
    state, revoked_at, reason = row
    return Standing(state, None if revoked_at is None else from_micros(revoked_at), reason)


def by_role_and_serial(tx: Tx, role: str, serial: int) -> Row | None:
    """The row of one certificate by its issuer's role and its serial number, or None."""
    return tx.one(_BY_ROLE_SERIAL, {"role": role, "number": serial_text(serial)})


def revoke(tx: Tx, issuer_aki: bytes | str, serial: int, reason: str) -> Row:
    """Revoke a pending or issued certificate and return its row; CertificateUnknown, or Conflict if it was already."""
    changed = tx.execute(
        _REVOKE, {"aki": issuer_aki, "number": serial_text(serial), "at": tx.now, "why": reason}
    ).rowcount
    row = by_serial(tx, issuer_aki, serial)
    if row is None:
        raise CertificateUnknown("no certificate with this issuer and serial was issued here")
    if not changed:
        raise Conflict("the certificate is revoked already")
    return row


def live(tx: Tx, column: str, value: str, at: datetime) -> list[Row]:
    """Pending and issued, unexpired certificates of an agent_id, owner_id, proxy_id, pledge_id or subject_id."""
    return tx.all(_LIVE[column], {"value": value, "at": at})


def of(tx: Tx, column: str, value: str | bytes) -> list[Row]:
    """Every certificate by one of the columns of live(), or by spki_sha256 or csr_sha256, oldest first."""
    return tx.all(_ALL[column], {"value": value})


def is_key_of_another(tx: Tx, spki_sha256: bytes, subject_id: str) -> bool:
    """Whether a certificate was ever begun for this key and another subject (E-204)."""
    return any(row.subject_id != subject_id for row in of(tx, "spki_sha256", spki_sha256.hex()))


def count_live_of_proxy(tx: Tx, proxy_id: str, profile: str, *, limit: int) -> int:
    """How many unexpired, unrevoked certificates of this profile a proxy has, counted up to `limit`."""
    return len(tx.rows(_SOME_OF_PROXY, (proxy_id, profile, REVOKED, to_micros(tx.now), limit)))


def page(tx: Tx, *, after: int = 0, count: int = 1000) -> list[Row]:
    """Rows in order of issuance, by id."""
    return tx.all(_PAGE, {"after": after, "count": count})


def unexpired(tx: Tx, at: datetime, *, after: int = 0, count: int = 1000) -> list[Row]:
    """Rows that expire after `at`, by id; what a snapshot starts from."""
    return tx.all(_UNEXPIRED, {"at": at, "after": after, "count": count})
