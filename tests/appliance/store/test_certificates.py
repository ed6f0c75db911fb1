"""Certificate rows and CRL rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.errors import CertificateUnknown, Conflict
from appliance.store import Store, Tx, certificates, crls
from tests.stores import open_store
from tests.support import NOW, FixedClock

AKI = b"\xaa" * 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path / 'a.db'}", FixedClock())
    yield opened
    opened.close()


def pending(serial: int, **columns: str) -> certificates.Pending:
    row = {"profile": "agent", **columns}
    return certificates.Pending("agents", AKI, serial, b"t" * 32, b"s" * 32, NOW, NOW + timedelta(hours=8), row)


def add(store: Store, serial: int, *, issue: bool = True, **columns: str) -> int:
    def write(tx: Tx) -> int:
        row_id = certificates.add(tx, pending(serial, **columns))
        if issue:
            certificates.issue(tx, row_id, b"der", b"c" * 32)
        return row_id

    return store.write_sync(write)


def test_a_serial_is_used_once_under_an_issuer(store: Store) -> None:
    add(store, 255)
    with pytest.raises(Conflict):
        add(store, 255)


def test_serials_are_hex_without_leading_zeros(store: Store) -> None:
    add(store, 0x0F)
    row = store.read_sync(lambda tx: certificates.by_serial(tx, AKI, 15))
    assert row is not None and row.serial == "f" and row.issuer_aki == AKI.hex()
    assert store.read_sync(lambda tx: certificates.by_role_and_serial(tx, "agents", 15)) == row


@pytest.mark.parametrize("issue", [True, False], ids=["issued", "left pending by a crash"])
def test_pending_and_issued_certificates_can_be_revoked_once(store: Store, issue: bool) -> None:
    add(store, 1, issue=issue)
    row = store.write_sync(lambda tx: certificates.revoke(tx, AKI, 1, "keyCompromise"))
    assert (row.state, row.revoked_at, row.revocation_reason) == ("revoked", NOW, "keyCompromise")
    with pytest.raises(Conflict):
        store.write_sync(lambda tx: certificates.revoke(tx, AKI, 1, "keyCompromise"))
    with pytest.raises(CertificateUnknown):
        store.write_sync(lambda tx: certificates.revoke(tx, AKI, 2, "keyCompromise"))


def test_a_certificate_revoked_while_it_was_signed_is_not_issued(store: Store) -> None:
    row_id = add(store, 1, issue=False)
    store.write_sync(lambda tx: certificates.revoke(tx, AKI, 1, "unspecified"))
    with pytest.raises(Conflict):
        store.write_sync(lambda tx: certificates.issue(tx, row_id, b"der", b"c" * 32))


def test_revoked_certificates_are_listed_until_they_expire(store: Store) -> None:
    add(store, 1)
    add(store, 2)
    store.write_sync(lambda tx: certificates.revoke(tx, AKI, 2, "superseded"))
    assert [row.serial for row in store.read_sync(lambda tx: crls.entries(tx, "agents", AKI, NOW, count=100))] == ["2"]
    later = NOW + timedelta(hours=8)
    assert store.read_sync(lambda tx: crls.entries(tx, "agents", AKI, later, count=100)) == []
    assert store.read_sync(lambda tx: crls.entries(tx, "agents", b"another", NOW, count=100)) == []


def test_the_entries_of_a_list_are_read_from_an_index_alone(store: Store) -> None:
    """A million revoked rows are spread over a gigabyte of certificates."""
    sql, values = crls.entries_query("agents", NOW)
    with closing(sqlite3.connect(store.path)) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", {**values, "aki": AKI})]
    assert plan == ["SEARCH certificates USING COVERING INDEX certificates_revoked (issuer_role=? AND revoked_at>?)"]


def test_live_certificates_of_an_owner_leave_out_revoked_and_expired_ones(store: Store) -> None:
    add(store, 1, owner_id="alice")
    add(store, 2, owner_id="alice")
    add(store, 3, owner_id="bob")
    store.write_sync(lambda tx: certificates.revoke(tx, AKI, 2, "unspecified"))

    def live(at: object) -> list[str]:
        return [row.serial for row in store.read_sync(lambda tx: certificates.live(tx, "owner_id", "alice", at))]  # type: ignore[arg-type]

    assert live(NOW) == ["1"]
    assert live(NOW + timedelta(days=1)) == []
    assert len(store.read_sync(lambda tx: certificates.of(tx, "owner_id", "alice"))) == 2


def test_pages_go_on_where_the_last_one_ended(store: Store) -> None:
    for serial in range(1, 6):
        add(store, serial)
    first = store.read_sync(lambda tx: certificates.page(tx, count=3))
    rest = store.read_sync(lambda tx: certificates.unexpired(tx, NOW, after=first[-1].id))
    assert [row.serial for row in (*first, *rest)] == ["1", "2", "3", "4", "5"]


def test_a_crl_number_never_goes_back(store: Store) -> None:
    def put(number: int) -> None:
        later = NOW + timedelta(days=1)
        store.write_sync(lambda tx: crls.put(tx, "agents", crls.Crl(number, NOW, later, 0, 0, b"x")))

    put(5)
    put(6)
    for number in (6, 5):
        with pytest.raises(Conflict):
            put(number)
    assert store.read_sync(lambda tx: crls.get(tx, "agents")).number == 6
    assert store.read_sync(lambda tx: crls.get(tx, "devices")) is None
