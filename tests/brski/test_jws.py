"""JWS vouchers: the one form that is read, and everything near it that is not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import joserfc.jws
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from joserfc.jwk import ECKey

from brski import (
    Assertion,
    MasaPolicy,
    MediaTypeUnsupported,
    RegistrarPolicy,
    VoucherMalformed,
    VoucherRequestMalformed,
    VoucherRequestSignatureInvalid,
    VoucherSignatureInvalid,
    jws,
    leaves,
    paths,
    voucher,
    voucher_request,
)
from brski.errors import BrskiError, FormatNotAcceptable, JwsMalformed, JwsNotAccepted, JwsSignatureInvalid
from est import jose
from est.errors import BodyTooLarge, KeyNotAccepted
from lab.factory import Identity
from tests.brski.trio import Trio, campus, device, factory
from tests.support import NOW

JWS = paths.VOUCHER_JWS_JSON
CONTENT = b'{"a":1}'


def trio(**changes: Any) -> Trio:
    return Trio(media_type=JWS, **changes)


PVR = trio().ask().body
RVR = trio().consider().call.body
VOUCHER = trio().issue(trio().consider().call).reply.body


def header_of(body: bytes) -> dict[str, Any]:
    header = json.loads(jose.unbase64url(json.loads(body)["signatures"][0]["protected"].encode()))
    assert isinstance(header, dict)
    return header


def made(
    header: dict[str, Any] | bytes | None = None,
    *,
    by: Identity | None = None,
    content: bytes = CONTENT,
    sign: Callable[[bytes], bytes] | None = None,
    **changes: Any,
) -> bytes:
    """A JWS of the pledge over `content`, with a header and top-level members of the test's choice."""
    by = by or device()
    if header is None:
        header = {}
    if isinstance(header, dict):
        x5c = [base64.b64encode(by.certificate.public_bytes(Encoding.DER)).decode()]
        header = {"alg": "ES256", "typ": jws.TYP, "x5c": x5c} | header
        header = json.dumps({name: value for name, value in header.items() if value is not ...}).encode()
    protected, payload = jose.base64url(header), jose.base64url(content)
    data = f"{protected}.{payload}".encode()
    signature = sign(data) if sign else jose.write_ecdsa(by.signer.sign(data), 32)
    one = {"protected": protected, "signature": jose.base64url(signature)}
    return json.dumps({"payload": payload, "signatures": [one]} | changes).encode()


def signature(body: bytes) -> dict[str, Any]:
    one = json.loads(body)["signatures"][0]
    assert isinstance(one, dict)
    return one


def edited(change: Callable[[dict[str, Any]], object], body: bytes | None = None) -> bytes:
    document = json.loads(body or made())
    change(document)
    return json.dumps(document).encode()


@pytest.mark.req("B-441", "B-442", "B-443", "B-447", "B-201", "B-202", "B-261")
@pytest.mark.parametrize(("body", "chain"), [(PVR, 2), (RVR, 2), (VOUCHER, 2)], ids=["pvr", "rvr", "voucher"])
def test_what_we_send_is_general_json_with_the_chain_in_x5c(body: bytes, chain: int) -> None:
    document = json.loads(body)
    assert list(document) == ["payload", "signatures"] and len(document["signatures"]) == 1
    assert set(document["signatures"][0]) == {"protected", "signature"}
    header = header_of(body)
    assert (header["alg"], header["typ"]) == ("ES256", "voucher-jws+json")
    assert len(header["x5c"]) >= chain - 1
    assert len(jose.unbase64url(document["signatures"][0]["signature"].encode())) == 64
    opened = jws.unseal(body)
    assert [base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in opened.certificates] == header["x5c"]


class Roomy(joserfc.jws.JWSRegistry):
    """joserfc bounds a header to 512 octets, which no x5c fits into."""

    max_header_length = 16_384


