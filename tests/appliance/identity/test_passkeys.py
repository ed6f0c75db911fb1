"""Passkeys approve: registered, asserted, verified by server and relying parties, each damage with its own reason."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from fido2.cose import ES256
from fido2.webauthn import AuthenticatorData, CollectedClientData

from appliance.binding import approval, bundle, dual_identity, jws, possession, standing, verify, webauthn
from appliance.binding.errors import (
    ApprovalDigestMismatch,
    ApprovalNotInside,
    BindingError,
    PasskeyOriginMismatch,
    SignatureFormWrong,
)
from appliance.binding.webauthn import Assertion, Passkey
from appliance.cli import run
from appliance.errors import KeyMalformed
from appliance.evidence_package import EvidencePackages
from appliance.owner import passkey as passkeys
from appliance.owner.errors import PasskeyUnavailable
from appliance.owner.passkey import FidoKey, load_passkey, register
from appliance.owner.review import review
from appliance.owner.sign import sign
from est.errors import Refusal
from est.signer import KeySigner
from tests.appliance.identity.campus import ADMIN, ORIGIN, SERVER_ID, Ask, Campus, OwnerHost, Proxy, new_key
from tests.appliance.identity.test_enroll import play
from tests.appliance.identity.test_server_mediated import Desk, registered
from tests.appliance.identity.test_standing import Agent, stand
from tests.fido import UP, UV, SoftKey

PLACE = Passkey("campus.example", "https://campus.example")


async def with_passkey(campus: Campus, folder: Path, key: SoftKey, ref: str = "alice") -> FidoKey:
    """The owner's passkey, made by the owner's tool and registered by an administrator."""
    made = register(
        folder / f"passkey-{ref}-{len(key.keys)}", ref=ref, audience=ORIGIN, passkey=PLACE, now=campus.clock.now(),
        find=lambda: key,
    )  # fmt: skip
    shown = await campus.directory.add_key(ref, made.statement_file.read_text().strip(), actor=ADMIN)
    assert {one["jkt"]: one["protection"] for one in shown["keys"]}[made.jkt] == "passkey"
    return load_passkey(made.key_file, find=lambda: key)


def approved(ask: Ask, signer: Any, **changed: Any) -> Ask:
    assert ask.owner is not None
    card = review(ask.token, owner_id=ask.owner.identifier, now=ask.proxy.campus.clock.now(), csr_der=ask.csr_der)
    return replace(ask, approvals=(sign(card, signer, now=ask.proxy.campus.clock.now(), **changed),))


@pytest.mark.req("A-41", "A-70", "A-30", "A-34", "A-65", "W-12", "W-13")
def test_a_passkey_approves_and_everybody_can_verify_it_offline(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        fido = await with_passkey(campus, tmp_path, SoftKey())
        ask = approved(await proxy.ask(owner), fido)
        status, answer = await ask.submit()
        assert status == 201, answer
        leaf = x509.load_pem_x509_certificates(answer["certificate"].encode())[0]
        dual = dual_identity.of_certificate(leaf)
        (token,) = ask.approvals
        assert dual is not None and dual.is_by_passkey
        assert dual.approval == hashlib.sha256(token.encode()).digest()
        assert len(leaf.public_bytes(Encoding.DER)) <= 2000
        issuing = campus.ca.issuing("agents").certificate
        assert len(leaf.public_bytes(Encoding.DER)) + len(issuing.public_bytes(Encoding.DER)) <= 4000
        assert len(dual_identity.write_owner_id(owner.identifier)) <= 122

        records = await campus.directory.records()
        trusted = bundle.read(bundle.write(campus.service.issuer.trust_bundle(records)))

        def look(beside: str | None) -> verify.Report:
            return verify.verify_certificate(
                leaf, (), trusted.domain, trusted.owners.get, at=campus.clock.now(), approval=beside
            )

        assert look(token).approval.sign_count == 2  # type: ignore[union-attr]
        with pytest.raises(ApprovalNotInside):
            look(None)
        with pytest.raises(ApprovalDigestMismatch):
            look(approved(await proxy.ask(owner), fido).approvals[0])
        verify.verify_wit(
            answer["wit"], trusted.domain, trusted.owners.get, issuer=trusted.issuer, issuer_keys=trusted.wit_keys,
            at=campus.clock.now(), approval=token,
        )  # fmt: skip
        packages = EvidencePackages(ca=campus.ca, store=campus.store, clock=campus.clock)
        files = {name: text.encode() for name, text in (await packages.export(answer["serial"])).items()}
        from appliance.binding.package import verify_package

        assert dict(verify_package(files, trusted).steps)["request"] == ask.request.rqh
        plain = await (await proxy.ask(owner)).approved().submit()
        other = x509.load_pem_x509_certificates(plain[1]["certificate"].encode())[0]
        sizes = [len(one.public_bytes(Encoding.DER)) for one in (leaf, other)]
        assert sizes[0] < sizes[1]

    play(tmp_path, story, allow_software_owner_keys=True)


@pytest.mark.req("A-41", "A-70")
def test_where_software_keys_do_not_count_passkeys_do(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        fido = await with_passkey(campus, tmp_path, SoftKey())
        assert (await approved(await proxy.ask(owner), fido).submit())[0] == 201
        assert (await (await proxy.ask(owner)).approved().submit())[1]["reason"] == "owner-key-in-software"

    play(tmp_path, story, allow_software_owner_keys=False)


def test_the_library_s_own_server_half_accepts_what_we_accept() -> None:
    key = SoftKey()
    fido = soft(key)
    challenge = hashlib.sha256(b"signing input").digest()
    made = fido.assertion(challenge)
    data, client = AuthenticatorData(made.authenticator_data), CollectedClientData(made.client_data)
    assert (client.challenge, client.origin, client.cross_origin) == (challenge, PLACE.origin, False)
    assert data.is_user_verified() and data.is_user_present()
    ES256.from_cryptography_key(fido.public_key()).verify(
        made.authenticator_data + hashlib.sha256(made.client_data).digest(), made.signature
    )


def soft(key: SoftKey, place: Passkey = PLACE) -> FidoKey:
    """A credential on a soft key, without files."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        from tests.support import NOW

        made = register(Path(name) / "k", ref="alice", audience=ORIGIN, passkey=place, now=NOW, find=lambda: key)
        return load_passkey(made.key_file, find=lambda: key)


