"""After a restored backup: what was published as revoked stays revoked, and numbers go on above it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as other

from appliance.ca import CertificateAuthority
from appliance.certificate_list import CertificateList
from appliance.clock import Clock
from appliance.crl import CrlKeeper
from appliance.crl_intake import CrlForeign, take_crl
from appliance.errors import RequestMalformed
from appliance.ocsp import OcspAnswer, OcspResponder
from appliance.store import Store, certificates, crls
from est.profiles import assemble
from est.revocation import Revoked, crl_to_be_signed
from est.signer import KeySigner
from tests.appliance.authority import ACTOR, authority, issue_ldevid, issuing
from tests.appliance.test_ocsp import request
from tests.support import NOW, FixedClock, key


def restored(folder: Path, clock: Clock) -> tuple[CertificateAuthority, Store]:
    """The CA over a store as a backup brought it back."""
    store = Store.open(f"sqlite:///{folder / 'appliance.db'}", clock)
    root, cas = issuing()
    return CertificateAuthority(root=root, issuing=cas, store=store, clock=clock), store


@pytest.mark.parametrize("form", ["DER", "PEM"])
def test_a_restored_home_revokes_again_what_the_last_list_names(tmp_path: Path, form: str) -> None:
    clock = FixedClock()
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()

    async def live(ca: CertificateAuthority, store: Store) -> tuple[bytes, list[int], int]:
        known = [(await issue_ldevid(ca, f"p{at}")).serial for at in range(3)]
        await ca.revoke("devices", known[0], actor=ACTOR)
        store.write_sync(lambda tx: None)
        shutil.copy(store.path, tmp_path / "after" / "appliance.db")
        with (store.path.parent / "appliance.db-wal").open("rb") as wal:
            (tmp_path / "after" / "appliance.db-wal").write_bytes(wal.read())
        later = (await issue_ldevid(ca, "later")).serial
        await ca.revoke("devices", known[1], reason="keyCompromise", actor=ACTOR)
        await ca.revoke("devices", later, reason="superseded", actor=ACTOR)
        clock.advance(5)
        keeper = CrlKeeper(ca, store, clock, life_hours=24)
        number = await keeper.build("devices")
        clock.advance(-3600)  # the restored machine's clock is behind, too
        return await keeper.crl("devices"), [*known, later], number

    async def again(ca: CertificateAuthority, store: Store, der: bytes, serials: list[int], number: int) -> None:
        data = der if form == "DER" else x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)
        told = await take_crl(data, ca=ca, store=store, actor=ACTOR)
        assert told == {"role": "devices", "number": number, "entries": 3, "revoked": 2, "unknown": 1}
        told = await take_crl(data, ca=ca, store=store, actor=ACTOR)
        assert (told["revoked"], told["unknown"]) == (0, 0)
        keeper, responder = CrlKeeper(ca, store, clock, life_hours=24), OcspResponder(ca, store, clock)
        await keeper.build_missing()
        made = x509.load_der_x509_crl(await keeper.crl("devices"))
        assert {one.serial_number for one in made} == {serials[0], serials[1], serials[3]}
        assert made.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number > number
        compromised = made.get_revoked_certificate_by_serial_number(serials[1])
        assert compromised is not None
        reason = compromised.extensions.get_extension_for_class(x509.CRLReason).value.reason
        assert reason is x509.ReasonFlags.key_compromise
        await responder.start()
        statuses = []
        for serial in serials:
            answer = responder.respond(request(ca, serial))
            assert isinstance(answer, OcspAnswer)
            statuses.append(other.load_der_ocsp_response(answer.der).certificate_status.name)
        assert statuses == ["REVOKED", "REVOKED", "GOOD", "REVOKED"]

    with authority(tmp_path / "before", clock) as (ca, store):
        taken = asyncio.run(live(ca, store))
    clock.advance(3600)  # the audit log of a store must not lie in the future
    ca, store = restored(tmp_path / "after", clock)
    try:
        asyncio.run(again(ca, store, *taken))
    finally:
        store.close()


def test_lists_of_others_and_what_is_no_list_are_refused(tmp_path: Path) -> None:
    def signed_by(name: str, identifier: bytes) -> bytes:
        signer = KeySigner(key(name))
        tbs = crl_to_be_signed(
            x509.Name([]), issuer_key=signer.public_key(), issuer_key_identifier=identifier, number=5,
            this_update=NOW, next_update=NOW.replace(year=2027), entries=[Revoked(1, NOW)],
        )  # fmt: skip
        return assemble(tbs, signer.sign(tbs), signer.public_key())

    with authority(tmp_path) as (ca, store):
        for data in (
            b"",
            b"hello",
            b"-----BEGIN X509 CRL-----\n",
            signed_by("thief", b"\x01" * 20),
            signed_by("thief", ca.issuing("devices").key_identifier),
        ):
            with pytest.raises(CrlForeign):
                asyncio.run(take_crl(data, ca=ca, store=store, actor=ACTOR))
        assert store.read_sync(lambda tx: certificates.page(tx)) == []
        assert store.read_sync(lambda tx: crls.get(tx, "devices")) is None
        listed = CertificateList(origin="spiffe://campus.example", ca=ca, store=store, clock=FixedClock())
        with pytest.raises(RequestMalformed):
            asyncio.run(listed.take_crl(tmp_path / "missing.crl", actor=ACTOR))
