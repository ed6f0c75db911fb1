"""serverkeygen: the server makes the key pair and sends both halves (RFC 7030, section 4.4).

Pure: what a request asks for, and how a key and its certificate are packed. A key goes encrypted when the request names
a key to encrypt it with; a name that the server does not know is refused, never answered in clear (section 4.4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from est import cms, paths, transfer
from est import der as tlv
from est.csr import UnprovenCsr, read_unproven
from est.enveloped import NewKey, Random, RecipientKey, SharedKey, envelop
from est.errors import BodyMalformed, CsrMalformed
from est.exchange import Reply
from est.signer import Signer

DECRYPT_KEY_IDENTIFIER = "1.2.840.113549.1.9.16.2.37"
ASYMMETRIC_DECRYPT_KEY_IDENTIFIER = "1.2.840.113549.1.9.16.2.54"
ID_SIGNED_DATA = "1.2.840.113549.1.7.2"
ID_CT_KEY_PACKAGE = "2.16.840.1.101.2.1.2.78.5"
PKCS8 = "application/pkcs8"
ENCRYPTED_KEY = "application/pkcs7-mime; smime-type=server-generated-key"

_BOUNDARY = "est-server-generated-key"
"""Base64 has no hyphens, so no part can hold this."""

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class KeygenAsk:
    """A request for a key pair: names as in the CSR, and by what the key shall be encrypted, if by anything.

    `shared` and `own` are identifiers of a symmetric key and of a key pair of the client's; at most one is set.
    """

    csr: UnprovenCsr
    wrapped: bool
    shared: bytes | None = None
    own: bytes | None = None


def read(body: bytes, *, max_bytes: int = transfer.MAX_BODY) -> KeygenAsk:
    """The request in a serverkeygen body; raises BodyMalformed, BodyTooLarge, CsrMalformed."""
    request = read_unproven(transfer.decode_base64(body, max_bytes=max_bytes))
    shared = _identifier(request, DECRYPT_KEY_IDENTIFIER)
    own = _identifier(request, ASYMMETRIC_DECRYPT_KEY_IDENTIFIER)
    if shared is not None and own is not None:
        raise CsrMalformed("the request names two keys to encrypt with")
    return KeygenAsk(request, transfer.is_wrapped(body), shared, own)


def key_package(key: PrivateKey) -> bytes:
    """DER AsymmetricKeyPackage with one key (RFC 5958, section 2)."""
    return tlv.sequence(_pkcs8(key))


def seal_key(
    key: PrivateKey,
    recipient: SharedKey | RecipientKey,
    *,
    signer: Signer,
    certificate: x509.Certificate,
    now: datetime,
    random: Random,
    new_key: NewKey,
) -> bytes:
    """DER EnvelopedData around SignedData around the key package (RFC 7030, section 4.4.2).

    `certificate` is that of `signer`, who made the key.
    """
    signed = cms.seal(
        key_package(key), content_type=ID_CT_KEY_PACKAGE, signer=signer, certificate=certificate, signing_time=now
    )
    start, stop = tlv.only(signed, 0, len(signed), tlv.SEQUENCE)
    _, at = tlv.expect(signed, start, stop, tlv.OID)
    inner = signed[slice(*tlv.only(signed, at, stop, 0xA0))]
    return envelop(inner, ID_SIGNED_DATA, recipient, random=random, new_key=new_key)


def reply(key: PrivateKey | bytes, certificate: x509.Certificate, *, wrapped: bool) -> Reply:
    """The two parts: the key in clear, or `seal_key`'s bytes, and the certificate exactly as simpleenroll gives it.

    Both carry Content-Transfer-Encoding: Bouncy Castle and libest do not decode them without.
    """
    if isinstance(key, bytes):
        first = _part(ENCRYPTED_KEY, key, wrapped=wrapped)
    else:
        first = _part(PKCS8, _pkcs8(key), wrapped=wrapped)
    second = _part(paths.CERTS_ONLY, cms.write_certs_only((certificate,)), wrapped=wrapped)
    body = b"".join((first, second, f"--{_BOUNDARY}--\r\n".encode()))
    return Reply(200, f"multipart/mixed; boundary={_BOUNDARY}", body=body)


def _part(media_type: str, der: bytes, *, wrapped: bool) -> bytes:
    head = f"--{_BOUNDARY}\r\nContent-Type: {media_type}\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    return head.encode() + transfer.write_base64(der, wrapped=wrapped).rstrip(b"\n") + b"\r\n"


def _pkcs8(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _identifier(request: UnprovenCsr, kind: str) -> bytes | None:
    values = request.attributes.get(kind)
    if values is None:
        return None
    try:
        if len(values) == 1:
            value = values[0]
            identifier = value[slice(*tlv.only(value, 0, len(value), tlv.OCTET_STRING))]
            if 0 < len(identifier) <= 255:
                return identifier
    except BodyMalformed as error:
        raise CsrMalformed(error.detail) from error
    raise CsrMalformed("a key identifier in the request must be one OCTET STRING of 1 to 255 octets")
