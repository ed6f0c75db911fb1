"""serverkeygen: who gets a key that is made here, how it travels, and that nothing of it stays."""

from __future__ import annotations

import base64
import logging
import re
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from appliance.registrar.errors import SharedKeysUnusable
from appliance.registrar.est_policy import read_shared_keys
from appliance.settings import SettingsInvalid, load_settings
from appliance.web.tls import TlsFront
from est import csr, der, profiles, serverkeygen
from est.client import EstClient
from est.cms import read_certs_only
from est.errors import ReplyNotAccepted
from est.exchange import Call, Reply
from est.linking import binding_text
from est.serverkeygen import ASYMMETRIC_DECRYPT_KEY_IDENTIFIER, DECRYPT_KEY_IDENTIFIER, SMIME_CAPABILITIES
from tests.appliance.registrar.test_approvals import ready
from tests.appliance.registrar.test_est_labels import under
from tests.appliance.registrar.test_est_service import san_of
from tests.appliance.registrar.world import ADMIN, World, basic, certificate_in, enroll_call, play
from tests.est.pki import campus
from tests.support import key

PLAIN = {"serverkeygen": "plain"}
SHARED_ID, SHARED_KEY = b"\x01\x02", bytes(range(32))


def request(attributes: dict[str, bytes] | None = None, **more: Any) -> bytes:
    """A request whose own key is a placeholder."""
    asked = {kind: (value,) for kind, value in (attributes or {}).items()}
    placeholder = ec.generate_private_key(ec.SECP256R1())
    return csr.build(**{"subject": x509.Name([]), "key": placeholder, "attributes": asked, **more})


def octets(value: bytes) -> bytes:
    return der.tlv(der.OCTET_STRING, value)


def keygen(asked: bytes, **headers: str) -> Call:
    call = EstClient().serverkeygen_call(asked)
    return replace(call, headers={**call.headers, **headers})


def unpacked(reply: Reply) -> tuple[str, bytes, x509.Certificate]:
    assert reply.status == 200, reply
    kind, made, certificates = serverkeygen.read_reply(reply)
    (certificate,) = read_certs_only(certificates)
    return kind, made, certificate


