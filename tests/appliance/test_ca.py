"""Issuance in two transactions, revocation, and what the CA refuses to do."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import select

from appliance import audit
from appliance.ca import CertificateAuthority, PendingRow, Slot, read_weak_keys, revoke
from appliance.clock import SystemClock
from appliance.errors import (
    CaExpired,
    CaUnsuitable,
    CertificateUnknown,
    ClockWentBack,
    Conflict,
    IssuanceFailed,
    KeyMismatch,
    NotFound,
)
from appliance.hierarchy import ROLES, create_hierarchy, record_hierarchy
from appliance.settings import CaSettings, Settings, SettingsInvalid
from appliance.store import OutboxRow, Store, Tx, certificates, schema
from est import profiles
from est.chains import CLIENT, aki_of, check
from est.errors import KeyWeak
from est.profiles import Shape
from est.signer import KeySigner
from tests.appliance.authority import ACTOR, PASSPHRASE, authority, issue_ldevid, issuing, ldevid_shape
from tests.est.test_weak import DEBIAN, DEBIAN_LINE, roca
from tests.stores import open_store
from tests.support import NOW, FixedClock, key


def everything(store: Store) -> tuple[list, list]:
    rows = store.read_sync(lambda tx: tx.all(select(schema.certificates)))
    entries = [row.entry for row in store.read_sync(lambda tx: list(audit.rows(tx)))]
    store.read_sync(lambda tx: audit.verify(audit.rows(tx)))
    return rows, entries


def test_a_certificate_is_in_the_store_and_in_the_audit_log_before_it_is_answered(tmp_path: Path) -> None:
    with authority(tmp_path) as (ca, store):
        issued = asyncio.run(issue_ldevid(ca))
        rows, entries = everything(store)
    (row,) = rows
    assert (row.state, row.issuer_role, row.profile, row.proxy_id) == ("issued", "devices", "ldevid", "proxy")
    assert row.der == issued.der == issued.certificate.public_bytes(Encoding.DER)
    assert row.cert_sha256 == hashlib.sha256(issued.der).hexdigest()
    assert row.tbs_sha256 == hashlib.sha256(issued.certificate.tbs_certificate_bytes).hexdigest()
    assert int(row.serial, 16) == issued.serial == issued.certificate.serial_number
    assert bytes.fromhex(row.issuer_aki) == aki_of(issued.certificate)
    assert [entry["event"] for entry in entries] == ["certificate-pending", "ldevid-issued"]
    assert entries[0]["seq"] == issued.pending_seq == 1
    assert entries[0]["fields"]["tbs_sha256"] == row.tbs_sha256
    assert entries[1]["fields"]["cert_sha256"] == row.cert_sha256
    assert entries[1]["fields"]["pending"] == 1


def test_the_certificate_leads_to_its_issuing_ca_and_that_to_the_root(tmp_path: Path) -> None:
    with authority(tmp_path) as (ca, _):
        issued = asyncio.run(issue_ldevid(ca))
        assert check(issued.certificate, (), ca.anchors("devices"), at=NOW, policy=CLIENT)[-1] == issued.chain[0]
        assert issued.chain == ca.chain("devices") == (ca.issuing("devices").certificate, ca.root)
        assert ca.issuer_of(issued.certificate) == "devices"
        assert ca.issuer_of(ca.root) is None
        for role in ("agents", "infrastructure"):
            assert issued.chain[0] not in ca.anchors(role)


def test_serials_are_random_positive_and_at_most_16_octets(tmp_path: Path) -> None:
    async def run(ca: CertificateAuthority) -> list[int]:
        return [issued.serial for issued in await asyncio.gather(*(issue_ldevid(ca) for _ in range(40)))]

    with authority(tmp_path) as (ca, _):
        serials = asyncio.run(run(ca))
    assert len(set(serials)) == 40
    assert all(0 < serial < 1 << 127 for serial in serials)
    assert max(serials).bit_length() > 120


def test_the_log_index_in_the_slot_is_the_sequence_of_the_pending_entry(tmp_path: Path) -> None:
    seen: list[int] = []

    def shape(slot: Slot):
        seen.append(slot.log_index)
        return ldevid_shape(slot)

    async def run(ca: CertificateAuthority) -> list[int]:
        issued = await asyncio.gather(
            *(
                ca.issue("devices", shape, row={"profile": "ldevid"}, actor=ACTOR, event="ldevid-issued")
                for _ in range(20)
            )
        )
        return [one.pending_seq for one in issued]

    with authority(tmp_path) as (ca, store):
        assert sorted(asyncio.run(run(ca))) == sorted(seen)
        _, entries = everything(store)
    assert all(entries[seq - 1]["event"] == "certificate-pending" for seq in seen)


def test_a_refusal_in_the_pending_transaction_leaves_nothing(tmp_path: Path) -> None:
    def refuse(tx: Tx, row: PendingRow) -> None:
        tx.emit("spent", "nonce", {})
        raise NotFound("the nonce was spent")

    async def run(ca: CertificateAuthority) -> None:
        with pytest.raises(NotFound):
            await ca.issue(
                "devices",
                ldevid_shape,
                row={"profile": "ldevid"},
                actor=ACTOR,
                event="ldevid-issued",
                on_pending=refuse,
            )

    with authority(tmp_path) as (ca, store):
        asyncio.run(run(ca))
        assert everything(store) == ([], [])


def test_hooks_run_in_their_transactions(tmp_path: Path) -> None:
    seen: list[object] = []
    events: list[OutboxRow] = []

    async def run(ca: CertificateAuthority, store: Store) -> None:
        store.subscribe(events.extend)
        await ca.issue(
            "agents",
            ldevid_shape,
            row={"profile": "agent", "agent_id": "a", "owner_id": "o"},
            actor=ACTOR,
            event="dual-identity-issued",
            on_pending=lambda tx, row: seen.append((row.log_index, row.role)),
            on_issued=lambda tx, row: seen.append((row.log_index, row.certificate.serial_number == row.serial)),
            fields={"txn": "t"},
            request_id="r",
        )

    with authority(tmp_path) as (ca, store):
        asyncio.run(run(ca, store))
        _, entries = everything(store)
    assert seen == [(1, "agents"), (1, True)]
    assert [event.topic for event in events] == ["certificate"]
    assert events[0].body["state"] == "issued" and events[0].body["owner_id"] == "o"
    assert entries[1]["fields"]["txn"] == "t" and entries[1]["request_id"] == "r"


class BrokenSigner:
    """Signs with another key than it shows."""

    def public_key(self):
        return issuing()[1]["devices"].signer.public_key()

    def sign(self, data: bytes) -> bytes:
        return KeySigner(key("another")).sign(data)


def test_a_wrong_signature_never_leaves_and_its_row_stays_pending(tmp_path: Path) -> None:
    root, cas = issuing()
    with authority(tmp_path) as (_, store):
        broken = {**cas, "devices": replace(cas["devices"], signer=BrokenSigner())}
        ca = CertificateAuthority(root=root, issuing=broken, store=store, clock=FixedClock())
        with pytest.raises(IssuanceFailed):
            asyncio.run(issue_ldevid(ca))
        rows, entries = everything(store)
    assert [row.state for row in rows] == ["pending"]
    assert [entry["event"] for entry in entries] == ["certificate-pending"]


def test_a_certificate_never_outlives_its_ca(tmp_path: Path) -> None:
    async def run(ca: CertificateAuthority) -> None:
        with pytest.raises(CaExpired):
            await ca.issue(
                "devices",
                lambda slot: ldevid_shape(slot, lifetime=timedelta(days=2000)),
                row={"profile": "ldevid"},
                actor=ACTOR,
                event="ldevid-issued",
            )

    with authority(tmp_path) as (ca, store):
        asyncio.run(run(ca))
        assert everything(store) == ([], [])


def test_nothing_is_issued_while_the_clock_is_behind_the_log(tmp_path: Path) -> None:
    clock = FixedClock()
    with authority(tmp_path, clock) as (ca, store):
        asyncio.run(issue_ldevid(ca))
        clock.advance(-3600)
        with pytest.raises(ClockWentBack):
            asyncio.run(issue_ldevid(ca))
        clock.advance(3600)
        asyncio.run(issue_ldevid(ca))
        assert len(everything(store)[0]) == 2


def test_a_shape_for_another_slot_is_our_mistake(tmp_path: Path) -> None:
    async def run(ca: CertificateAuthority) -> None:
        for change in ({"serial": 5}, {"issuer": x509.Name([])}):
            with pytest.raises(ValueError, match="slot"):
                await ca.issue(
                    "devices",
                    lambda slot, change=change: replace(ldevid_shape(slot), **change),
                    row={"profile": "ldevid"},
                    actor=ACTOR,
                    event="ldevid-issued",
                )

    with authority(tmp_path) as (ca, _):
        asyncio.run(run(ca))


def test_revocation_is_audited_and_announced(tmp_path: Path) -> None:
    events: list[OutboxRow] = []

    async def run(ca: CertificateAuthority, store: Store) -> None:
        issued = await issue_ldevid(ca)
        store.subscribe(events.extend)
        row = await ca.revoke("devices", issued.serial, reason="keyCompromise", actor=ACTOR)
        assert (row.state, row.revocation_reason) == ("revoked", "keyCompromise")
        with pytest.raises(Conflict):
            await ca.revoke("devices", issued.serial, actor=ACTOR)
        with pytest.raises(CertificateUnknown):
            await ca.revoke("agents", issued.serial, actor=ACTOR)
        with pytest.raises(CertificateUnknown):
            await ca.revoke("nobody", issued.serial, actor=ACTOR)
        other = await issue_ldevid(ca, "other")
        await ca.revoke(ca.issuing("devices").key_identifier, other.serial, actor=ACTOR)

    with authority(tmp_path) as (ca, store):
        asyncio.run(run(ca, store))
        _, entries = everything(store)
    revoked = [event.body for event in events if event.body["state"] == "revoked"]
    assert [body["subject_id"] for body in revoked] == [
        "spiffe://campus.example/proxy/proxy",
        "spiffe://campus.example/proxy/other",
    ]
    assert [entry["event"] for entry in entries].count("credential-revoked") == 2


def test_a_row_left_pending_by_a_crash_can_be_revoked(tmp_path: Path) -> None:
    with authority(tmp_path) as (ca, store):
        aki = ca.issuing("agents").key_identifier
        later = NOW + timedelta(hours=8)
        row = certificates.Pending("agents", aki, 77, b"t" * 32, b"s" * 32, NOW, later, {"profile": "agent"})
        store.write_sync(lambda tx: certificates.add(tx, row))
        assert asyncio.run(ca.revoke("agents", 77, actor=ACTOR)).state == "revoked"


def test_an_unknown_revocation_reason_is_our_mistake(tmp_path: Path) -> None:
    with authority(tmp_path) as (_, store), pytest.raises(ValueError, match="CRL reason"):
        store.write_sync(lambda tx: revoke(tx, b"aki", 1, reason="because", actor=ACTOR))


@pytest.mark.req("A-10")
@pytest.mark.parametrize("role", ROLES)
def test_a_ca_without_the_right_constraints_does_not_start(tmp_path: Path, role: str) -> None:
    root, cas = issuing()
    with authority(tmp_path) as (ca, store):
        leaf = asyncio.run(issue_ldevid(ca)).certificate
        for certificate in (leaf, root):
            bad = {**cas, role: replace(cas[role], certificate=certificate)}  # type: ignore[index]
            with pytest.raises((CaUnsuitable, KeyMismatch)) as refused:
                CertificateAuthority(root=root, issuing=bad, store=store, clock=FixedClock())
            assert refused.type is CaUnsuitable
        with pytest.raises(CaUnsuitable):
            CertificateAuthority(root=cas[role].certificate, issuing=cas, store=store, clock=FixedClock())  # type: ignore[index]


def test_a_ca_with_the_key_of_another_does_not_start(tmp_path: Path) -> None:
    root, cas = issuing()
    swapped = {**cas, "agents": replace(cas["agents"], signer=cas["devices"].signer)}
    with authority(tmp_path) as (_, store), pytest.raises(KeyMismatch):
        CertificateAuthority(root=root, issuing=swapped, store=store, clock=FixedClock())


def test_an_expired_ca_does_not_start(tmp_path: Path) -> None:
    clock = FixedClock()
    with authority(tmp_path, clock) as (ca, _):
        clock.advance(1826 * 86400)
        with pytest.raises(CaExpired):
            ca.check()


ISSUER = """
import asyncio, sys
from pathlib import Path
from datetime import timedelta
from cryptography.hazmat.primitives.asymmetric import ec
from appliance.audit import Actor
from appliance.ca import CertificateAuthority
from appliance.clock import SystemClock
from appliance.settings import CaSettings, Settings, SettingsInvalid
from appliance.store import Store
from est import profiles