@pytest.mark.interop
@pytest.mark.req("B-441", "B-442", "B-444", "B-445")
@pytest.mark.parametrize("body", [PVR, RVR, VOUCHER], ids=["pvr", "rvr", "voucher"])
def test_joserfc_verifies_what_we_send(body: bytes) -> None:
    signer = jws.unseal(body).certificates[0]
    key = ECKey.import_key(signer.public_bytes(Encoding.PEM).decode())
    opened = joserfc.jws.deserialize_json(json.loads(body), key, registry=Roomy(algorithms=["ES256"]))
    assert opened.payload == jws.unseal(body).content


@pytest.mark.req("B-211", "B-202", "B-204", "B-447", "B-448")
def test_the_pledges_format_goes_to_the_masa_and_comes_back() -> None:
    world = trio()
    sent = world.ask()
    assert (sent.media_type, sent.headers["accept"]) == (JWS, JWS)
    exchange = world.consider(sent)
    assert (exchange.call.media_type, exchange.call.headers["accept"]) == (JWS, JWS)
    asked, _ = voucher_request.unseal(exchange.call.body, JWS)
    assert asked.prior_signed_voucher_request == sent.body
    leaf = json.loads(jws.unseal(exchange.call.body).content)[voucher_request.KEY]["prior-signed-voucher-request"]
    assert leaf == base64.b64encode(sent.body).decode()
    grant = world.issue(exchange.call)
    assert grant.reply.media_type == JWS
    answer = exchange.reply(exchange.conclude(grant.reply, NOW))
    assert (answer.media_type, answer.body) == (JWS, grant.reply.body)
    assert world.accept(answer, sent).assertion is Assertion.PROXIMITY
    log = exchange.read_audit_log(world.masa.audit_log(exchange.audit_log_call, world, now=NOW))
    assert len(log.events) == 1


@pytest.mark.req("B-448", "B-287")
def test_a_pledges_request_in_the_other_format_does_not_stand_inside() -> None:
    cms = Trio().ask()
    asked = json.loads(jws.unseal(RVR).content)
    asked[voucher_request.KEY]["prior-signed-voucher-request"] = leaves.write_binary(cms.body)
    world = trio()
    with pytest.raises(BrskiError) as refused:
        world.issue(world.registrar_call(asked))
    assert refused.value.reason == "prior-request-invalid"


@pytest.mark.req("B-211", "B-212", "B-226", "B-227")
def test_formats_are_limited_by_policy() -> None:
    only_cms = frozenset({paths.VOUCHER_CMS_JSON})
    world = trio(registrar_policy=RegistrarPolicy(formats=only_cms))
    with pytest.raises(MediaTypeUnsupported) as refused:
        world.consider()
    assert refused.value.fields["supported"] == (paths.VOUCHER_CMS_JSON,)
    old = trio(masa_policy=MasaPolicy(formats=only_cms))
    exchange = old.consider()
    for ask in (lambda: old.issue(exchange.call), lambda: old.masa.audit_log(exchange.audit_log_call, old, now=NOW)):
        with pytest.raises(MediaTypeUnsupported):
            ask()
    with pytest.raises(FormatNotAcceptable):
        trio().consider(replace(trio().ask(), headers={"accept": paths.VOUCHER_CMS_JSON}))


@pytest.mark.req("B-441")
@pytest.mark.parametrize(
    "body",
    [
        f"{signature(made())['protected']}.{json.loads(made())['payload']}.{signature(made())['signature']}".encode(),
        edited(lambda document: document.update(document.pop("signatures")[0])),
        edited(lambda document: document.update(document["signatures"][0])),
        edited(lambda document: document.update(header={})),
        edited(lambda document: document.pop("signatures")),
        edited(lambda document: document.pop("payload")),
        edited(lambda document: document.update(signatures={})),
        edited(lambda document: document.update(signatures=["x"])),
        edited(lambda document: document.update(payload=None)),
        edited(lambda document: document["signatures"][0].pop("protected")),
        edited(lambda document: document["signatures"][0].pop("signature")),
        edited(lambda document: document["signatures"][0].update(header=[])),
        b"[" + made() + b"]",
        made() + b"{}",
        made()[:-1],
        b"",
        b"\xef\xbb\xbf" + made(),
        made().replace(b'"payload"', b'"payload": "", "payload"', 1),
    ],
)
def test_compact_flattened_mixed_and_broken_forms_are_refused(body: bytes) -> None:
    with pytest.raises((JwsMalformed, JwsNotAccepted)):
        jws.unseal(body)


