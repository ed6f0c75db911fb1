"""CRLs: numbered upwards for ever, rebuilt after a revocation, accepted by OpenSSL."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from appliance.crl import CrlKeeper, CrlNotBuilt
from appliance.errors import NotFound
from appliance.hierarchy import certificate_file
from appliance.store import crls
from tests.appliance.authority import ACTOR, authority, home, issue_ldevid
from tests.support import NOW, FixedClock


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


def test_there_is_no_crl_before_the_first_one(tmp_path: Path) -> None:
    with authority(tmp_path) as (ca, store):
        keeper = CrlKeeper(ca, store, FixedClock(), life_hours=24)
        with pytest.raises(NotFound):
            asyncio.run(keeper.crl("devices"))
        assert asyncio.run(keeper.age_seconds("devices")) is None


def test_a_revocation_is_on_the_list_within_seconds(tmp_path: Path) -> None:
    clock = FixedClock()

    async def run(keeper: CrlKeeper, ca) -> x509.CertificateRevocationList:
        task = asyncio.create_task(keeper.run())
        issued = await issue_ldevid(ca)
        await until(lambda: has_list(keeper))
        await ca.revoke("devices", issued.serial, reason="keyCompromise", actor=ACTOR)

        async def listed() -> bool:
            return read(await keeper.crl("devices")).get_revoked_certificate_by_serial_number(issued.serial) is not None

        await until(listed)
        task.cancel()
        return read(await keeper.crl("devices"))

    async def has_list(keeper: CrlKeeper) -> bool:
        return await keeper.age_seconds("infrastructure") is not None

    def read(der: bytes) -> x509.CertificateRevocationList:
        return x509.load_der_x509_crl(der)

    with authority(tmp_path, clock) as (ca, store):
        crl = asyncio.run(run(CrlKeeper(ca, store, clock, life_hours=24), ca))
        assert crl.is_signature_valid(ca.issuing("devices").signer.public_key())
        (entry,) = crl
        assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason == x509.ReasonFlags.key_compromise
        assert crl.next_update_utc == NOW + timedelta(hours=24)


def test_numbers_grow_also_when_the_clock_stands_or_goes_back(tmp_path: Path) -> None:
    clock = FixedClock()

    async def run(keeper: CrlKeeper) -> list[int]:
        numbers = [await keeper.build("agents"), await keeper.build("agents")]
        clock.advance(-3600)
        numbers.append(await keeper.build("agents"))
        clock.advance(7200)
        numbers.append(await keeper.build("agents"))
        return numbers

    with authority(tmp_path, clock) as (ca, store):
        numbers = asyncio.run(run(CrlKeeper(ca, store, clock, life_hours=24)))
    assert numbers == sorted(set(numbers))


def test_after_a_restored_backup_numbers_still_go_on(tmp_path: Path) -> None:
    clock = FixedClock()
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    with authority(tmp_path / "new", clock) as (ca, store):
        keeper = CrlKeeper(ca, store, clock, life_hours=24)
        last = [asyncio.run(keeper.build("agents")) for _ in range(3)][-1]
    clock.advance(60)
    with authority(tmp_path / "old", clock) as (ca, store):  # a store that knows of no list
        assert asyncio.run(CrlKeeper(ca, store, clock, life_hours=24).build("agents")) > last


def test_lists_past_half_their_life_are_made_anew(tmp_path: Path) -> None:
    clock = FixedClock()
    with authority(tmp_path, clock) as (ca, store):
        keeper = CrlKeeper(ca, store, clock, life_hours=24)
        asyncio.run(keeper.build_missing())
        first = store.read_sync(lambda tx: crls.get(tx, "agents")).number
        clock.advance(11 * 3600)
        asyncio.run(keeper.build_missing())
        assert store.read_sync(lambda tx: crls.get(tx, "agents")).number == first
        clock.advance(2 * 3600)
        asyncio.run(keeper.build_missing())
        assert store.read_sync(lambda tx: crls.get(tx, "agents")).number > first


def test_a_long_list_is_written_by_another_process_and_says_the_same(tmp_path: Path) -> None:
    clock = FixedClock()
    reasons = ["keyCompromise", "unspecified", "superseded"]

    async def run(ca, store) -> tuple[bytes, bytes, list[int]]:
        serials = []
        for at in range(3):
            issued = await issue_ldevid(ca, f"proxy-{at}")
            await ca.revoke("devices", issued.serial, reason=reasons[at], actor=ACTOR)
            serials.append(issued.serial)
        apart = CrlKeeper(ca, store, clock, life_hours=24, short=2)
        here = CrlKeeper(ca, store, clock, life_hours=24)
        await apart.build("devices")
        first = await apart.crl("devices")
        await here.build("devices")
        return first, await here.crl("devices"), serials

    with authority(tmp_path, clock) as (ca, store):
        apart, here, serials = asyncio.run(run(ca, store))
        row = store.read_sync(lambda tx: crls.get(tx, "devices"))
    lists = [x509.load_der_x509_crl(der) for der in (apart, here)]
    assert all(one.is_signature_valid(ca.issuing("devices").signer.public_key()) for one in lists)
    assert [
        [(e.serial_number, e.revocation_date_utc, [x.value for x in e.extensions]) for e in one] for one in lists
    ] == [[(e.serial_number, e.revocation_date_utc, [x.value for x in e.extensions]) for e in lists[0]]] * 2
    assert sorted(e.serial_number for e in lists[0]) == sorted(serials)
    assert (row.entries, row.revoked) == (3, 3)
    assert [path.name for path in (tmp_path / "crl").iterdir()] == ["devices.crl"]


def test_a_process_that_fails_leaves_the_old_list_and_no_rubbish(tmp_path: Path, monkeypatch) -> None:
    clock = FixedClock()

    async def run(ca, store) -> None:
        keeper = CrlKeeper(ca, store, clock, life_hours=24, short=0)
        issued = await issue_ldevid(ca)
        await keeper.build("devices")
        before = await keeper.crl("devices")
        await ca.revoke("devices", issued.serial, actor=ACTOR)
        monkeypatch.setattr(crls, "_ENTRIES_TEXT", "SELECT nothing")
        with pytest.raises(CrlNotBuilt, match="syntax error"):
            await keeper.build("devices")
        assert await keeper.crl("devices") == before

    with authority(tmp_path, clock) as (ca, store):
        asyncio.run(run(ca, store))
    assert [path.name for path in (tmp_path / "crl").iterdir()] == ["devices.crl"]


def test_an_expired_certificate_is_on_one_more_list_and_then_gone(tmp_path: Path) -> None:
    """RFC 5280, section 3.3; also when the clock was ahead for a while."""
    clock = FixedClock()

    async def run(ca, store) -> list[int]:
        keeper = CrlKeeper(ca, store, clock, life_hours=24)
        issued = await issue_ldevid(ca)
        late = await issue_ldevid(ca, "late")
        await ca.revoke("devices", issued.serial, actor=ACTOR)

        async def count() -> int:
            clock.advance(60)
            await keeper.build("devices")
            return len(x509.load_der_x509_crl(await keeper.crl("devices")))

        counts = [await count()]
        clock.advance(89 * 86400)
        counts.append(await count())
        clock.advance(4000 * 86400)
        counts.append(await count())
        clock.advance(-4000 * 86400)  # it was wrong: the certificate is still good for a day
        counts.append(await count())
        clock.advance(2 * 86400)
        counts += [await count(), await count()]
        await ca.revoke("devices", late.serial, actor=ACTOR)  # long expired; it shows up once all the same
        counts += [await count(), await count()]
        return counts

    with authority(tmp_path, clock) as (ca, store):
        assert asyncio.run(run(ca, store)) == [1, 1, 1, 1, 1, 0, 1, 0]


def test_a_file_that_is_lost_or_not_the_one_recorded_is_made_anew(tmp_path: Path) -> None:
    clock = FixedClock()

    async def run(ca, store) -> None:
        await CrlKeeper(ca, store, clock, life_hours=24).build_all()
        file = tmp_path / "crl" / "agents.crl"
        for damage in (file.unlink, lambda: file.write_bytes(b"0" * 200)):
            number = store.read_sync(lambda tx: crls.get(tx, "agents")).number
            damage()
            fresh = CrlKeeper(ca, store, clock, life_hours=24)
            with pytest.raises(NotFound):
                await fresh.crl("agents")
            await fresh.build_missing()
            row = store.read_sync(lambda tx: crls.get(tx, "agents"))
            assert row.number > number
            assert hashlib.sha256(await fresh.crl("agents")).hexdigest() == row.sha256
            assert file.stat().st_mode & 0o777 == 0o600

    with authority(tmp_path, clock) as (ca, store):
        asyncio.run(run(ca, store))


@pytest.mark.interop
def test_openssl_accepts_the_list_and_sees_the_revocation(tmp_path: Path) -> None:
    clock = FixedClock()

    async def run(ca, keeper: CrlKeeper) -> tuple[bytes, bytes]:
        issued = await issue_ldevid(ca)
        await ca.revoke("devices", issued.serial, actor=ACTOR)
        await keeper.build("devices")
        return await keeper.crl("devices"), issued.der

    with authority(tmp_path, clock) as (ca, store):
        der, certificate = asyncio.run(run(ca, CrlKeeper(ca, store, clock, life_hours=24)))
    (tmp_path / "crl.der").write_bytes(der)
    (tmp_path / "leaf.pem").write_text(_pem(certificate))
    shown = subprocess.run(
        ["openssl", "crl", "-inform", "DER", "-in", tmp_path / "crl.der", "-noout", "-text", "-CAfile",
         certificate_file(home(), "devices")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "verify OK" in shown.stderr
    subprocess.run(
        ["openssl", "crl", "-inform", "DER", "-in", tmp_path / "crl.der", "-out", tmp_path / "crl.pem"], check=True
    )
    checked = subprocess.run(
        ["openssl", "verify", "-crl_check", "-attime", str(int(NOW.timestamp()) + 60), "-CAfile",
         certificate_file(home(), "root"), "-untrusted", certificate_file(home(), "devices"),
         "-CRLfile", tmp_path / "crl.pem", tmp_path / "leaf.pem"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "certificate revoked" in checked.stderr


def _pem(der: bytes) -> str:
    import ssl

    return ssl.DER_cert_to_PEM_cert(der)


def test_a_revocation_that_nobody_was_there_to_list_is_listed_at_the_next_start(tmp_path: Path) -> None:
    """A command revoked while no appliance ran, or a kill came between the revocation and its list."""
    clock = FixedClock()

    async def run(keeper: CrlKeeper, ca) -> tuple[int, int, int]:
        issued = await issue_ldevid(ca)
        await keeper.build_all()
        clock.advance(3600)
        before = entries(await keeper.crl("devices"))
        await ca.revoke("devices", issued.serial, actor=ACTOR)
        clock.advance(600)
        await keeper.build_missing()
        after = await keeper.crl("devices")
        clock.advance(600)
        await keeper.build_missing()
        assert await keeper.crl("devices") == after
        return before, entries(after), entries(await keeper.crl("agents"))

    def entries(der: bytes) -> int:
        return len(list(x509.load_der_x509_crl(der)))

    with authority(tmp_path, clock) as (ca, store):
        assert asyncio.run(run(CrlKeeper(ca, store, clock, life_hours=24), ca)) == (0, 1, 0)