home = Path(sys.argv[1])
clock = SystemClock()
store = Store.open(f"sqlite:///{home / 'appliance.db'}", clock)
ca = CertificateAuthority.open(home, Settings(home=home), b"correct horse", store, clock)
public = ec.generate_private_key(ec.SECP256R1()).public_key()

def shape(slot):
    return profiles.ldevid(slot.terms(timedelta(days=9)), profiles.name("p"), public, identifier="spiffe://c.example/proxy/1")

async def one():
    while True:
        row = {"profile": "ldevid"}
        issued = await ca.issue("devices", shape, row=row, actor=Actor("proxy"), event="ldevid-issued")
        print(f"{issued.serial:x}", flush=True)

async def main():
    await asyncio.gather(*(one() for _ in range(8)))

asyncio.run(main())
"""


@pytest.mark.slow
def test_killed_at_every_point_every_answered_certificate_has_its_row_and_its_audit_entries(tmp_path: Path) -> None:
    clock = SystemClock()
    settings = Settings(home=tmp_path)
    hierarchy = create_hierarchy(tmp_path, settings, PASSPHRASE, clock.now(), key_cost=1024)
    url = f"sqlite:///{tmp_path / 'appliance.db'}"
    store = open_store(url, clock)
    store.write_sync(lambda tx: record_hierarchy(tx, hierarchy, ACTOR))
    store.close()
    answered: list[str] = []
    for point in ("issue-pending", "issue-signed", "issue-issued"):
        for pass_ in (1, 9):
            process = subprocess.run(
                [sys.executable, "-c", ISSUER, str(tmp_path)],
                env={**os.environ, "APPLIANCE_FAILPOINT": f"{point}:{pass_}"},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert process.returncode == -signal.SIGKILL, process.stderr
            answered += process.stdout.split()
    store = Store.open(url, clock)
    rows, entries = everything(store)
    store.close()
    issued = {row.serial for row in rows if row.state == "issued"}
    assert set(answered) <= issued
    audited = {entry["object"] for entry in entries if entry["event"] == "ldevid-issued"}
    pending = {entry["object"] for entry in entries if entry["event"] == "certificate-pending"}
    ours = [row for row in rows if row.profile == "ldevid"]
    assert {row.serial for row in ours} == pending
    assert {row.serial for row in ours if row.state == "issued"} == audited
    assert any(row.state == "pending" for row in ours)
    assert len({row.serial for row in rows}) == len(rows)


@pytest.mark.req("E-204")
def test_a_weak_key_is_never_certified_and_lists_of_them_are_read_at_the_start(tmp_path: Path) -> None:
    listed = x509.load_pem_x509_certificate(DEBIAN.read_bytes()).public_key()
    file = tmp_path / "blacklist.RSA-2048"
    file.write_text(f"# from Debian\n{DEBIAN_LINE}\n")
    root, cas = issuing()
    weak_keys = read_weak_keys(Settings(ca=CaSettings(weak_keys=(file,))))
    store = open_store(f"sqlite:///{tmp_path / 'appliance.db'}", FixedClock())
    ca = CertificateAuthority(root=root, issuing=cas, store=store, clock=FixedClock(), weak_keys=weak_keys)
    try:
        for public, weakness in ((listed, "listed"), (roca().public_key(), "roca")):

            def shape(slot: Slot, public: object = public) -> Shape:
                return profiles.ldevid(
                    slot.terms(timedelta(days=9)), profiles.name("proxy"), public, identifier="spiffe://x/proxy/1"
                )

            with pytest.raises(KeyWeak) as caught:
                asyncio.run(ca.issue("devices", shape, row={"profile": "ldevid"}, actor=ACTOR, event="ldevid-issued"))
            assert caught.value.fields["weakness"] == weakness
        assert not store.read_sync(lambda tx: certificates.page(tx))
    finally:
        store.close()
    file.write_text("no list\n")
    with pytest.raises(SettingsInvalid, match="line 1"):
        read_weak_keys(Settings(ca=CaSettings(weak_keys=(file,))))
