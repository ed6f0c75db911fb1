"""Hostile bytes: whatever is damaged, only EstError comes out; whatever is written can be read."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from est import (
    Call,
    EstClient,
    EstServer,
    Reply,
    chains,
    cms,
    csr,
    der,
    paths,
    profiles,
    renaming,
    serverkeygen,
    transfer,
)
from est.errors import BodyMalformed, EstError
from est.signer import KeySigner
from tests.est.pki import campus, sign, terms
from tests.support import NOW, examples, key

BOTH = (cms.ID_DATA, cms.ID_CT_ANIMA_JSON_VOUCHER)
SERVER, CLIENT = EstServer(), EstClient()
SEALED = cms.seal(
    b'{"ietf-voucher:voucher":{}}',
    content_type=cms.ID_CT_ANIMA_JSON_VOUCHER,
    signer=KeySigner(key("campus proxy")),
    certificate=campus().proxy,
    certificates=(campus().ca,),
    signing_time=NOW,
)
REQUEST = csr.build(
    subject=profiles.name("proxy 1"),
    key=key("csr"),
    san=x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://campus.example/proxy/1")]),
    challenge_password=b"YWJj",
    extensions=[x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2")])],
)
CHANGE = renaming.write(profiles.name("proxy 2"), csr.read(REQUEST).san)
KEYGEN_REQUEST = csr.build(
    subject=profiles.name("proxy 1"),
    key=key("csr"),
    attributes={
        serverkeygen.DECRYPT_KEY_IDENTIFIER: (der.tlv(der.OCTET_STRING, b"k1"),),
        serverkeygen.SMIME_CAPABILITIES: (der.sequence(der.sequence(der.oid("2.16.840.1.101.3.4.1.42"))),),
    },
)
MADE = serverkeygen.reply(key("made"), campus().proxy, wrapped=True)
CERTIFICATE = campus().proxy.public_bytes(Encoding.DER)
BAG = cms.write_certs_only([campus().root, campus().ca])
ANCHORS = chains.TrustAnchors([campus().root])


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """The original with a few bytes changed, removed, inserted or doubled."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 4)):
            case 0:
                data[at] = draw(st.integers(0, 255))
            case 1:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 2:
                del data[at : at + draw(st.integers(1, 8))]
                data = data or bytearray(b"0")
            case 3:
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case _:
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


hostile = examples(400)


def only_our_refusals(read: object, data: object) -> None:
    try:
        read(data)  # type: ignore[operator]
    except EstError as refusal:
        assert refusal.reason and refusal.detail


@pytest.mark.req("B-411", "E-200", "E-207")
@hostile
@given(st.one_of(st.binary(max_size=300), damaged(SEALED)))
def test_damaged_cms_is_refused_by_us(data: bytes) -> None:
    only_our_refusals(lambda it: cms.unseal(it, content_types=BOTH), data)
    only_our_refusals(cms.read_certs_only, data)


@pytest.mark.req("B-411")
@hostile
@given(damaged(SEALED))
def test_what_still_unseals_says_what_was_signed(data: bytes) -> None:
    try:
        message = cms.unseal(data, content_types=BOTH)
    except EstError:
        return
    assert message.content == b'{"ietf-voucher:voucher":{}}'
    assert message.content_type == cms.ID_CT_ANIMA_JSON_VOUCHER
    assert message.signing_time == NOW


@pytest.mark.req("E-200", "E-207")
@hostile
@given(st.one_of(st.binary(max_size=300), damaged(REQUEST)))
def test_damaged_requests_are_refused_by_us(data: bytes) -> None:
    only_our_refusals(csr.read, data)


@pytest.mark.req("E-200", "E-207")
@hostile
@given(st.one_of(st.binary(max_size=300), damaged(transfer.write_wrapped(REQUEST))), st.text(max_size=20))
def test_damaged_bodies_are_refused_by_us(body: bytes, media_type: str) -> None:
    only_our_refusals(SERVER.read_enroll, Call("POST", paths.path("simpleenroll"), paths.PKCS10, body=body))
    only_our_refusals(SERVER.read_enroll, Call("POST", paths.path("simpleenroll"), media_type, body=body))


@pytest.mark.req("E-200", "E-207", "E-171")
@hostile
@given(st.one_of(damaged(KEYGEN_REQUEST), damaged(base64.b64encode(KEYGEN_REQUEST))))
def test_damaged_requests_for_keys_are_refused_by_us(body: bytes) -> None:
    only_our_refusals(SERVER.read_keygen, Call("POST", paths.path("serverkeygen"), paths.PKCS10, body=body))


@pytest.mark.req("E-207", "E-173")
@hostile
@given(damaged(MADE.body), st.one_of(st.just(MADE.media_type), st.text(max_size=40).map("multipart/mixed; ".__add__)))
def test_damaged_answers_with_keys_are_refused_by_us(body: bytes, media_type: str) -> None:
    only_our_refusals(serverkeygen.read_reply, Reply(200, media_type, body=body))


@pytest.mark.req("E-200", "E-120")
@hostile
@given(damaged(CHANGE))
def test_damaged_new_names_are_refused_by_us(value: bytes) -> None:
    def read(it: bytes) -> None:
        asked = csr.build(
            subject=profiles.name("proxy 1"), key=key("csr"), attributes={renaming.CHANGE_SUBJECT_NAME: (it,)}
        )
        found = renaming.read(csr.read(asked))
        assert found is None or found.common_name is None or found.subject_der is not None

    only_our_refusals(read, value)