@pytest.mark.req("B-427", "B-442")
def test_duplicate_names_are_refused_also_inside_the_header() -> None:
    x5c = header_of(made())["x5c"]
    header = f'{{"alg":"none","alg":"ES256","x5c":{json.dumps(x5c)}}}'.encode()
    with pytest.raises(JwsMalformed):
        jws.unseal(made(header))
    twice = edited(lambda document: None).replace(b'"protected"', b'"protected": "e30", "protected"', 1)
    with pytest.raises(JwsMalformed):
        jws.unseal(twice)


@pytest.mark.req("B-446", "B-404")
@pytest.mark.parametrize(
    "how", [lambda both: both[:1] * 2, lambda both: both[::-1], lambda both: both, lambda both: []]
)
def test_anything_but_one_signature_is_refused(how: Callable[[list[Any]], list[Any]]) -> None:
    both = [signature(made()), signature(made(by=factory().masa))]
    with pytest.raises((JwsMalformed, JwsNotAccepted)):
        jws.unseal(edited(lambda document: document.update(signatures=how(both))))


@pytest.mark.req("B-444", "T-22")
def test_alg_none_is_refused_with_and_without_a_signature() -> None:
    for alg in ("none", "None", "NONE", ""):
        for sign in (None, lambda data: b""):
            with pytest.raises(JwsNotAccepted):
                jws.unseal(made({"alg": alg}, sign=sign))


@pytest.mark.req("B-444", "T-22")
@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_a_mac_keyed_with_the_public_key_is_refused(encoding: Encoding) -> None:
    secret = device().certificate.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    for alg, digest in (("HS256", hashlib.sha256), ("HS512", hashlib.sha512)):
        with pytest.raises(JwsNotAccepted):
            jws.unseal(made({"alg": alg}, sign=lambda data, d=digest: hmac.digest(secret, data, d)))  # type: ignore[misc]


@pytest.mark.req("B-444")
@pytest.mark.parametrize(
    "alg", ["ES384", "ES512", "ES256K", "RS256", "PS256", "EdDSA", "es256", None, 256, ["ES256"], ...]
)
def test_alg_is_the_one_of_the_key(alg: object) -> None:
    assert jws.unseal(made({"alg": "ES256"})).algorithm == "ES256"
    with pytest.raises(JwsNotAccepted):
        jws.unseal(made({"alg": alg}))


@pytest.mark.req("B-444", "T-22")
@pytest.mark.parametrize("name", ["alg", "x5c", "jwk", "x5u", "jku", "kid", "crit", "typ", "b64", "x5t#S256"])
def test_what_says_how_to_verify_counts_in_the_protected_header_only(name: str) -> None:
    moved = header_of(made()).get(name, "x")
    unprotected = {"header": {name: moved}}
    with pytest.raises(JwsNotAccepted):
        jws.unseal(edited(lambda document: document["signatures"][0].update(unprotected)))
    with pytest.raises(JwsNotAccepted):
        jws.unseal(edited(lambda document: document["signatures"][0].update(unprotected), made({name: ...})))


@pytest.mark.req("B-444")
def test_names_in_both_headers_are_refused_and_a_harmless_unprotected_one_proves_nothing() -> None:
    note = {"header": {"note": "hello"}}
    assert jws.unseal(edited(lambda document: document["signatures"][0].update(note))).content == CONTENT
    with pytest.raises(JwsNotAccepted):
        jws.unseal(edited(lambda document: document["signatures"][0].update(note), made({"note": "x"})))


