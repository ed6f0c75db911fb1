"""OCSP: requests of other programs are read, odd ones refused; another library reads what responses say."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp as other
from hypothesis import given
from hypothesis import strategies as st

from est import der as tlv
from est import ocsp
from est.errors import BodyMalformed, CertificateNotAsShaped, ShapeNotPossible
from est.signer import KeySigner
from tests.est.pki import campus
from tests.support import NOW, examples, key

HOUR = timedelta(hours=1)
NONCE = bytes(range(32))


def request(serial: int = 77, *, algorithm: hashes.HashAlgorithm | None = None, nonce: bytes | None = None) -> bytes:
    """As another library writes it."""
    ca = campus().ca
    names, bits = ca.subject.public_bytes(), ca.public_key()
    algorithm = algorithm or hashes.SHA1()

    def digest(data: bytes) -> bytes:
        state = hashes.Hash(algorithm)
        state.update(data)
        return state.finalize()

    key_bits = bits.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    builder = other.OCSPRequestBuilder().add_certificate_by_hash(digest(names), digest(key_bits), serial, algorithm)
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), False)
    return builder.build().public_bytes(Encoding.DER)


def many(*serials: int, extensions: bytes = b"") -> bytes:
    """A request written by hand, for what the other library cannot write."""
    one = ocsp.read_request(request()).certificates[0]
    head = one.der[: one.der.index(b"\x02\x01\x4d")]
    _, start, _ = tlv.read_tlv(head + b"\x02\x01\x4d", 0, len(one.der))
    ids = [tlv.sequence(head[start:] + tlv.integer(serial)) for serial in serials]
    return tlv.sequence(tlv.sequence(tlv.sequence(*(tlv.sequence(one) for one in ids)), extensions))


def extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    inner = tlv.sequence(tlv.oid(oid), b"\x01\x01\xff" if critical else b"", tlv.tlv(tlv.OCTET_STRING, value))
    return tlv.tlv(0xA2, tlv.sequence(inner))


NONCE_OID = "1.3.6.1.5.5.7.48.1.2"


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_a_request_names_issuer_and_serial_by_any_usual_hash(algorithm: hashes.HashAlgorithm) -> None:
    found = ocsp.read_request(request(2**150, algorithm=algorithm))
    (one,) = found.certificates
    assert (one.serial, found.nonce) == (2**150, None)
    names = ocsp.IssuerNames({"devices": campus().ca, "other": campus().root})
    assert names.of(one) == "devices"
    assert names.of(ocsp.CertId(one.der, one.algorithm, one.issuer_key_hash, one.issuer_name_hash, 1)) is None
    assert ocsp.read_cert_id(one.der) == one


@pytest.mark.parametrize("length", [1, 16, 32, 128])
def test_a_nonce_of_every_allowed_length_is_read(length: int) -> None:
    nonce = bytes(length)
    assert ocsp.read_request(many(5, extensions=extension(NONCE_OID, tlv.tlv(4, nonce)))).nonce == nonce
    assert ocsp.read_request(request(nonce=NONCE)).nonce == NONCE


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30\x00",
        request() + b"\x00",
        request()[:-1],
        many(),
        many(*range(1, 18)),
        many(5, extensions=extension(NONCE_OID, b"\x04\x00")),
        many(5, extensions=extension(NONCE_OID, tlv.tlv(4, bytes(129)))),
        many(5, extensions=extension(NONCE_OID, b"raw octets")),
        many(5, extensions=extension("1.2.3.4", b"\x05\x00", critical=True)),
        many(5, extensions=tlv.tlv(0xA3, b"\x30\x00")),
        request(algorithm=hashes.SHA1()).replace(b"\x05\x00", b"\x05\x01\x00", 1),
        bytes(9000),
    ],
    ids=lambda der: der[:6].hex(),
)
def test_what_is_no_request_is_malformed(der: bytes) -> None:
    with pytest.raises(BodyMalformed):
        ocsp.read_request(der)


def test_sixteen_certificates_and_unknown_extensions_that_are_not_critical_are_read() -> None:
    found = ocsp.read_request(many(*range(1, 17), extensions=extension("1.2.3.4", b"\x05\x00")))
    assert [one.serial for one in found.certificates] == list(range(1, 17))


@examples(300)
@given(st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_request_is_read_or_malformed_and_nothing_else(at: int, octet: int) -> None:
    der = bytearray(request(nonce=NONCE))
    der[at % len(der)] = octet
    try:
        ocsp.read_request(bytes(der))
    except BodyMalformed:
        pass


def respond(*answers: ocsp.Single, nonce: bytes | None = None, next_update=NOW + HOUR) -> bytes:
    signer = KeySigner(key("campus ca"))
    data = ocsp.response_data(
        answers, responder=ocsp.key_hash(signer.public_key()), this_update=NOW, next_update=next_update, nonce=nonce
    )
    der = ocsp.assemble(data, signer.sign(data), signer.public_key())
    tlv.check(der)
    return der


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (True, other.OCSPCertStatus.GOOD),
        (None, other.OCSPCertStatus.UNKNOWN),
        (ocsp.Revocation(NOW - HOUR, "keyCompromise"), other.OCSPCertStatus.REVOKED),
        (ocsp.Revocation(NOW - HOUR), other.OCSPCertStatus.REVOKED),
    ],
)
def test_a_response_says_what_was_put_in(status, expected) -> None:
    asked = ocsp.read_request(request(nonce=NONCE))
    found = other.load_der_ocsp_response(respond(ocsp.Single(asked.certificates[0], status), nonce=NONCE))
    assert found.response_status is other.OCSPResponseStatus.SUCCESSFUL
    assert found.certificate_status is expected
    assert found.serial_number == 77
    assert (found.this_update_utc, found.next_update_utc, found.produced_at_utc) == (NOW, NOW + HOUR, NOW)
    assert found.responder_key_hash == x509.SubjectKeyIdentifier.from_public_key(campus().ca.public_key()).digest
    assert found.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce in (NONCE, tlv.tlv(4, NONCE))
    if isinstance(status, ocsp.Revocation):
        assert found.revocation_time_utc == NOW - HOUR
        flag = x509.ReasonFlags.key_compromise if status.reason == "keyCompromise" else None
        assert found.revocation_reason is flag
    campus().ca.public_key().verify(found.signature, found.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))


def test_several_answers_stand_in_the_order_of_the_questions() -> None:
    asked = ocsp.read_request(many(5, 6))
    der = respond(*(ocsp.Single(one, True) for one in asked.certificates))
    found = other.load_der_ocsp_response(der)
    assert [one.serial_number for one in found.responses] == [5, 6]


def test_errors_are_what_another_library_knows_them_as() -> None:
    for der, status in (
        (ocsp.MALFORMED, other.OCSPResponseStatus.MALFORMED_REQUEST),
        (ocsp.INTERNAL_ERROR, other.OCSPResponseStatus.INTERNAL_ERROR),
        (ocsp.TRY_LATER, other.OCSPResponseStatus.TRY_LATER),
        (ocsp.UNAUTHORIZED, other.OCSPResponseStatus.UNAUTHORIZED),
    ):
        assert other.load_der_ocsp_response(der).response_status is status


def test_impossible_responses_are_refused() -> None:
    asked = ocsp.read_request(request()).certificates[0]
    for call in (
        lambda: respond(),
        lambda: respond(ocsp.Single(asked, True), next_update=NOW),
        lambda: respond(ocsp.Single(asked, ocsp.Revocation(NOW, "boredom"))),
    ):
        with pytest.raises(ShapeNotPossible):
            call()
    data = ocsp.response_data(
        [ocsp.Single(asked, True)],
        responder=ocsp.key_hash(key("campus ca").public_key()),
        this_update=NOW,
        next_update=NOW + HOUR,
    )
    with pytest.raises(CertificateNotAsShaped):
        ocsp.assemble(data, KeySigner(key("thief")).sign(data), key("campus ca").public_key())
