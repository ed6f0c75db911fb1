"""The server's half: paths and methods, what a request may ask, what a reply looks like on the wire."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from est import Call, EstServer, Operation, cms, csr, csrattrs, paths, profiles, transfer
from est.client import EstClient
from est.csrattrs import CURVES, EC_PUBLIC_KEY, CsrAttrs, KeyDemand
from est.errors import (
    BodyMalformed,
    BodyTooLarge,
    CsrMalformed,
    EstError,
    ExtensionNotGranted,
    LabelNotUsable,
    LabelUnknown,
    MediaTypeNotAccepted,
    MethodNotAllowed,
    NamesChanged,
    OperationUnknown,
    ProofOfPossessionFailed,
)
from est.exchange import Reply
from tests.est.pki import campus, odd, sign, terms
from tests.support import key

SERVER = EstServer(labels=["lab", "proxy class"])
MAKES_KEYS = EstServer(labels=["lab", "proxy class"], keygen=[None, "lab", "proxy class"])
NAME = profiles.name("proxy 1")
SAN = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://campus.example/proxy/1")])
DER = csr.build(subject=NAME, key=key("csr"), san=SAN)
LINE = base64.b64encode(DER)


def enroll(body: bytes = LINE, media_type: str = paths.PKCS10, operation: str = paths.SIMPLEENROLL) -> Call:
    return Call("POST", paths.path(operation), media_type, body=body)


@pytest.mark.req("E-5", "E-7", "E-9", "E-110")
@pytest.mark.parametrize("label", [None, "lab", "proxy class"])
@pytest.mark.parametrize("name", paths.METHODS)
def test_operations_are_found_with_and_without_a_label(label: str | None, name: str) -> None:
    call = Call(paths.METHODS[name], paths.path(name, label))
    assert MAKES_KEYS.operation(call) == Operation(name, label)


@pytest.mark.req("E-10", "E-140")
@pytest.mark.parametrize("label", ["Lab", "nolab", "lab%252e", "%6Cab%20", ".."])
def test_labels_are_decoded_once_and_matched_exactly(label: str) -> None:
    assert SERVER.operation(Call("GET", "/.well-known/est/%6Cab/cacerts")).label == "lab"
    with pytest.raises(LabelUnknown):
        SERVER.operation(Call("GET", f"/.well-known/est/{label}/cacerts"))


@pytest.mark.req("E-6", "E-140", "E-190", "E-170")
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "/.well-known/est/fullcmc",
        "/.well-known/est/serverkeygen",
        "/.well-known/est/lab/serverkeygen",
        "/.well-known/est/",
        "/.well-known/est",
        "/.well-known/est/cacerts/",
        "/.well-known/est//cacerts",
        "/.well-known/est/lab/x/cacerts",
        "/.well-known/est/CACERTS",
        "/.well-known/est/simpleenroll%2f",
        "/.well-known/brski/requestvoucher",
        "/",
    ],
)
def test_other_paths_never_reach_an_operation(path: str, method: str) -> None:
    with pytest.raises((OperationUnknown, LabelUnknown)):
        SERVER.operation(Call(method, path))


@pytest.mark.req("E-11", "E-140")
@pytest.mark.parametrize("name", paths.METHODS)
def test_the_wrong_method_is_told_the_right_one(name: str) -> None:
    for method in {"GET", "POST", "PUT", "HEAD"} - {paths.METHODS[name]}:
        with pytest.raises(MethodNotAllowed) as refusal:
            MAKES_KEYS.operation(Call(method, paths.path(name)))
        assert refusal.value.fields["allow"] == paths.METHODS[name]


@pytest.mark.req("E-8")
@pytest.mark.parametrize("label", ["cacerts", "simpleenroll", "fullcmc", "serverkeygen", "csrattrs", "", "a/b", ".."])
def test_a_label_is_one_segment_and_never_an_operation(label: str) -> None:
    with pytest.raises(LabelNotUsable):
        EstServer(labels=[label])


@pytest.mark.req("E-20", "E-21", "E-111")
@pytest.mark.parametrize(
    "media_type", ["application/pkcs10", "Application/PKCS10", "application/pkcs10; charset=utf-8"]
)
@pytest.mark.parametrize("encoding", [None, "base64", "binary"])
def test_a_request_is_read_whatever_the_transfer_encoding_says(media_type: str, encoding: str | None) -> None:
    headers = {} if encoding is None else {paths.TRANSFER_ENCODING: encoding}
    ask = SERVER.read_enroll(replace(enroll(media_type=media_type), headers=headers))
    assert ask.csr.der == DER
    assert not ask.wrapped
    assert SERVER.read_enroll(enroll(base64.encodebytes(DER))).wrapped


@pytest.mark.req("E-70", "E-111", "E-137", "E-140", "E-200", "E-201")
@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (enroll(media_type=""), MediaTypeNotAccepted),
        (enroll(media_type="application/json"), MediaTypeNotAccepted),
        (enroll(media_type="application/pkcs10x"), MediaTypeNotAccepted),
        (enroll(b""), BodyMalformed),
        (enroll(b"\xff" * 100), BodyMalformed),
        (enroll(LINE + LINE), BodyMalformed),
        (enroll(b"A" * 65537), BodyTooLarge),
        (enroll(transfer.write_base64(campus().ca.public_bytes(Encoding.DER))), CsrMalformed),
        (enroll(base64.b64encode(DER[:-1] + bytes([DER[-1] ^ 1]))), ProofOfPossessionFailed),
    ],
    ids=["no type", "JSON", "other type", "empty", "rubbish", "two", "64 KiB + 1", "a certificate", "no possession"],
)
def test_a_request_that_cannot_be_granted_is_refused_by_kind(call: Call, refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        SERVER.read_enroll(call)


USAGE = {
    name: False
    for name in (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    )
}


@pytest.mark.req("E-113", "E-115")
@pytest.mark.parametrize(
    ("extension", "critical", "refused"),
    [
        (x509.KeyUsage(digital_signature=False, key_cert_sign=False, crl_sign=False, **USAGE), True, True),
        (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), False, True),
        (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False, False),
        (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH]), True, False),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.7"), b"\x05\x00"), True, True),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.7"), b"\x05\x00"), False, False),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.8"), b"\x05\x00"), False, True),
        (x509.OCSPNoCheck(), False, False),
    ],
)
def test_what_would_become_its_opposite_or_is_critical_and_unknown_is_refused(
    extension: x509.ExtensionType, critical: bool, refused: bool
) -> None:
    builder = x509.CertificateSigningRequestBuilder(NAME).add_extension(extension, critical)
    body = base64.b64encode(builder.sign(key("csr"), hashes.SHA256()).public_bytes(Encoding.DER))
    server = EstServer(keygen=[None], never=["1.3.6.1.4.1.32473.8"])
    for read in (server.read_enroll, server.read_keygen):
        if refused:
            with pytest.raises(ExtensionNotGranted):
                read(enroll(body))
        else:
            read(enroll(body))


@pytest.mark.req("E-57", "E-115")
@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=False, **USAGE),
        x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=True, **USAGE),
        x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")]),
    ],
    ids=["cA", "keyCertSign", "cRLSign", "cmcRA"],
)
def test_authority_is_never_given_on_request(extension: x509.ExtensionType) -> None:
    with pytest.raises(ExtensionNotGranted):
        SERVER.read_enroll(enroll(base64.b64encode(csr.build(subject=NAME, key=key("csr"), extensions=[extension]))))


@pytest.mark.req("E-113", "E-114")
def test_a_request_may_copy_every_extension_of_the_old_certificate() -> None:
    builder = x509.CertificateSigningRequestBuilder(campus().proxy.subject)
    for one in campus().proxy.extensions:
        builder = builder.add_extension(one.value, one.critical)
    der = builder.sign(key("csr"), hashes.SHA256()).public_bytes(Encoding.DER)
    ask = SERVER.read_enroll(enroll(base64.b64encode(der)))
    SERVER.check_reenroll(ask.csr, campus().proxy)


@pytest.mark.req("E-117", "E-121", "E-204")
def test_reenrolment_keeps_subject_and_names_byte_for_byte() -> None:
    same = csr.read(csr.build(subject=NAME, key=key("csr"), san=SAN))
    renewed = csr.read(csr.build(subject=NAME, key=key("campus proxy"), san=SAN))
    for request in (same, renewed):
        SERVER.check_reenroll(request, campus().proxy)


@pytest.mark.req("E-117")
@pytest.mark.parametrize(
    ("subject", "san", "what", "text"),
    [
        (profiles.name("proxy 2"), SAN, "subject", "the subject is not"),
        (profiles.name("proxy 1", "org"), SAN, "subject", "the subject is not"),
        (
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "proxy 1", x509.name._ASN1Type.PrintableString)]),
            SAN,
            "subject",
            "the subject is not",
        ),
        (x509.Name([]), SAN, "subject", "the subject is not"),
        (NAME, None, "subjectAltName", "is missing"),
        (NAME, x509.SubjectAlternativeName([*SAN, x509.DNSName("x.example")]), "subjectAltName", "Name is not that"),
        (
            NAME,
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://campus.example/proxy/2")]),
            "subjectAltName",
            "Name is not that",
        ),
    ],
    ids=["other CN", "organization added", "other string type", "empty", "dropped", "added", "other URI"],
)
def test_reenrolment_with_other_names_is_refused(
    subject: x509.Name, san: x509.SubjectAlternativeName | None, what: str, text: str
) -> None:
    request = csr.read(csr.build(subject=subject, key=key("csr"), san=san))
    with pytest.raises(NamesChanged) as refusal:
        SERVER.check_reenroll(request, campus().proxy)
    assert refusal.value.fields["field"] == what and text in refusal.value.detail


@pytest.mark.req("E-117")
def test_both_without_alternative_names_counts_as_equal_and_order_counts() -> None:
    plain = odd("plain", key("plain"), key("campus ca"), issuer=campus().ca)
    SERVER.check_reenroll(csr.read(csr.build(subject=plain.subject, key=key("csr"))), plain)
    with pytest.raises(NamesChanged, match="has no subjectAltName"):
        SERVER.check_reenroll(csr.read(csr.build(subject=plain.subject, key=key("csr"), san=SAN)), plain)
    names = [x509.DNSName("a.example"), x509.DNSName("b.example")]
    two = odd(
        "two",
        key("two"),
        key("campus ca"),
        issuer=campus().ca,
        extensions=[(x509.SubjectAlternativeName(names), True)],
    )
    SERVER.check_reenroll(
        csr.read(csr.build(subject=two.subject, key=key("csr"), san=x509.SubjectAlternativeName(names))), two
    )
    with pytest.raises(NamesChanged, match="in another order"):
        SERVER.check_reenroll(
            csr.read(csr.build(subject=two.subject, key=key("csr"), san=x509.SubjectAlternativeName(names[::-1]))), two
        )


@pytest.mark.req("E-25", "E-91", "E-92", "E-93")
def test_cacerts_are_a_certs_only_message_in_base64() -> None:
    reply = SERVER.cacerts_reply([campus().root, campus().ca], Call("GET", paths.path(paths.CACERTS)))
    assert reply.status == 200
    assert reply.media_type == "application/pkcs7-mime; smime-type=certs-only"
    assert reply.headers["content-transfer-encoding"] == "base64"
    assert set(cms.read_certs_only(base64.b64decode(reply.body))) == {campus().root, campus().ca}


@pytest.mark.req("E-26", "E-99")
def test_long_cacerts_are_wrapped_for_libest_alone_and_one_root_is_short() -> None:
    many = [campus().root, campus().ca, campus().proxy]
    plain = SERVER.cacerts_reply(many, Call("GET", "/", headers={"user-agent": "curl/8"}))
    libest = SERVER.cacerts_reply(many, Call("GET", "/", headers={"user-agent": "libest 1.0"}))
    assert plain.body.count(b"\n") == 1
    assert libest.body.count(b"\n") > 10
    assert base64.b64decode(plain.body) == base64.b64decode(libest.body)
    assert len(SERVER.cacerts_reply([campus().root], Call("GET", "/")).body) <= 1000


@pytest.mark.req("E-26")
@pytest.mark.parametrize("wraps", [True, False])
def test_a_site_may_say_how_long_bodies_go_out_whatever_a_client_writes(wraps: bool) -> None:
    server, many = EstServer(wraps=wraps, keygen=[None]), [campus().root, campus().ca, campus().proxy]
    for agent in ("curl/8", "libest 1.0"):
        reply = server.cacerts_reply(many, Call("GET", "/", headers={"user-agent": agent}))
        assert (reply.body.count(b"\n") > 10) is wraps
    for body in (LINE, base64.encodebytes(DER)):
        assert server.read_enroll(enroll(body)).wrapped is wraps
        assert server.read_keygen(enroll(body)).wrapped is wraps
    assert server.cacerts_reply([campus().root], Call("GET", "/")).body.count(b"\n") == 1


@pytest.mark.req("E-17", "E-26", "E-123", "E-124")
def test_an_enrolment_is_answered_with_the_certificate_alone() -> None:
    issued = sign(
        profiles.agent(
            terms(campus().ca),
            NAME,
            key("csr").public_key(),
            identifier="spiffe://campus.example/agent/1",
            extra_extensions=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), bytes(900)), False)],
        ),
        key("campus ca"),
    )
    for body, wrapped in ((LINE, False), (base64.encodebytes(DER), True)):
        reply = SERVER.enroll_reply(issued, SERVER.read_enroll(enroll(body)))
        assert reply.status == 200
        assert reply.media_type == "application/pkcs7-mime; smime-type=certs-only"
        assert (reply.body.count(b"\n") > 1) is wrapped
        assert cms.read_certs_only(base64.b64decode(reply.body)) == (issued,)
        assert sum(len(name) + len(value) for name, value in reply.headers.items()) < 200


@pytest.mark.req("E-130", "E-131", "E-132")
@pytest.mark.parametrize(("seconds", "text"), [(0, "1"), (0.2, "1"), (1.2, "2"), (3600, "3600"), (-5, "1")])
def test_a_pending_reply_is_empty_and_speaks_in_seconds(seconds: float, text: str) -> None:
    reply = SERVER.pending_reply(seconds)
    assert (reply.status, reply.body, reply.media_type) == (202, b"", "")
    assert reply.headers["retry-after"] == text


@pytest.mark.req("E-151")
def test_csrattrs_without_a_demand_is_204_and_with_one_both_encodings() -> None:
    assert SERVER.csrattrs_reply().status == SERVER.csrattrs_reply(CsrAttrs()).status == 204
    assert SERVER.csrattrs_reply().body == b""
    wanted = CsrAttrs(key=KeyDemand(EC_PUBLIC_KEY, curve=CURVES["secp256r1"]))
    reply = SERVER.csrattrs_reply(wanted)
    assert (reply.status, reply.media_type) == (200, "application/csrattrs")
    assert transfer.read_base64(reply.body) == csrattrs.write(wanted)
    assert EstClient().read_csrattrs(reply) == wanted


@pytest.mark.req("E-151", "E-152")
@pytest.mark.parametrize("status", [204, 404, 500])
def test_another_answer_than_200_demands_nothing(status: int) -> None:
    assert not EstClient().read_csrattrs(Reply(status, "text/plain", body=b"nothing here"))


@pytest.mark.req("E-152")
@pytest.mark.parametrize(
    ("media_type", "body"), [("text/plain", b"MAA="), ("application/csrattrs", b"?"), ("application/csrattrs", b"MAI=")]
)
def test_attributes_that_cannot_be_read_are_refused_by_a_typed_error(media_type: str, body: bytes) -> None:
    with pytest.raises(EstError):
        EstClient().read_csrattrs(Reply(200, media_type, body=body))
