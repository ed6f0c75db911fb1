"""Keys in a PKCS#11 token (SoftHSM): CA, CRL, OCSP and voucher-requests are signed, and no key ever comes out."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as other

from appliance.authorities import load_authorities
from appliance.ca import CertificateAuthority
from appliance.clock import SystemClock
from appliance.compose import create_appliance
from appliance.crl import CrlKeeper
from appliance.errors import KeyFileExists, KeyFileExposed, KeyFileMissing, KeyMismatch
from appliance.hierarchy import ROLES, create_hierarchy, key_file, read_issuing
from appliance.home import locked
from appliance.initialise import initialise
from appliance.ocsp import OcspAnswer, OcspResponder
from appliance.rollover import Rollovers
from appliance.settings import CaSettings, HsmSettings, Settings, load_settings
from appliance.store import Store, rollovers
from appliance.token import Token, TokenSigner, TokenUnavailable, open_token
from brski import Registrar
from est import profiles
from est.keys import spki
from lab.factory import Domain
from tests.appliance.authority import ACTOR, PASSPHRASE, issue_ldevid
from tests.appliance.test_ocsp import request
from tests.brski.trio import Trio
from tests.stores import open_store
from tests.support import NOW, FixedClock

LIBRARY = next(
    (
        path
        for path in map(Path, ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"))
        if path.exists()
    ),
    None,
)
PIN = "the PIN of a test"
pytestmark = [
    pytest.mark.interop,
    pytest.mark.xdist_group("token"),
    pytest.mark.skipif(
        LIBRARY is None or shutil.which("softhsm2-util") is None,
        reason="SoftHSM is not installed (Debian: apt install softhsm2)",
    ),
]


@pytest.fixture(scope="module")
def token_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A token named campus; the library reads its settings once per process."""
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed (extra hsm)")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    (folder / "pin").touch(0o600)
    (folder / "pin").write_text(f"{PIN}\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    make = ["softhsm2-util", "--init-token", "--free", "--label", "campus", "--pin", PIN, "--so-pin", "sosososo"]
    subprocess.run(make, check=True, capture_output=True)
    yield folder
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


@pytest.fixture
def hsm(token_folder: Path) -> HsmSettings:
    """Labels of the test's own in the one token."""
    return HsmSettings(module=LIBRARY, pin_file=token_folder / "pin", label=uuid.uuid4().hex[:8])


def campus_settings(hsm: HsmSettings) -> Settings:
    return Settings(hsm=hsm, ca=CaSettings(pki_base_url="http://pki.campus.example:8080"))


def test_a_key_is_made_in_the_token_and_cannot_be_read(hsm: HsmSettings) -> None:
    from pkcs11 import Attribute, AttributeSensitive, ObjectClass

    token = Token(hsm)
    signer = token.generate("devices")
    assert token.signer("devices").public_key() == signer.public_key()
    (private,) = token._session.get_objects(
        {Attribute.LABEL: f"{hsm.label}-devices", Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    )
    assert private[Attribute.SENSITIVE] is True
    assert private[Attribute.EXTRACTABLE] is False
    with pytest.raises(AttributeSensitive):
        private[Attribute.VALUE]
    with pytest.raises(KeyFileExists):
        token.generate("devices")
    with pytest.raises(KeyFileMissing):
        token.signer("agents")
    token.close()


def test_ca_crl_and_ocsp_sign_with_keys_of_the_token(hsm: HsmSettings, tmp_path: Path) -> None:
    settings, clock = campus_settings(hsm), FixedClock()
    create_hierarchy(tmp_path, settings, PASSPHRASE, NOW, key_cost=1024)
    assert not any(key_file(tmp_path, role).exists() for role in ROLES)

    async def act(ca: CertificateAuthority, store: Store) -> None:
        issued = await issue_ldevid(ca)
        issued.certificate.verify_directly_issued_by(ca.issuing("devices").certificate)
        keeper = CrlKeeper(ca, store, clock, life_hours=24)
        responder = OcspResponder(ca, store, clock, signers={role: _ocsp(ca, role) for role in ROLES})
        await responder.start()

        async def status() -> other.OCSPCertStatus:
            answer = responder.respond(request(ca, issued.serial))
            der = (answer if isinstance(answer, OcspAnswer) else await answer).der
            found = other.load_der_ocsp_response(der)
            assert found.certificates[0].public_key() == _ocsp(ca, "devices").public_key()
            return found.certificate_status

        assert await status() is other.OCSPCertStatus.GOOD
        await ca.revoke("devices", issued.serial, actor=ACTOR)
        assert await status() is other.OCSPCertStatus.REVOKED
        await keeper.build("devices")
        crl = x509.load_der_x509_crl(await keeper.crl("devices"))
        assert crl.is_signature_valid(ca.issuing("devices").signer.public_key())
        assert crl.get_revoked_certificate_by_serial_number(issued.serial) is not None
        several = await asyncio.gather(*(issue_ldevid(ca, f"p{at}") for at in range(8)))  # one session, many askers
        assert len({one.serial for one in several}) == 8

    def _ocsp(ca: CertificateAuthority, role: str) -> TokenSigner:
        found = ca.issuing(role).ocsp_signer  # type: ignore[arg-type]
        assert isinstance(found, TokenSigner)
        return found

    store = open_store(f"sqlite:///{tmp_path / 'appliance.db'}", clock)
    try:
        root, issuing = read_issuing(tmp_path, settings, PASSPHRASE)
        assert all(isinstance(one.signer, TokenSigner) for one in issuing.values())
        asyncio.run(act(CertificateAuthority(root=root, issuing=issuing, store=store, clock=clock), store))
    finally:
        store.close()


def test_keys_of_another_home_in_the_same_token_are_noticed(hsm: HsmSettings, tmp_path: Path) -> None:
    settings = campus_settings(hsm)
    other_settings = campus_settings(hsm.model_copy(update={"label": f"{hsm.label}x"}))
    create_hierarchy(tmp_path, settings, PASSPHRASE, NOW, key_cost=1024)
    (tmp_path / "b").mkdir()
    create_hierarchy(tmp_path / "b", other_settings, PASSPHRASE, NOW, key_cost=1024)
    with pytest.raises(KeyMismatch):
        read_issuing(tmp_path, other_settings, PASSPHRASE)
    (tmp_path / "c").mkdir()
    with pytest.raises(KeyFileExists, match="hsm.label"):  # init again would not take over keys in use
        create_hierarchy(tmp_path / "c", settings, PASSPHRASE, NOW, key_cost=1024)


# the binding's search object complains when it is thrown away after its session
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_token_that_ends_its_sessions_is_asked_again(hsm: HsmSettings) -> None:
    token = Token(hsm)
    signer = token.generate("devices")
    token._session.close()  # as a token that was pulled and put back

    signer.public_key().verify(signer.sign(b"data"), b"data", ec.ECDSA(hashes.SHA256()))
    assert spki(token.signer("devices").public_key()) == spki(signer.public_key())
    token.close()


def test_a_registrar_signs_voucher_requests_with_a_key_of_the_token(hsm: HsmSettings) -> None:
    """Down to the voucher: the MASA verifies the request and the pledge the voucher that pins this registrar."""
    token = Token(hsm)
    signer = token.generate("registrar")
    trio = Trio()
    ca = trio.campus.ca
    terms = profiles.Terms.under(ca.certificate, serial=7, not_before=NOW, not_after=NOW + timedelta(days=1))
    names = ["registrar.campus.example"]
    shape = profiles.registrar(terms, profiles.name("registrar"), signer.public_key(), dns_names=names)
    tbs = profiles.to_be_signed(shape, issuer_key=ca.signer.public_key())
    own = x509.load_der_x509_certificate(profiles.assemble(tbs, ca.signer.sign(tbs), ca.signer.public_key()))
    trio.campus = replace_names(trio.campus, certificate=own, tls_chain=(own, *trio.campus.chain))
    trio.registrar = Registrar(signer, own, trio.campus.chain)
    voucher = trio.run()
    assert voucher.pinned_domain_cert in [one.public_bytes(Encoding.DER) for one in (own, *trio.campus.chain)]
    token.close()


def replace_names(domain: Domain, **changes: object) -> Domain:
    """A domain whose registrar has another certificate."""
    return cast(Domain, SimpleNamespace(**{"chain": domain.chain, "ca": domain.ca, **changes}))


@pytest.mark.slow
def test_a_whole_appliance_lives_with_its_keys_in_a_token(hsm: HsmSettings, tmp_path: Path) -> None:
    """Made by `init`, which keeps what the command line said of the token; doctor finds nothing wrong."""
    home = tmp_path / "home"
    assignments = [f"hsm.module={hsm.module}", f"hsm.pin_file={hsm.pin_file}", f"hsm.label={hsm.label}"]
    initialise(home, SystemClock(), trust_domain="campus.example", organization="Example", assignments=assignments)
    ports = [f"web.{name}_port=0" for name in ("device", "console", "decision", "pki")]
    settings = load_settings(home, [*ports, "radius.engine=none", "registrar.announce=false"]).settings

    async def act() -> list[dict[str, str]]:
        appliance = create_appliance(settings, passphrase=(home / "passphrase").read_bytes().strip())
        try:
            await appliance.prepare()
            await appliance.start()
            assert isinstance(appliance.ca.issuing("agents").signer, TokenSigner)
            rows = await appliance.operations.call("certs.list", {})
            signers = [one for one in rows["certificates"] if one["profile"] == "ocsp-signer"]
            assert [one["issuer"] for one in signers][:3] == ["infrastructure", "agents", "devices"]
            found: list[dict[str, str]] = await appliance.operations.call("doctor", {})
            return found
        finally:
            await appliance.stop()

    for _ in range(2):  # the second start finds the same keys
        with locked(home):
            found = asyncio.run(act())
        assert [one for one in found if one["level"] == "error"] == []
    assert not any(key_file(home, role).exists() for role in ROLES)
    left = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert PIN.encode() not in left


def test_wrong_pins_libraries_tokens_and_files_are_refused_in_words(hsm: HsmSettings, tmp_path: Path) -> None:
    import pkcs11

    pkcs11.lib(str(LIBRARY)).reinitialize()  # a session that is logged in would vouch for the next one
    wrong = tmp_path / "pin"
    wrong.touch(0o600)
    wrong.write_text("not the PIN")
    for changed, kind in (
        ({"pin_file": wrong}, TokenUnavailable),
        ({"module": tmp_path / "no-such-library.so"}, TokenUnavailable),
        ({"token": "nobody"}, TokenUnavailable),
        ({"pin_file": tmp_path / "missing"}, KeyFileMissing),
        ({"pin_file": None}, KeyFileMissing),
    ):
        with pytest.raises(kind) as refused:
            Token(hsm.model_copy(update=changed))
        assert PIN not in str(refused.value) and "not the PIN" not in str(refused.value)
    wrong.chmod(0o644)
    with pytest.raises(KeyFileExposed):
        Token(hsm.model_copy(update={"pin_file": wrong}))
    assert open_token(HsmSettings()) is None


@pytest.mark.slow
@pytest.mark.req("A-41", "A-70", "A-65")
def test_an_owner_s_approval_key_in_a_token_signs_and_counts_where_software_does_not(
    hsm: HsmSettings, tmp_path: Path
) -> None:
    from tests.appliance.identity.campus import ADMIN, ORIGIN, Campus
    from tests.campus import appliance

    keys = tmp_path / "owner"
    made = appliance(
        "owner", "keygen", "--out", keys, "--ref", "alice", "--pkcs11-module", str(hsm.module), "--token", "campus",
        "--pin-file", str(hsm.pin_file), "--label", hsm.label, "-o", "json",
    )  # fmt: skip
    assert made.status == 0, made.err
    assert sorted(one.name for one in keys.iterdir()) == ["owner-key.jwt", "token-key.json"]
    again = appliance(
        "owner", "keygen", "--out", tmp_path / "other", "--ref", "alice", "--pkcs11-module", str(hsm.module), "--token",
        "campus", "--pin-file", str(hsm.pin_file), "--label", hsm.label,
    )  # fmt: skip
    assert again.status == 1 and "key-file-exists" in again.err

    async def story() -> None:
        campus = Campus.create(tmp_path, allow_software_owner_keys=False)
        campus.clock.advance((SystemClock().now() - campus.clock.now()).total_seconds())
        proxy, owner = await campus.proxy(), await campus.owner(with_key=False)
        statement = (keys / "owner-key.jwt").read_text().strip()
        shown = await campus.directory.add_key("alice", statement, actor=ADMIN)
        assert [one["protection"] for one in shown["keys"]] == ["pkcs11"]
        request, approval = tmp_path / "request.jws", tmp_path / "approval.jws"

        async def sign(key: Path, token: str) -> tuple[int, str]:
            request.write_text(token)
            approval.unlink(missing_ok=True)
            done = await asyncio.to_thread(
                appliance, "owner", "sign", "--owner", owner.identifier, "--key", key, "--request", request, "--out",
                approval, "--yes",
            )  # fmt: skip
            return done.status, done.err

        from dataclasses import replace

        ask = await proxy.ask(owner)
        assert (await sign(keys / "token-key.json", ask.token))[0] == 0
        assert (await replace(ask, approvals=(approval.read_text().strip(),)).submit())[0] == 201
        soft = await proxy.ask(owner)
        from est.signer import KeySigner

        software = KeySigner(ec.generate_private_key(ec.SECP256R1()))
        await campus.directory.add_key("alice", owner.statement(software), actor=ADMIN)
        status, answer = await soft.approved(signer=software).submit()
        assert answer["reason"] == "owner-key-in-software"
        document = (keys / "token-key.json").read_text()
        assert PIN not in document and "PRIVATE" not in document
        for damage in (document.replace("campus", "elsewhere"), document.replace('"label"', '"x"'), "{"):
            bad = tmp_path / "bad.json"
            bad.write_text(damage)
            status, error = await sign(bad, ask.token)
            assert status == 1 and ("token-unavailable" in error or "key-malformed" in error), error
        assert ORIGIN in owner.identifier
        campus.close()

    asyncio.run(story())


@pytest.mark.slow
@pytest.mark.req("E-103")
def test_an_issuing_ca_in_a_token_gives_way_to_a_new_key_of_the_token(hsm: HsmSettings, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    settings, clock = campus_settings(hsm).model_copy(update={"home": home}), FixedClock()
    create_hierarchy(home, settings, PASSPHRASE, NOW, key_cost=1024)

    async def act(ca: CertificateAuthority, store: Store) -> None:
        async def changed() -> None:
            """Nobody follows here."""

        made = Rollovers(
            settings, ca=ca, store=store, clock=clock, passphrase=PASSPHRASE, on_change=changed, key_cost=1024
        )
        label = (await made.start("devices", ACTOR))["label"]
        assert not key_file(home, label).exists()
        for _ in range(2):
            await made.advance("devices", ACTOR)
        new = ca.issuing("devices")
        assert new.label == label and isinstance(new.signer, TokenSigner) and isinstance(new.ocsp_signer, TokenSigner)
        issued = await issue_ldevid(ca)
        issued.certificate.verify_directly_issued_by(new.certificate)
        keeper, responder = CrlKeeper(ca, store, clock, life_hours=24), OcspResponder(ca, store, clock)
        await keeper.build_all()
        for one in ca.generations:
            crl = x509.load_der_x509_crl(await keeper.crl(one.label))
            assert crl.is_signature_valid(one.signer.public_key())
        await responder.start()

        # the root's new key and its links lie in files; the same keys of the token get certificates under it
        clock.advance(86400)
        await made.advance("devices", ACTOR, force=True)
        await made.start("root", ACTOR)
        for _ in range(3):
            await made.advance("root", ACTOR, force=True)
        (await issue_ldevid(ca)).certificate.verify_directly_issued_by(ca.issuing("devices").certificate)
        ca.issuing("devices").certificate.verify_directly_issued_by(ca.root)

    store = open_store(f"sqlite:///{home / 'appliance.db'}", clock)
    try:
        root, issuing = read_issuing(home, settings, PASSPHRASE)
        asyncio.run(act(CertificateAuthority(root=root, issuing=issuing, store=store, clock=clock), store))
        rows = store.read_sync(rollovers.every)
        again = load_authorities(home, settings, PASSPHRASE, rows)
        assert all(isinstance(one.signer, TokenSigner) for one in again.issuing.values())
    finally:
        store.close()
