"""The OCSP responder: right answers, kept ones included, until the moment that they are not right any more."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp as other

from appliance.ca import CertificateAuthority, Issued
from appliance.clock import SystemClock
from appliance.console.pki import PkiRoutes
from appliance.crl import CrlKeeper
from appliance.errors import DiskFull
from appliance.hierarchy import ROLES, certificate_file
from appliance.ocsp import OcspResponder
from appliance.store import Store, certificates
from appliance.web.app import App, build_app
from appliance.web.peer import Peer
from appliance.web.server import Listener
from est import der as tlv
from est.chains import ski_of
from est.exchange import Call, Reply
from est.ocsp import MALFORMED, TRY_LATER, UNAUTHORIZED
from est.signer import KeySigner
from tests.appliance.authority import ACTOR, authority, checkpoint_endpoints, home, issue_ldevid
from tests.support import NOW, FixedClock, key

Clock = FixedClock | SystemClock


@dataclass
class World:
    ca: CertificateAuthority
    store: Store
    clock: Clock
    responder: OcspResponder
    app: App

    async def post(self, body: bytes, media_type: str = "application/ocsp-request") -> Reply:
        return await self.app.handle(Call("POST", "/ocsp", media_type, {}, body), Peer("192.0.2.1"))

    async def get(self, path: str, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.app.handle(Call("GET", path, "", named), Peer("192.0.2.1"))

    async def ask(self, issued: Issued, **changes: object) -> other.OCSPResponse:
        reply = await self.post(request(self.ca, issued.serial, **changes))  # type: ignore[arg-type]
        assert (reply.status, reply.media_type) == (200, "application/ocsp-response")
        return other.load_der_ocsp_response(reply.body)


def request(
    ca: CertificateAuthority,
    serial: int,
    *,
    role: str = "devices",
    nonce: bytes | None = None,
    algorithm: hashes.HashAlgorithm | None = None,
) -> bytes:
    issuer = ca.root if role == "root" else ca.issuing(role).certificate  # type: ignore[arg-type]
    algorithm = algorithm or hashes.SHA1()
    digests = []
    bits = issuer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)  # type: ignore[call-overload, union-attr]
    for data in (issuer.subject.public_bytes(), bits):
        state = hashes.Hash(algorithm)
        state.update(data)
        digests.append(state.finalize())
    builder = other.OCSPRequestBuilder().add_certificate_by_hash(*digests, serial, algorithm)
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), False)
    return builder.build().public_bytes(Encoding.DER)


def run(tmp_path: Path, act: Callable[[World], Awaitable[None]], clock: Clock | None = None, **options: object) -> None:
    clock = clock or FixedClock()

    async def inside(ca: CertificateAuthority, store: Store) -> None:
        responder = OcspResponder(ca, store, clock, **options)  # type: ignore[arg-type]
        await responder.start()
        keeper = CrlKeeper(ca, store, clock, life_hours=24)
        app = build_app("pki", PkiRoutes(ca, keeper, responder, clock).endpoints | checkpoint_endpoints(store, clock))
        await act(World(ca, store, clock, responder, app))

    with authority(tmp_path, clock) as (ca, store):  # type: ignore[arg-type]
        asyncio.run(inside(ca, store))


def test_good_revoked_and_unknown_are_said_by_a_delegate_of_the_same_ca(tmp_path: Path) -> None:
    async def act(world: World) -> None:
        issued = await issue_ldevid(world.ca)
        good = await world.ask(issued)
        assert good.certificate_status is other.OCSPCertStatus.GOOD
        assert good.next_update_utc == NOW + timedelta(hours=1)
        (delegate,) = good.certificates
        delegate.verify_directly_issued_by(world.ca.issuing("devices").certificate)
        assert [
            one.dotted_string for one in delegate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        ] == ["1.3.6.1.5.5.7.3.9"]
        assert delegate.extensions.get_extension_for_class(x509.OCSPNoCheck)
        assert good.responder_key_hash == ski_of(delegate)
        delegate.public_key().verify(good.signature, good.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))  # type: ignore[union-attr, call-arg, arg-type]
        await world.ca.revoke("devices", issued.serial, reason="keyCompromise", actor=ACTOR)
        revoked = await world.ask(issued)  # the very next answer
        assert revoked.certificate_status is other.OCSPCertStatus.REVOKED
        assert (revoked.revocation_time_utc, revoked.revocation_reason) == (NOW, x509.ReasonFlags.key_compromise)
        reply = await world.post(request(world.ca, 12345))
        unknown = other.load_der_ocsp_response(reply.body)
        assert unknown.certificate_status is other.OCSPCertStatus.UNKNOWN
        assert unknown.next_update_utc == NOW + timedelta(minutes=5)

    run(tmp_path, act)


def test_a_pending_certificate_is_unknown_until_it_is_issued(tmp_path: Path) -> None:
    async def act(world: World) -> None:
        aki = world.ca.issuing("devices").key_identifier
        row = certificates.Pending(
            "devices", aki, 99, b"t" * 32, b"s" * 32, NOW, NOW + timedelta(days=1), {"profile": "x"}
        )
        row_id = await world.store.write(lambda tx: certificates.add(tx, row))
        asked = request(world.ca, 99)
        status = other.load_der_ocsp_response((await world.post(asked)).body).certificate_status
        assert status is other.OCSPCertStatus.UNKNOWN
        await world.store.write(lambda tx: certificates.issue(tx, row_id, b"der", b"c" * 32))
        status = other.load_der_ocsp_response((await world.post(asked)).body).certificate_status
        assert status is other.OCSPCertStatus.GOOD

    run(tmp_path, act)


def test_an_answer_is_kept_until_half_its_life_and_not_beyond_a_bound(tmp_path: Path) -> None:
    clock = FixedClock()

    async def act(world: World) -> None:
        issued = [await issue_ldevid(world.ca, f"p{at}") for at in range(4)]
        asked = [request(world.ca, one.serial) for one in issued]
        first = (await world.post(asked[0])).body
        clock.advance(29 * 60)
        assert (await world.post(asked[0])).body == first
        sha256 = (await world.post(request(world.ca, issued[0].serial, algorithm=hashes.SHA256()))).body
        assert sha256 != first
        clock.advance(60)
        again = (await world.post(asked[0])).body
        assert again != first
        assert other.load_der_ocsp_response(again).this_update_utc == NOW + timedelta(minutes=30)
        for one in asked:
            await world.post(one)
        assert len(world.responder._kept) == 3
        assert sum(map(len, world.responder._kept_of.values())) == 3
        # by whatever hash it was asked for, a revoked certificate's answers go
        await world.post(request(world.ca, issued[3].serial, algorithm=hashes.SHA256()))
        await world.ca.revoke("devices", issued[3].serial, actor=ACTOR)
        for algorithm in (hashes.SHA1(), hashes.SHA256()):
            found = await world.ask(issued[3], algorithm=algorithm)
            assert found.certificate_status is other.OCSPCertStatus.REVOKED
        for at in range(50):  # strangers cannot push answers out
            await world.post(request(world.ca, 10**9 + at))
        assert (await world.post(asked[2])).body == (await world.post(asked[2])).body

    run(tmp_path, act, clock, max_kept=3)


@pytest.mark.parametrize("length", [1, 32, 128])
def test_a_nonce_comes_back_and_such_an_answer_is_nobodys_to_keep(tmp_path: Path, length: int) -> None:
    async def act(world: World) -> None:
        issued = await issue_ldevid(world.ca)
        nonce = bytes(length)
        asked = request(world.ca, issued.serial, nonce=nonce)
        reply = await world.post(asked)
        found = other.load_der_ocsp_response(reply.body)
        assert found.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == nonce
        assert reply.headers["cache-control"] == "no-store"
        assert (await world.post(asked)).body != reply.body
        assert not world.responder._kept

    run(tmp_path, act)


def test_every_failure_is_a_response_with_status_200(tmp_path: Path) -> None:
    async def act(world: World) -> None:
        issued = await issue_ldevid(world.ca)
        for body, expected in (
            (b"", MALFORMED),
            (b"hello", MALFORMED),
            (request(world.ca, issued.serial) + b"\x00", MALFORMED),
            (request(world.ca, 5, role="root"), UNAUTHORIZED),
        ):
            reply = await world.post(body)
            assert (reply.status, reply.media_type, reply.body) == (200, "application/ocsp-response", expected)
            assert reply.headers["cache-control"] == "no-store"
        assert (await world.post(request(world.ca, 1), "text/plain")).status == 415
        assert (await world.post(bytes(9000))).status == 413
        assert (await world.get("/ocsp/not%20base64")).body == MALFORMED
        assert (await world.get("/ocsp")).status == 405
        world.store.close()
        assert (await world.post(request(world.ca, issued.serial))).body == TRY_LATER

    run(tmp_path, act)


def test_get_takes_base64_with_slashes_bare_or_percent_encoded(tmp_path: Path) -> None:
    async def act(world: World) -> None:
        text = ""
        for at in range(200):
            issued = await issue_ldevid(world.ca, f"p{at}")
            text = base64.b64encode(request(world.ca, issued.serial)).decode()
            if "/" in text and "+" in text and text.endswith("="):
                break
        assert "/" in text and "+" in text
        answers = [
            await world.get(f"/ocsp/{written}")
            for written in (text, quote(text, safe=""), quote(text, safe="/"), quote(text, safe="+="), f"/{text}")
        ]
        assert {one.body for one in answers} == {answers[0].body}
        found = other.load_der_ocsp_response(answers[0].body)
        assert (found.serial_number, found.certificate_status) == (issued.serial, other.OCSPCertStatus.GOOD)
        assert (await world.post(base64.b64decode(text))).body == answers[0].body
        headers = answers[0].headers
        assert headers["cache-control"] == "max-age=3600, public, no-transform, must-revalidate"
        assert headers["last-modified"] == headers["date"] == "Thu, 01 Jan 2026 12:00:00 GMT"
        assert headers["expires"] == "Thu, 01 Jan 2026 13:00:00 GMT"
        unchanged = await world.get(f"/ocsp/{text}", if_none_match=headers["etag"])
        assert (unchanged.status, unchanged.body) == (304, b"")

    run(tmp_path, act)


def test_several_certificates_of_one_ca_are_answered_together_and_of_two_not(tmp_path: Path) -> None:
    async def act(world: World) -> None:
        issued = await issue_ldevid(world.ca)
        inner = [_requests(request(world.ca, serial)) for serial in (issued.serial, 4711)]
        reply = await world.post(tlv.sequence(tlv.sequence(tlv.sequence(*inner))))
        answers = list(other.load_der_ocsp_response(reply.body).responses)
        assert [one.certificate_status for one in answers] == [other.OCSPCertStatus.GOOD, other.OCSPCertStatus.UNKNOWN]
        inner.append(_requests(request(world.ca, 5, role="agents")))
        assert (await world.post(tlv.sequence(tlv.sequence(tlv.sequence(*inner))))).body == UNAUTHORIZED

    def _requests(der: bytes) -> bytes:
        at, end = tlv.only(der, 0, len(der), tlv.SEQUENCE)
        at, end = tlv.only(der, at, end, tlv.SEQUENCE)
        at, end = tlv.only(der, at, end, tlv.SEQUENCE)
        return der[at:end]

    run(tmp_path, act)


@pytest.mark.parametrize("last_octet", [b"\x00", b"\x85"])
def test_a_serial_number_that_no_certificate_can_have_is_unknown(tmp_path: Path, last_octet: bytes) -> None:
    async def act(world: World) -> None:
        reply = await world.post(request(world.ca, 5)[:-1] + last_octet)
        assert reply.status == 200
        assert (
            next(iter(other.load_der_ocsp_response(reply.body).responses)).certificate_status
            is other.OCSPCertStatus.UNKNOWN
        )

    run(tmp_path, act)


def test_signers_are_renewed_at_half_their_life_and_answers_never_outlive_them(tmp_path: Path) -> None:
    clock = FixedClock()

    async def act(world: World) -> None:
        issued = await issue_ldevid(world.ca)
        first = await world.ask(issued)
        clock.advance(13 * 3600 + 40 * 60)
        assert await world.responder._renew()
        second = await world.ask(issued)
        assert second.certificates[0] != first.certificates[0]
        assert second.responder_key_hash != first.responder_key_hash
        clock.advance(23 * 3600 + 30 * 60)
        late = await world.ask(issued)
        assert late.next_update_utc == late.certificates[0].not_valid_after_utc < clock.now() + timedelta(hours=1)
        clock.advance(3600)
        assert (await world.post(request(world.ca, issued.serial))).body == TRY_LATER

    run(tmp_path, act, clock, signer_days=1)


def test_without_a_certificate_for_its_signer_the_responder_asks_for_patience_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(world: World) -> None:
        issued = await issue_ldevid(world.ca)
        responder = OcspResponder(world.ca, world.store, world.clock)
        with monkeypatch.context() as patched:

            async def full(*args: object, **kwargs: object) -> Issued:
                raise DiskFull("the disk is nearly full")

            patched.setattr(world.ca, "issue", full)
            await responder.start()
        asked = request(world.ca, issued.serial)
        answer = responder.respond(asked)
        assert not isinstance(answer, Awaitable) and answer.der == TRY_LATER
        assert await responder._renew()
        answer = responder.respond(asked)
        assert not isinstance(answer, Awaitable) and answer.tag

    run(tmp_path, act)


class SlowSigner:
    """A key in a token: signing takes a while."""

    def __init__(self, name: str) -> None:
        self._inner = KeySigner(key(name))
        self.started = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.go = threading.Event()

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._inner.public_key()

    def sign(self, data: bytes) -> bytes:
        self._loop.call_soon_threadsafe(self.started.set)
        assert self.go.wait(10)
        return self._inner.sign(data)


def test_a_revocation_that_overtakes_a_slow_signature_is_not_hidden_by_it(tmp_path: Path) -> None:
    async def act(world: World) -> None:
        signers = {role: SlowSigner(f"ocsp {role}") for role in ROLES}
        responder = OcspResponder(world.ca, world.store, world.clock, signers=signers)
        await responder.start()
        issued = await issue_ldevid(world.ca)
        asked = request(world.ca, issued.serial)
        slow = asyncio.ensure_future(_wait(responder, asked))
        await signers["devices"].started.wait()
        await world.ca.revoke("devices", issued.serial, actor=ACTOR)
        signers["devices"].go.set()
        before = other.load_der_ocsp_response(await slow)
        assert before.certificate_status is other.OCSPCertStatus.GOOD  # it was, when the question came
        after = other.load_der_ocsp_response(await _wait(responder, asked))
        assert after.certificate_status is other.OCSPCertStatus.REVOKED

    async def _wait(responder: OcspResponder, asked: bytes) -> bytes:
        answer = responder.respond(asked)
        assert isinstance(answer, Awaitable)
        return (await answer).der

    run(tmp_path, act)


@asynccontextmanager
async def listening(app: App) -> AsyncIterator[str]:
    listener = Listener("pki", app)
    port = await listener.open_tcp("127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await listener.close()


@pytest.mark.interop
@pytest.mark.parametrize("digest", ["-sha1", "-sha256"])
@pytest.mark.parametrize("nonce", ["-nonce", "-no_nonce"])
def test_openssl_ocsp_believes_the_answers(tmp_path: Path, digest: str, nonce: str) -> None:
    async def act(world: World) -> None:
        good, bad = await issue_ldevid(world.ca), await issue_ldevid(world.ca, "bad")
        await world.ca.revoke("devices", bad.serial, reason="superseded", actor=ACTOR)
        (tmp_path / "good.pem").write_bytes(good.certificate.public_bytes(Encoding.PEM))
        (tmp_path / "bad.pem").write_bytes(bad.certificate.public_bytes(Encoding.PEM))
        devices = certificate_file(home(), "devices")
        async with listening(world.app) as url:
            process = await asyncio.create_subprocess_exec(
                "openssl", "ocsp", "-url", f"{url}/ocsp", "-issuer", devices, nonce, digest,
                "-cert", tmp_path / "good.pem", "-cert", tmp_path / "bad.pem", "-serial", "0x1234",
                "-CAfile", certificate_file(home(), "root"), "-verify_other", devices,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            output, _ = await process.communicate()
        text = output.decode()
        assert process.returncode == 0, text
        assert "Response verify OK" in text
        assert "good.pem: good" in text
        assert "bad.pem: revoked" in text
        assert "Reason: superseded" in text
        assert "0x1234: unknown" in text
        assert "WARNING" not in text.replace("WARNING: no nonce in response", "" if nonce == "-no_nonce" else "X")

    run(tmp_path, act, SystemClock())