@pytest.mark.req("E-200", "E-207")
@hostile
@given(st.one_of(damaged(base64.b64encode(BAG)), damaged(BAG).map(base64.b64encode)))
def test_damaged_replies_are_refused_by_us(body: bytes) -> None:
    reply = Reply(200, paths.CERTS_ONLY, body=body)
    only_our_refusals(lambda it: CLIENT.read_cacerts(it, at=NOW), reply)
    only_our_refusals(lambda it: CLIENT.read_enrolled(it, key("campus ca").public_key(), csr_der=REQUEST), reply)


@pytest.mark.req("E-200")
@hostile
@given(damaged(CERTIFICATE))
def test_damaged_certificates_are_refused_by_us_and_never_trusted(data: bytes) -> None:
    def everything(it: bytes) -> None:
        certificate = cms.read_certificate(it)
        only_our_refusals(lambda one: chains.check_pin([one, campus().ca], campus().root, at=None), certificate)
        only_our_refusals(chains.aki_of, certificate)
        only_our_refusals(chains.ski_of, certificate)
        only_our_refusals(chains.spki_sha256, certificate)
        only_our_refusals(lambda one: chains.TrustAnchors([one]), certificate)
        only_our_refusals(lambda one: SERVER.check_reenroll(csr.read(REQUEST), one), certificate)
        assert chains.is_self_signed(certificate) is False
        chains.check(certificate, [campus().ca], ANCHORS, at=NOW, policy=chains.CLIENT)
        assert it == CERTIFICATE

    only_our_refusals(everything, data)


@pytest.mark.req("E-10", "E-140")
@hostile
@given(st.text(max_size=30), st.text(max_size=60))
def test_any_method_and_path_gets_an_answer(method: str, path: str) -> None:
    only_our_refusals(SERVER.operation, Call(method, path))
    only_our_refusals(SERVER.operation, Call(method, f"/.well-known/est/{path}"))


@hostile
@given(st.binary(max_size=400))
def test_the_gate_takes_only_what_can_be_written_again(data: bytes) -> None:
    try:
        der.check(data)
    except BodyMalformed:
        return
    tag, start, stop = der.read_tlv(data, 0, len(data))
    assert der.tlv(tag, data[start:stop]) == data


@hostile
@given(st.integers(-(2**200), 2**200))
def test_integers_survive(value: int) -> None:
    data = der.integer(value)
    der.check(data)
    assert der.read_integer(data, (2, len(data))) == value


@hostile
@given(st.integers(0, 2), st.integers(0, 39), st.lists(st.integers(0, 2**40), max_size=10))
def test_object_identifiers_survive(first: int, second: int, rest: list[int]) -> None:
    dotted = ".".join(map(str, (first, second, *rest)))
    data = der.oid(dotted)
    der.check(data)
    assert der.dotted(data[2:]) == dotted


@hostile
@given(st.binary(max_size=3000), st.sampled_from([True, False, None]))
def test_base64_survives_every_layout(content: bytes, wrapped: bool | None) -> None:
    one = der.tlv(der.OCTET_STRING, content)
    assert transfer.read_base64(transfer.write_base64(one, wrapped=wrapped)) == one
    assert transfer.read_base64(transfer.write_wrapped(one)) == one


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


@hostile
@given(values, st.booleans())
def test_json_survives_unless_it_has_lone_surrogates_or_depth(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        assert transfer.read_json(text.encode("utf-8", "surrogatepass"), max_depth=30) == value
    except BodyMalformed:
        assert any(0xD800 <= ord(char) < 0xE000 for char in json.dumps(value, ensure_ascii=False))


@pytest.mark.req("E-200")
@hostile
@given(st.one_of(st.binary(max_size=200), st.text(alphabet='{}[]",:\\u0d89ef1e.-N ', max_size=80).map(str.encode)))
def test_any_bytes_are_json_or_refused_by_us(body: bytes) -> None:
    only_our_refusals(transfer.read_json, body)


@examples(60)
@given(
    st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=60),
    st.integers(1, 2**159 - 1),
    st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-._~/", min_size=1, max_size=80),
)
def test_every_shape_survives_signing_and_re_reading(common_name: str, serial: int, path: str) -> None:
    try:
        subject = profiles.name(common_name)
    except EstError:
        return
    shape = profiles.ldevid(
        terms(campus().ca, serial), subject, key("any").public_key(), identifier=f"spiffe://campus.example/{path}"
    )
    certificate = sign(shape, key("campus ca"))
    chains.check(certificate, [campus().ca], ANCHORS, at=NOW, policy=chains.CLIENT)


@given(st.binary(max_size=80), st.integers(0, 8), st.integers(0, 80), st.sampled_from([0x02, 0x04, 0x30, 0x31, 0xA0]))
def test_the_short_way_to_an_element_finds_what_the_long_way_finds(data: bytes, at: int, end: int, tag: int) -> None:
    end = min(end, len(data))

    def long_way() -> tuple[int, int]:
        found, start, stop = der.read_tlv(data, at, end)
        if found != tag:
            raise BodyMalformed("other tag")
        return start, stop

    try:
        expected = long_way()
    except BodyMalformed:
        with pytest.raises(BodyMalformed):
            der.expect(data, at, end, tag)
    else:
        assert der.expect(data, at, end, tag) == expected


@given(st.integers(0, 70_000), st.integers(-3, 3))
def test_an_element_of_any_length_is_found_and_one_that_is_cut_is_not(size: int, more: int) -> None:
    data = der.tlv(der.OCTET_STRING, bytes(size))
    assert der.expect(data, 0, len(data), der.OCTET_STRING)[1] == len(data)
    end = len(data) + more
    if 0 <= end < len(data):
        with pytest.raises(BodyMalformed):
            der.expect(data, 0, end, der.OCTET_STRING)
    padded = b"\x04\x82\x00" + bytes([min(size, 255)]) + bytes(min(size, 255))
    with pytest.raises(BodyMalformed):
        der.expect(padded, 0, len(padded), der.OCTET_STRING)