@pytest.mark.req("B-444")
@pytest.mark.parametrize("crit", [["b64"], ["exp"], [], None, ["x5c"]])
def test_critical_extensions_are_refused_as_none_is_known(crit: object) -> None:
    with pytest.raises(JwsNotAccepted):
        jws.unseal(made({"crit": crit, "exp": 1}))
    with pytest.raises(JwsNotAccepted):
        jws.unseal(made({"b64": False}))


@pytest.mark.req("B-442")
def test_typ_may_be_missing_and_is_exact_otherwise() -> None:
    assert jws.unseal(made({"typ": ...})).content == CONTENT
    for typ in ("JWT", "application/voucher-jws+json", "VOUCHER-JWS+JSON", "voucher-jws+json ", "", None, 1):
        with pytest.raises(JwsNotAccepted):
            jws.unseal(made({"typ": typ}))


@pytest.mark.req("B-442")
def test_x5c_is_standard_base64_with_padding() -> None:
    der = device().certificate.public_bytes(Encoding.DER)
    good = base64.b64encode(der).decode()
    assert jws.unseal(made({"x5c": [good]})).certificates == (device().certificate,)
    wrong = [
        base64.urlsafe_b64encode(der + b"\xff\xff\xff").decode(),
        good + "=",
        good[:64] + "\n" + good[64:],
        good + "\u00e9",
        None,
        7,
    ]
    for value in wrong:
        with pytest.raises(JwsMalformed):
            jws.unseal(made({"x5c": [value]}))
    for value in ([], None, good, {"0": good}, ..., [good] * 33):
        with pytest.raises(JwsNotAccepted):
            jws.unseal(made({"x5c": value}))


@pytest.mark.req("B-443")
def test_the_chain_may_be_missing_where_the_issuer_is_an_anchor() -> None:
    world = trio()
    alone = replace(world.factory.masa, issuers=())
    content = json.loads(jws.unseal(VOUCHER).content)
    accepted = world.accept(world.voucher_reply(content, by=alone))
    assert accepted.serial_number == world.serial


@pytest.mark.req("B-445")
def test_signatures_in_der_or_of_another_length_are_refused() -> None:
    by = device()
    for sign in (
        by.signer.sign,
        lambda data: b"",
        lambda data: jose.write_ecdsa(by.signer.sign(data), 32)[:-1],
        lambda data: jose.write_ecdsa(by.signer.sign(data), 48),
    ):
        with pytest.raises(JwsMalformed):
            jws.unseal(made(sign=sign))
    with pytest.raises(JwsSignatureInvalid):
        jws.unseal(made(sign=lambda data: bytes(64)))


@pytest.mark.req("B-441", "B-445")
@pytest.mark.parametrize("part", ["payload", "protected", "signature"])
@pytest.mark.parametrize("end", ["=", "==", " ", "\n", "+", "/", "\u00e9"])
def test_padding_and_other_alphabets_are_refused(part: str, end: str) -> None:
    def change(document: dict[str, Any]) -> None:
        place = document if part == "payload" else document["signatures"][0]
        place[part] += end

    with pytest.raises((JwsMalformed, JwsSignatureInvalid)):
        jws.unseal(edited(change))


P384 = ec.generate_private_key(ec.SECP384R1())
RSA = rsa.generate_private_key(65537, 2048)
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), 32)


@pytest.mark.req("B-444", "B-407")
@pytest.mark.parametrize(
    ("alg", "key", "sign"),
    [
        ("ES384", P384, lambda data: jose.write_ecdsa(P384.sign(data, ec.ECDSA(hashes.SHA384())), 48)),
        ("RS256", RSA, lambda data: RSA.sign(data, padding.PKCS1v15(), hashes.SHA256())),
        ("PS256", RSA, lambda data: RSA.sign(data, PSS, hashes.SHA256())),
    ],
    ids=["ES384", "RS256", "PS256"],
)
def test_p384_and_rsa_signers_have_their_own_algorithms(alg: str, key: Any, sign: Callable[[bytes], bytes]) -> None:
    x5c = {"x5c": [base64.b64encode(self_signed(key)).decode()]}
    assert jws.unseal(made({"alg": alg} | x5c, sign=sign)).algorithm == alg
    for other in ("ES256", "ES384", "RS256", "PS256", "RS384", "RS512", "RS1", "none"):
        if other != alg:
            with pytest.raises((JwsNotAccepted, JwsSignatureInvalid)):
                jws.unseal(made({"alg": other} | x5c, sign=sign))