def told(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.body.decode().partition(":")[0]


def shared_file(folder: Path) -> Path:
    file = folder / "shared-keys"
    file.write_text(f"# racks\n{SHARED_ID.hex()} {SHARED_KEY.hex()}  # rack 7\n\n")
    file.chmod(0o600)
    return file


@pytest.mark.req("E-170", "E-6")
def test_no_keys_are_made_unless_a_label_says_so(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        for label, status in (("", 404), ("lab", 404), ("keys", 200)):
            call = keygen(request())
            reply = await world.handle(under(label, call) if label else call, device.peer)
            # a pledge belongs to the path without a label
            assert reply.status == (403 if status == 200 else status)
            assert status == 200 or b"no keys are made here" in reply.body

    play(tmp_path, story, est={"labels": {"lab": {}, "keys": PLAIN}})


@pytest.mark.req("E-171", "E-174", "E-178", "E-60")
def test_a_one_time_secret_gets_a_key_and_its_certificate_and_nothing_of_the_key_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def story(world: World) -> None:
        nobody = await world.handle(keygen(request()), world.peer())
        assert nobody.status == 401 and "www-authenticate" in nobody.headers
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        asked = bytearray(request())
        asked[-1] ^= 1  # its signature means nothing
        call = keygen(bytes(asked), **basic(made["credentials"]))
        kind, pkcs8, certificate = unpacked(await world.handle(call, world.peer()))
        private = load_der_private_key(pkcs8, None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert kind == "application/pkcs8" and private.public_key() == certificate.public_key()
        assert certificate.public_key() != csr.read(request()).public_key
        (issued,) = await world.audited("ldevid-issued")
        assert (issued["fields"]["made_key"], issued["fields"]["linked"]) == ("plain", False)
        # not kept to answer with: the same again finds the secret spent, and no second certificate was made
        assert (await world.handle(call, world.peer())).status == 401
        assert len(await world.audited("ldevid-issued")) == 1
        number = private.private_numbers().private_value.to_bytes(32, "big")
        needles = (number, number.hex().encode(), base64.b64encode(number)[:40], pkcs8)
        for file in tmp_path.rglob("*"):
            if file.is_file():
                assert not [one for one in needles if one in file.read_bytes()], file
        assert number.hex() not in caplog.text and base64.b64encode(pkcs8)[:64].decode() not in caplog.text

    play(tmp_path, story, est=PLAIN)


@pytest.mark.req("E-175")
def test_under_a_label_that_encrypts_only_a_key_never_goes_in_clear(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        own = device.identity.certificate
        asked = {
            "no key": ({}, "key-encryption-required"),
            "unknown shared": ({DECRYPT_KEY_IDENTIFIER: octets(b"\x09")}, "decrypt-key-unknown"),
            "unknown own": ({ASYMMETRIC_DECRYPT_KEY_IDENTIFIER: octets(b"\x09" * 20)}, "decrypt-key-unknown"),
            "both": (
                {DECRYPT_KEY_IDENTIFIER: octets(SHARED_ID), ASYMMETRIC_DECRYPT_KEY_IDENTIFIER: octets(b"\x09")},
                "csr-malformed",
            ),
            "cannot AES": (
                {
                    DECRYPT_KEY_IDENTIFIER: octets(SHARED_ID),
                    SMIME_CAPABILITIES: der.sequence(der.sequence(der.oid("1.2.840.113549.3.7"))),
                },
                "key-not-accepted",
            ),
        }
        for attributes, reason in asked.values():
            assert told(await world.handle(keygen(request(attributes)), device.peer)) == (400, reason)
        can = der.sequence(der.sequence(der.oid("2.16.840.1.101.3.4.1.42")))
        shared = {DECRYPT_KEY_IDENTIFIER: octets(SHARED_ID), SMIME_CAPABILITIES: can}
        kind, sealed, certificate = unpacked(await world.handle(keygen(request(shared)), device.peer))
        assert kind == "application/pkcs7-mime; smime-type=server-generated-key"
        assert b"\x06\x09" + bytes.fromhex("2a864886f70d010703") in sealed  # id-envelopedData
        assert SHARED_ID in sealed and certificate.public_key() != own.public_key()
        assert [one["fields"]["made_key"] for one in await world.audited("ldevid-issued")] == ["symmetric"]

    file = shared_file(tmp_path)
    play(tmp_path, story, est={"serverkeygen": "encrypted", "shared_keys_file": file})


@pytest.mark.req("E-175", "E-121")
def test_a_proxy_gets_its_next_key_sealed_for_the_one_that_it_has(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        old = await device.bootstrap()
        peer, ski = device.with_ldevid(old), profiles.key_identifier(device.key.public_key())
        names = {"subject": old.subject, "san": san_of(old)}
        attributes = {ASYMMETRIC_DECRYPT_KEY_IDENTIFIER: octets(ski)}
        other = await world.handle(keygen(request(attributes)), peer)
        assert told(other) == (403, "names-changed")
        kind, _, new = unpacked(await world.handle(keygen(request(attributes, **names)), peer))
        assert kind.endswith("server-generated-key")
        assert (new.subject, san_of(new)) == (old.subject, san_of(old)) and new.public_key() != old.public_key()
        (renewed,) = await world.audited("ldevid-renewed")
        assert renewed["fields"]["made_key"] == "asymmetric"
        # another pair each time, both on record (E-178)
        unpacked(await world.handle(keygen(request(attributes, **names)), peer))
        assert len(await world.audited("ldevid-renewed")) == 2

    play(tmp_path, story, est={"serverkeygen": "encrypted"})


@pytest.mark.req("E-130", "E-134", "E-171")
def test_a_request_for_a_key_waits_and_is_known_again_by_its_placeholder(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        asked, other = request(), request()
        for _ in range(2):
            reply = await world.handle(keygen(asked), device.peer)
            assert (reply.status, reply.body) == (202, b"")
        (row,) = await world.part.approvals.every()
        assert (row["operation"], row["state"]) == ("serverkeygen", "pending")
        await world.part.approvals.approve(row["id"], actor=ADMIN)
        assert (await world.handle(keygen(other), device.peer)).status == 202
        (row,) = await world.part.approvals.every()
        await world.part.approvals.approve(row["id"], actor=ADMIN)
        unpacked(await world.handle(keygen(other), device.peer))

    play(tmp_path, story, est={**PLAIN, "approval": "manual"})


@pytest.mark.req("E-177", "E-163", "E-150")
def test_rsa_keys_are_long_enough_for_libest_and_csrattrs_bind_the_names_but_not_our_key(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        wanted = EstClient().read_csrattrs(await world.handle(EstClient().csrattrs_call(), device.peer))
        assert told(await world.handle(keygen(request()), device.peer)) == (400, "csr-attribute-missing")
        san = x509.SubjectAlternativeName.oid.dotted_string
        (extension,) = [one for one in wanted.extensions if one.kind == san]
        (proxy,) = await world.part.inventory.proxies()
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(proxy["identifier"])])
        assert extension.value == names.public_bytes()
        reply = await world.handle(keygen(request(subject=profiles.name("nas"), san=names)), device.peer)
        _, pkcs8, certificate = unpacked(reply)
        assert isinstance(load_der_private_key(pkcs8, None), rsa.RSAPrivateKey)
        assert isinstance(certificate.public_key(), rsa.RSAPublicKey)
        part = re.search(rb"pkcs8\r\n.*?\r\n\r\n(.*?)\r\n--", reply.body, re.DOTALL)
        assert part is not None and len(part[1]) >= 256

    play(tmp_path, story, est={**PLAIN, "serverkeygen_key": "rsa-2048"})


@pytest.mark.req("E-171", "E-73")
def test_a_binding_in_a_request_for_a_key_is_checked_and_links_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        peer = world.peer(device.identity, bind=lambda: (b"e" * 32,))
        wrong = await world.handle(keygen(request(challenge_password=b"guess")), peer)
        assert told(wrong) == (400, "tls-linking-failed")
        unpacked(await world.handle(keygen(request(challenge_password=binding_text(b"e" * 32))), peer))
        (issued,) = await world.audited("ldevid-issued")
        assert issued["fields"]["linked"] is False

    play(tmp_path, story, est=PLAIN)


@pytest.mark.req("E-172")
def test_every_cipher_suite_of_the_device_port_is_as_strong_as_the_keys_that_are_made() -> None:
    """P-256, RSA-2048 and RSA-3072 have at most 128 bits (NIST SP 800-57, part 1, table 2)."""
    every = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    every.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    strength = {one["name"]: one["strength_bits"] for one in every.get_ciphers()}
    assert min(strength.values()) < 128
    side = TlsFront(key("campus proxy"), campus().proxy, ()).side()
    offered = side._connection.get_cipher_list()
    assert len(offered) > 5
    assert [name for name in offered if strength[name] < 128] == []


@pytest.mark.parametrize(
    "text", ["0102", "0102 00", "zz 00112233445566778899aabbccddeeff", f"01 {'00' * 16}\n01 {'11' * 16}", "1 2 3"]
)
def test_a_file_of_shared_keys_holds_nothing_else_and_its_refusal_shows_no_key(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(SharedKeysUnusable) as caught:
        read_shared_keys(file)
    assert "line" in caught.value.detail and not [
        word for word in text.split() if len(word) > 4 and word in str(caught)
    ]


def test_keys_that_the_label_would_not_take_stop_the_start(tmp_path: Path) -> None:
    file = tmp_path / "appliance.toml"
    file.write_text('[est.labels.lab]\nkey = "p-384"\nserverkeygen = "plain"\n')
    with pytest.raises(SettingsInvalid, match="serverkeygen_key"):
        load_settings(tmp_path, file=file)


PARTS = (
    b"Content-Type: application/pkcs8\r\n\r\nMAA=\r\n",
    b"content-type: application/pkcs7-mime;\r\n smime-type=certs-only\r\n"
    b"Content-Transfer-Encoding: binary\r\n\r\nMAM=\r\n",
)


@pytest.mark.req("E-173", "E-207")
def test_the_two_parts_are_read_in_either_order_between_preamble_and_epilogue() -> None:
    first, second = PARTS
    for parts in ((first, second), (second, first)):
        body = b"a preamble\r\n" + b"".join(b"--x y\r\n" + part for part in parts) + b"--x y--\r\nan epilogue --x y\r\n"
        for ends in (body, body.replace(b"\r\n", b"\n")):
            with pytest.raises(ReplyNotAccepted, match="cannot be read"):  # MAM= is no whole DER object
                serverkeygen.read_reply(Reply(200, 'Multipart/Mixed; boundary="x y"', body=ends))
            good = ends.replace(b"MAM=", b"MAA=")
            found = serverkeygen.read_reply(Reply(200, 'Multipart/Mixed; boundary="x y"', body=good))
            assert found == ("application/pkcs8", b"0\0", b"0\0")
    ok = [b"--b\r\n" + one.replace(b"MAM=", b"MAA=") for one in PARTS]
    for bad in (ok[:1], [*ok, ok[0]], [*ok, ok[1]], [ok[0], ok[0]], []):
        with pytest.raises(ReplyNotAccepted):
            serverkeygen.read_reply(Reply(200, "multipart/mixed; boundary=b", body=b"".join(bad) + b"--b--"))
    for media_type in ("multipart/mixed", "text/plain; boundary=b"):
        with pytest.raises(ReplyNotAccepted):
            serverkeygen.read_reply(Reply(200, media_type, body=b"".join(ok) + b"--b--"))
    with pytest.raises(ReplyNotAccepted, match="do not end"):
        serverkeygen.read_reply(Reply(200, "multipart/mixed; boundary=b", body=b"".join(ok)))


def test_a_made_key_can_be_used_as_it_is(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        _, pkcs8, certificate = unpacked(await world.handle(keygen(request()), device.peer))
        device.key = load_der_private_key(pkcs8, None)  # type: ignore[assignment]
        device.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        again = device.csr(subject=certificate.subject, san=san_of(certificate))
        reply = await world.handle(enroll_call(again, again=True), device.with_ldevid(certificate))
        assert certificate_in(reply).public_key() == certificate.public_key()

    play(tmp_path, story, est=PLAIN)