class Bent:
    """A passkey whose assertions are bent before, or after, they are signed."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, place: Passkey = PLACE) -> None:
        self.key, self.passkey = key, place
        self.client: dict[str, Any] = {}
        self.without: tuple[str, ...] = ()
        self.rp_id = place.rp_id
        self.flags: int = UP | UV
        self.count = 1
        self.extra = b""
        self.raw = b""
        self.after: Callable[[Assertion], Assertion] = lambda one: one

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self.key.public_key()

    def assertion(self, challenge: bytes) -> Assertion:
        told = {
            "type": "webauthn.get",
            "challenge": jws.base64url(challenge),
            "origin": self.passkey.origin,
            "crossOrigin": False,
        }
        told = {name: value for name, value in {**told, **self.client}.items() if name not in self.without}
        client = self.raw or json.dumps(told).encode()
        data = (
            hashlib.sha256(self.rp_id.encode()).digest()
            + bytes([self.flags])
            + self.count.to_bytes(4, "big")
            + self.extra
        )
        signature = self.key.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(hashes.SHA256()))
        return self.after(Assertion(data, client, signature))


def bend(**changed: Any) -> Callable[[Bent], None]:
    def apply(bent: Bent) -> None:
        for name, value in changed.items():
            setattr(bent, name, value)

    return apply


def after(**changed: bytes) -> Callable[[Bent], None]:
    return bend(after=lambda one: replace(one, **changed))


OTHER = ec.generate_private_key(ec.SECP256R1())
BENT: dict[str, tuple[str, Callable[[Bent], None]]] = {
    "created, not got": ("passkey-challenge-mismatch", bend(client={"type": "webauthn.create"})),
    "a payment": ("passkey-challenge-mismatch", bend(client={"type": "payment.get"})),
    "another challenge": ("passkey-challenge-mismatch", bend(client={"challenge": jws.base64url(bytes(32))})),
    "padded challenge": ("passkey-challenge-mismatch", bend(client={"challenge": jws.base64url(bytes(32)) + "="})),
    "no challenge": ("passkey-challenge-mismatch", bend(without=("challenge",))),
    "another origin": ("passkey-origin-mismatch", bend(client={"origin": "https://campus.example.evil.example"})),
    "origin with a port": ("passkey-origin-mismatch", bend(client={"origin": "https://campus.example:8443"})),
    "plain http": ("passkey-origin-mismatch", bend(client={"origin": "http://campus.example"})),
    "in a frame of another": ("passkey-origin-mismatch", bend(client={"crossOrigin": True})),
    "cross origin by text": ("passkey-origin-mismatch", bend(client={"crossOrigin": "false"})),
    "another relying party": ("passkey-origin-mismatch", bend(rp_id="evil.example")),
    "user not verified": ("passkey-user-not-verified", bend(flags=int(UP))),
    "user not there": ("passkey-user-not-verified", bend(flags=int(UV))),
    "nobody at all": ("passkey-user-not-verified", bend(flags=0)),
    "backed up though it may not be": ("malformed", bend(flags=UP | UV | 0x10)),
    "attested key announced": ("malformed", bend(flags=UP | UV | 0x40)),
    "extensions announced": ("malformed", bend(flags=UP | UV | 0x80)),
    "extensions there": ("malformed", bend(flags=UP | UV | 0x80, extra=b"\xa0")),
    "signed by another": ("signature-invalid", after(signature=OTHER.sign(b"", ec.ECDSA(hashes.SHA256())))),
    "counter raised afterwards": ("signature-invalid", after(authenticator_data=bytes(37))),
    "client data changed afterwards": ("signature-invalid", after(client_data=b"{}")),
    "signature in raw form": ("signature-invalid", after(signature=bytes(64))),
    "no signature": ("malformed", after(signature=b"")),
    "client data twice": ("malformed", bend(raw=b'{"type":"webauthn.get","type":"webauthn.get"}')),
    "client data no object": ("malformed", bend(raw=b"[]")),
    "client data no JSON": ("malformed", bend(raw=b"\xff")),
    "client data too long": ("malformed", bend(client={"note": "x" * 2000})),
    "data too short": ("malformed", after(authenticator_data=bytes(36))),
}  # fmt: skip


@pytest.mark.req("A-101", "A-94", "A-41")
@pytest.mark.parametrize("name", BENT)
def test_an_assertion_with_one_thing_wrong_is_refused_with_its_own_reason(tmp_path: Path, name: str) -> None:
    reason, apply = BENT[name]

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        bent = Bent(new_key())
        at = int(campus.clock.now().timestamp())
        statement = possession.seal(bent, sub="alice", aud=ORIGIN, iat=at, exp=at + 60, jti="A" * 22, credential="AAAA")
        await campus.directory.add_key("alice", statement, actor=ADMIN)
        bent.count += 1
        assert (await (await proxy.ask(owner)).approved(signer=bent).submit())[0] == 201
        bent.count += 1
        apply(bent)
        status, answer = await (await proxy.ask(owner)).approved(signer=bent).submit()
        assert (answer["reason"], 400 <= status < 500) == (reason, True), answer

    play(tmp_path, story)


@pytest.mark.req("A-95", "A-100")
def test_a_counter_that_goes_back_is_refused_and_approvals_out_of_order_are_not(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        bent = Bent(new_key())
        at = int(campus.clock.now().timestamp())
        bent.count = 10
        statement = possession.seal(bent, sub="alice", aud=ORIGIN, iat=at, exp=at + 60, jti="A" * 22, credential="AAAA")
        await campus.directory.add_key("alice", statement, actor=ADMIN)

        async def ask(count: int) -> Ask:
            campus.clock.advance(10)
            bent.count = count
            return (await proxy.ask(owner)).approved(signer=bent)

        first, second = await ask(11), await ask(12)
        assert (await second.submit())[0] == 201
        assert (await first.submit())[0] == 201  # signed earlier, handed in later
        for count in (12, 11, 3, 0):
            status, answer = await (await ask(count)).submit()
            assert (status, answer["reason"], answer["seen"], answer["found"]) == (
                403, "passkey-counter-went-back", 12, count,
            )  # fmt: skip
        assert (await (await ask(13)).submit())[0] == 201

    play(tmp_path, story)


def test_keys_without_a_counter_always_say_zero(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        fido = await with_passkey(campus, tmp_path, SoftKey(step=0))
        for _ in range(2):
            assert (await approved(await proxy.ask(owner), fido).submit())[0] == 201

    play(tmp_path, story)


@pytest.mark.req("A-101")
def test_a_key_has_one_form_for_ever(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        bent = Bent(new_key())
        at = int(campus.clock.now().timestamp())
        statement = possession.seal(bent, sub="alice", aud=ORIGIN, iat=at, exp=at + 60, jti="A" * 22, credential="AAAA")
        await campus.directory.add_key("alice", statement, actor=ADMIN)
        plain = await (await proxy.ask(owner)).approved(signer=KeySigner(bent.key)).submit()
        assert plain[1]["reason"] == "signature-form-wrong"
        as_passkey = Bent(owner.signer._key)
        status, answer = await (await proxy.ask(owner)).approved(signer=as_passkey).submit()
        assert answer["reason"] == "signature-form-wrong"

    play(tmp_path, story)


@pytest.mark.req("A-32", "A-101")
def test_a_statement_says_what_it_is_and_for_where(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        at = int(campus.clock.now().timestamp())
        values: dict[str, Any] = {"sub": "alice", "aud": ORIGIN, "iat": at, "exp": at + 60, "jti": "A" * 22}
        for place in (
            Passkey("evil.example", "https://evil.example"),
            Passkey("campus.example", "https://other.campus.example"),
        ):
            elsewhere = possession.seal(Bent(new_key(), place), **values, credential="AAAA")
            with pytest.raises(PasskeyOriginMismatch):
                await campus.directory.add_key("alice", elsewhere, actor=ADMIN)
        liar = possession.seal(KeySigner(new_key()), **values, protection="passkey")
        with pytest.raises(SignatureFormWrong):
            possession.unseal(liar)
        bent = Bent(new_key())
        bent.flags = int(UP)
        with pytest.raises(BindingError):
            possession.unseal(possession.seal(bent, **values, credential="AAAA"))
        with pytest.raises(BindingError):
            possession.unseal(possession.seal(Bent(new_key()), **values, typ=possession.CLIENT_TYP, credential="AAAA"))

    play(tmp_path, story)


@pytest.mark.req("A-107", "A-60")
def test_a_passkey_signs_standing_approvals_and_answers_challenges(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        fido = await with_passkey(campus, tmp_path, SoftKey())
        agent = await Agent.first(proxy, owner)
        token = stand(owner, agent.sub, proxy, signer=fido)
        for _ in range(2):
            status, answer = await agent.renew(token)
            assert status == 201, answer
        leaf = x509.load_pem_x509_certificates(answer["certificate"].encode())[0]
        dual = dual_identity.of_certificate(leaf)
        assert dual is not None and (str(dual.model), dual.is_by_passkey) == ("standing", True)
        assert standing.unseal(token, fido.public_key(), passkey=PLACE).sub == agent.sub

        desk = await Desk.register(campus, owner, tmp_path)
        ask = await registered(campus, proxy, owner)
        assert (await ask.submit())[0] == 202
        challenge = await desk.asked()
        card = approved(ask, fido, nonce=challenge.nonce, usable_seconds=600)
        assert (await desk.answer(challenge, card.approvals[0]))[0] == 200
        assert (await ask.submit())[0] == 201

    play(tmp_path, story)


def test_a_key_that_refuses_or_is_not_there_is_said_plainly(tmp_path: Path) -> None:
    from tests.support import NOW

    key = SoftKey(refuses=True)
    values: dict[str, Any] = {"ref": "alice", "audience": ORIGIN, "passkey": PLACE, "now": NOW}
    with pytest.raises(PasskeyUnavailable):
        register(tmp_path / "a", **values, find=lambda: key)
    assert not (tmp_path / "a").exists()
    with pytest.raises(PasskeyUnavailable):
        register(
            tmp_path / "a", **{**values, "passkey": Passkey("campus.example", "https://evil.example")}, find=SoftKey
        )
    key.refuses = False
    made = register(tmp_path / "a", **values, find=lambda: key)
    with pytest.raises(Refusal):
        register(tmp_path / "a", **values, find=lambda: key)
    with pytest.raises(PasskeyUnavailable):
        load_passkey(made.key_file, find=SoftKey).assertion(bytes(32))  # another key is plugged in
    (tmp_path / "bad.json").write_text('{"version": 1}')
    with pytest.raises(KeyMalformed):
        load_passkey(tmp_path / "bad.json")
    assert "seed" not in made.key_file.read_text() and made.key_file.stat().st_mode & 0o077 == 0


def test_the_owner_s_verbs_take_a_passkey_where_they_take_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = SoftKey()
    monkeypatch.setattr(passkeys, "_plugged_in", lambda: key)
    out = tmp_path / "owner"
    assert run(["owner", "passkey-register", "--out", str(out), "--ref", "alice", "-o", "json"]) == 0
    jkt = json.loads(capsys.readouterr().out)["jkt"]
    assert possession.unseal((out / "owner-key.jwt").read_text().strip()).jkt == jkt

    async def story() -> None:
        from appliance.clock import SystemClock

        campus = Campus.create(tmp_path)
        campus.clock.advance((SystemClock().now() - campus.clock.now()).total_seconds())
        proxy, owner = await campus.proxy(), await campus.owner(with_key=False)
        statement = (out / "owner-key.jwt").read_text().strip()
        await campus.directory.add_key("alice", statement, actor=ADMIN)
        ask = await proxy.ask(owner)
        request, approval_file = tmp_path / "request.jws", tmp_path / "approval.jws"
        request.write_text(ask.token)
        words = [
            "owner", "sign", "--owner", owner.identifier, "--key", str(out / "passkey.json"), "--request", str(request),
            "--out", str(approval_file), "--server-id", SERVER_ID, "--yes",
        ]  # fmt: skip
        status = await asyncio.to_thread(run, [word for word in words if word not in ("--server-id", SERVER_ID)])
        assert status == 0, capsys.readouterr().err
        done = replace(ask, approvals=(approval_file.read_text().strip(),))
        assert (await done.submit())[0] == 201
        campus.close()

    asyncio.run(story())


def test_texts_of_the_second_form_are_read_strictly() -> None:
    bent = Bent(new_key())
    good = webauthn.seal({"a": 1}, typ="x", signer=bent)
    assert webauthn.read(good).unseal(typ="x", key=bent.public_key(), passkey=PLACE).claims == {"a": 1}
    for bad in (
        good + "~", "~" + good, good.replace("~", "~~", 1), good.replace("~", ".", 1), good + "=",
        good.replace(".", "..", 1),
        good.rpartition("~")[0], "~~~", "a.b~c~d~e", good + "\n", good.replace("~", "~ ", 1),
    ):  # fmt: skip
        with pytest.raises(BindingError):
            webauthn.read(bad)
    with pytest.raises(BindingError):
        jws.read(good)
    with pytest.raises(BindingError):
        approval.read(good * 10)
    p384 = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(SignatureFormWrong):
        webauthn.read(good).unseal(typ="x", key=p384.public_key(), passkey=PLACE)