@pytest.mark.req("B-407", "B-444")
@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP256K1())])
def test_weak_keys_and_other_curves_are_refused(key: Any) -> None:
    alg = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
    with pytest.raises(KeyNotAccepted):
        jws.unseal(made({"alg": alg, "x5c": [base64.b64encode(self_signed(key)).decode()]}))


def self_signed(key: Any) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.req("B-441", "T-23", "B-411")
def test_size_and_depth_are_bounded() -> None:
    with pytest.raises(BodyTooLarge):
        jws.unseal(made(content=b" " * jws.MAX_BYTES))
    with pytest.raises(JwsMalformed):
        jws.unseal(edited(lambda document: document.update(extra=json.loads("[" * 9 + "]" * 9))))


@pytest.mark.req("B-441")
def test_members_that_nobody_knows_are_ignored() -> None:
    assert jws.unseal(edited(lambda document: document.update(extra=1))).content == CONTENT


@pytest.mark.req("B-241", "B-321")
def test_kind_of_refusal_follows_the_artefact() -> None:
    for body, read, invalid, malformed in (
        (PVR, voucher_request.unseal, VoucherRequestSignatureInvalid, VoucherRequestMalformed),
        (VOUCHER, voucher.unseal, VoucherSignatureInvalid, VoucherMalformed),
    ):
        other = jose.base64url(b"{}")
        with pytest.raises(invalid):
            read(edited(lambda document: document.update(payload=other), body), JWS)
        with pytest.raises(malformed) as refused:
            read(edited(lambda document: document.update(signatures=[]), body), JWS)
        assert refused.value.fields["because"] == "jws-malformed"


@pytest.mark.req("B-421", "T-21")
def test_voucher_is_no_request_and_request_is_no_voucher() -> None:
    with pytest.raises(VoucherRequestMalformed):
        voucher_request.unseal(VOUCHER, JWS)
    for body in (PVR, RVR):
        with pytest.raises(VoucherMalformed):
            voucher.unseal(body, JWS)


@pytest.mark.req("B-212", "B-447")
def test_one_format_under_the_others_name_is_refused() -> None:
    with pytest.raises(VoucherRequestMalformed):
        voucher_request.unseal(PVR, paths.VOUCHER_CMS_JSON)
    with pytest.raises(VoucherRequestMalformed):
        voucher_request.unseal(Trio().ask().body, JWS)


@pytest.mark.req("B-428")
def test_escaped_slashes_are_plain_json() -> None:
    content = jws.unseal(PVR).content.replace(b"/", rb"\/")
    asked, _ = voucher_request.unseal(jws.seal(content, signer=device().signer, certificate=device().certificate), JWS)
    assert asked.proximity_registrar_cert == campus().certificate.public_bytes(Encoding.DER)


@pytest.mark.req("B-444", "B-445")
def test_every_flipped_byte_of_a_signed_part_is_refused() -> None:
    for part in ("payload", "protected", "signature"):
        for at in range(len(json.loads(PVR)["payload"] if part == "payload" else signature(PVR)[part])):

            def flip(document: dict[str, Any], part: str = part, at: int = at) -> None:
                place = document if part == "payload" else document["signatures"][0]
                text = place[part]
                place[part] = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]

            with pytest.raises((VoucherRequestMalformed, VoucherRequestSignatureInvalid)):
                voucher_request.unseal(edited(flip, PVR), JWS)
