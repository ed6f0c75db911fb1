"""serverkeygen: the server makes the key pair and sends both halves (RFC 7030, section 4.4).

Pure: what a request asks for, and how a key and its certificate are packed. A key goes encrypted when the request names
a key to encrypt it with; a name that the server does not know is refused, never answered in clear (section 4.4.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from est import cms, paths, transfer
from est import der as tlv
from est.csr import UnprovenCsr, read_unproven
from est.enveloped import AES_256_CBC, NewKey, Random, RecipientKey, SharedKey, envelop
from est.errors import BodyMalformed, CsrMalformed, EnrollmentRefused, EstError, KeyNotAccepted, ReplyNotAccepted
from est.exchange import Reply
from est.signer import Signer

DECRYPT_KEY_IDENTIFIER = "1.2.840.113549.1.9.16.2.37"
ASYMMETRIC_DECRYPT_KEY_IDENTIFIER = "1.2.840.113549.1.9.16.2.54"
SMIME_CAPABILITIES = "1.2.840.113549.1.9.15"
ID_SIGNED_DATA = "1.2.840.113549.1.7.2"
ID_CT_KEY_PACKAGE = "2.16.840.1.101.2.1.2.78.5"
PKCS8 = "application/pkcs8"
ENCRYPTED_KEY = "application/pkcs7-mime; smime-type=server-generated-key"

MAX_REPLY = 262144
_PARAMETER = re.compile(r"""boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))""", re.IGNORECASE)
_BOUNDARY = "est-server-generated-key"
"""Base64 has no hyphens, so no part can hold this."""

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class KeygenAsk:
    """A request for a key pair: names as in the CSR, and by what the key shall be encrypted, if by anything.

    `shared` and `own` are identifiers of a symmetric key and of a key pair of the client's; at most one is set, and
    none = in clear.
    """

    csr: UnprovenCsr
    wrapped: bool
    shared: bytes | None = None
    own: bytes | None = None


def read(body: bytes, *, max_bytes: int = transfer.MAX_BODY) -> KeygenAsk:
    """The request in a serverkeygen body; raises BodyMalformed, BodyTooLarge, CsrMalformed.

    KeyNotAccepted where it names a key and says that the client cannot open what we seal (SMIMECapabilities).
    """
    request = read_unproven(transfer.decode_base64(body, max_bytes=max_bytes))
    shared = _identifier(request, DECRYPT_KEY_IDENTIFIER)
    own = _identifier(request, ASYMMETRIC_DECRYPT_KEY_IDENTIFIER)
    if shared is not None and own is not None:
        raise CsrMalformed("the request names two keys to encrypt with")
    if shared is not None or own is not None:
        _check_capabilities(request)
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


def read_reply(reply: Reply) -> tuple[str, bytes, bytes]:
    """What a server answered: media type of the key part, its DER, and the DER of the certificate part.

    The parts may stand in either order, with a preamble and an epilogue; their Content-Transfer-Encoding is not looked
    at (RFC 8951, section 3). Raises EnrollmentRefused, ReplyNotAccepted.
    """
    if reply.status != 200:
        raise EnrollmentRefused(f"the EST server answered {reply.status}", status=reply.status, text="")
    found: dict[str, bytes] = {}
    for kind, body in _parts(reply):
        is_certificate = paths.essence(kind) == paths.PKCS7 and "server-generated-key" not in kind.lower()
        name = "certificate" if is_certificate else kind
        if (is_certificate and name in found) or (not is_certificate and len(found) - ("certificate" in found)):
            raise ReplyNotAccepted("the reply holds a part twice")
        try:
            found[name] = transfer.read_base64(body, max_bytes=MAX_REPLY)
        except EstError as refusal:
            raise ReplyNotAccepted(f"a part of the reply cannot be read: {refusal.detail}") from refusal
    certificate = found.pop("certificate", None)
    if certificate is None or len(found) != 1:
        raise ReplyNotAccepted("the reply holds no key and certificate")
    ((kind, key),) = found.items()
    if paths.essence(kind) not in (PKCS8, paths.PKCS7):
        raise ReplyNotAccepted("the reply's key has an unknown media type")
    return kind, key, certificate


def _parts(reply: Reply) -> Iterator[tuple[str, bytes]]:
    """Media type and body of each part (RFC 2046, section 5.1.1)."""
    boundary = _PARAMETER.search(reply.media_type)
    if paths.essence(reply.media_type) != "multipart/mixed" or boundary is None or len(reply.body) > MAX_REPLY:
        raise ReplyNotAccepted("the reply is not multipart/mixed")
    marker = b"--" + (boundary[1] or boundary[2]).encode("ascii", "replace")
    blocks = (b"\n" + reply.body.replace(b"\r\n", b"\n")).split(b"\n" + marker)
    for block in blocks[1:]:
        if block.startswith(b"--"):
            return
        head, found, body = block.partition(b"\n\n")
        if not found:
            break
        lines = head.replace(b"\n ", b" ").replace(b"\n\t", b" ").decode("latin-1").split("\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
        yield fields.get("content-type", ""), body
    raise ReplyNotAccepted("the reply's parts do not end")


def _check_capabilities(request: UnprovenCsr) -> None:
    """Whether the client can open AES-256-CBC, if it says what it can (RFC 7030, section 4.4.1; RFC 8551, 2.5.2)."""
    values = request.attributes.get(SMIME_CAPABILITIES)
    if values is None:
        return
    try:
        offered = set()
        for value in values:
            for _, _, start, stop in tlv.elements(value, *tlv.only(value, 0, len(value), tlv.SEQUENCE)):
                first, last = tlv.expect(value, start, stop, tlv.OID)
                offered.add(tlv.dotted(value[first:last]))
    except BodyMalformed as error:
        raise CsrMalformed("SMIMECapabilities cannot be read") from error
    if AES_256_CBC not in offered:
        raise KeyNotAccepted("the request's SMIMECapabilities lack AES-256-CBC, in which the key would travel")


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
