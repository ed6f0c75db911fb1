"""The EST server's half: what a Call asks, and the Reply it gets (RFC 7030, section 4; RFC 8951).

Knows nothing of who is calling; the service that holds an EstServer authenticates, authorizes and issues.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import NamedTuple
from urllib.parse import unquote

from cryptography import x509

from est import certificates, cms, csr, csrattrs, der, paths, serverkeygen, transfer
from est.chains import ANY_PURPOSE, CLIENT_AUTH, CMC_RA
from est.csr import Csr
from est.csrattrs import CsrAttrs
from est.errors import (
    BodyMalformed,
    CertificateMalformed,
    ExtensionNotGranted,
    LabelNotUsable,
    LabelUnknown,
    MediaTypeNotAccepted,
    MethodNotAllowed,
    NamesChanged,
    OperationUnknown,
)
from est.exchange import Call, Reply
from est.serverkeygen import KeygenAsk

_ENCODED = {paths.TRANSFER_ENCODING: "base64"}
_SAN = x509.SubjectAlternativeName.oid.dotted_string


@dataclass(frozen=True, slots=True)
class Operation:
    """What a path means: the operation's name, and the label or None for the default."""

    name: str
    label: str | None = None


class EnrollAsk(NamedTuple):
    """A request to enrol: the CSR (possession proved) and whether its base64 was wrapped, which the reply mirrors."""

    csr: Csr
    wrapped: bool


class EstServer:
    """Reads EST calls and writes EST replies for a set of labels.

    Raises LabelNotUsable for a label that is an operation's name or not a path segment (RFC 7030, section 3.2.2).
    `keygen` are the labels under which serverkeygen exists, None = the default. `never` are extensions, by dotted
    type, that are refused and not just left out. `wraps` says whether base64 of more than 1000 bytes has lines of 64;
    None = as each client wrote its own. `max_body` is in bytes.
    """

    def __init__(
        self,
        *,
        labels: Collection[str] = (),
        keygen: Collection[str | None] = (),
        never: Collection[str] = (),
        wraps: bool | None = None,
        max_body: int = transfer.MAX_BODY,
    ) -> None:
        for label in labels:
            if label in paths.RESERVED or not label or "/" in label or label in (".", ".."):
                raise LabelNotUsable(f"{label!r} cannot be an EST label", label=label)
        self._labels = frozenset(labels)
        self._keygen = frozenset(keygen)
        self._usual = {
            (method, paths.path(name, label)): Operation(name, label)
            for name, method in paths.METHODS.items()
            for label in (None, *labels)
            if name != paths.SERVERKEYGEN or label in self._keygen
        }
        self._never = frozenset(never)
        self._wraps = wraps
        self._max_body = max_body

    def operation(self, call: Call) -> Operation:
        """Which operation the call means; raises OperationUnknown, LabelUnknown, MethodNotAllowed.

        fullcmc is unknown here, and serverkeygen where no keys are made, so that nothing can fall through to the
        issuing code.
        """
        usual = self._usual.get((call.method, call.path))
        if usual is not None:
            return usual
        prefix = paths.WELL_KNOWN + "/"
        segments = call.path[len(prefix) :].split("/") if call.path.startswith(prefix) else []
        if len(segments) not in (1, 2):
            raise OperationUnknown("no such EST operation")
        label = unquote(segments[0]) if len(segments) == 2 else None
        if label is not None and label not in self._labels:
            raise LabelUnknown("no such EST label")
        method = paths.METHODS.get(segments[-1])
        if method is None:
            if segments[-1] == paths.FULLCMC:
                raise OperationUnknown("fullcmc is not offered: use simpleenroll and simplereenroll")
            raise OperationUnknown("no such EST operation")
        if segments[-1] == paths.SERVERKEYGEN and label not in self._keygen:
            raise OperationUnknown("no keys are made here: use simpleenroll with a key of your own")
        if call.method != method:
            raise MethodNotAllowed(f"this operation takes {method}", allow=method)
        return Operation(segments[-1], label)

    def read_enroll(self, call: Call) -> EnrollAsk:
        """The CSR in a simpleenroll or simplereenroll call, with proof of possession verified.

        Raises MediaTypeNotAccepted, BodyTooLarge, BodyMalformed, CsrMalformed, KeyNotAccepted,
        ProofOfPossessionFailed, and ExtensionNotGranted when authority is asked for, or the opposite of what we give.
        """
        _check_media_type(call)
        request = csr.read(transfer.decode_base64(call.body, max_bytes=self._max_body))
        _check_requested(request.extensions, self._never)
        return EnrollAsk(request, transfer.is_wrapped(call.body) if self._wraps is None else self._wraps)

    def read_keygen(self, call: Call) -> KeygenAsk:
        """The request for a key pair in a serverkeygen call; its own key and signature mean nothing (section 4.4.1).

        Raises MediaTypeNotAccepted, BodyTooLarge, BodyMalformed, CsrMalformed, KeyNotAccepted, ExtensionNotGranted.
        """
        _check_media_type(call)
        ask = serverkeygen.read(call.body, max_bytes=self._max_body)
        _check_requested(ask.csr.extensions, self._never)
        return ask if self._wraps is None else replace(ask, wrapped=self._wraps)

    def check_reenroll(self, request: Csr, old_certificate: x509.Certificate) -> None:
        """Subject and subjectAltName are those of the old certificate, byte for byte (RFC 7030, section 4.2.2).

        Both absent counts as equal. Raises NamesChanged or CertificateMalformed.
        """
        subject, san = _names_of(old_certificate)
        if request.subject_der != subject:
            raise NamesChanged("the subject is not that of the certificate being renewed", field="subject")
        if request.san_der != san:
            raise NamesChanged(_what_changed(request.san_der, san), field="subjectAltName")

    def cacerts_reply(self, ca_certificates: Sequence[x509.Certificate], call: Call) -> Reply:
        """The CA certificates; wrapped only for libest, which cannot read long lines, while others need them."""
        wrapped = self._wraps
        if wrapped is None:
            wrapped = call.headers.get("user-agent", "").startswith("libest")
        return _certs_only({*map(certificates.der_of, ca_certificates)}, wrapped=wrapped)

    def enroll_reply(self, certificate: x509.Certificate | bytes, ask: EnrollAsk) -> Reply:
        """The issued certificate, read or DER, and nothing else (RFC 7030, section 4.2.3)."""
        der = certificate if isinstance(certificate, bytes) else certificates.der_of(certificate)
        return _certs_only((der,), wrapped=ask.wrapped)

    def csrattrs_reply(self, wanted: CsrAttrs | None = None) -> Reply:
        """What a CSR must have, in both encodings; 204 where nothing is demanded (RFC 7030, section 4.5.2)."""
        if not wanted:
            return Reply(204)
        body = transfer.write_base64(csrattrs.write(wanted), wrapped=False)
        return Reply(200, paths.CSR_ATTRIBUTES, _ENCODED, body)

    def pending_reply(self, retry_after_seconds: float) -> Reply:
        """Ask again later: no body at all, and seconds rather than a date, because that is what clients can read."""
        return Reply(202, headers={paths.RETRY_AFTER: str(max(1, ceil(retry_after_seconds)))})


def _check_media_type(call: Call) -> None:
    if call.media_type != paths.PKCS10 and paths.essence(call.media_type) != paths.PKCS10:
        raise MediaTypeNotAccepted(f"the media type must be {paths.PKCS10}", expected=paths.PKCS10)


def _certs_only(ders: Collection[bytes], *, wrapped: bool) -> Reply:
    body = transfer.write_base64(cms.enclose(ders), wrapped=wrapped)
    return Reply(200, paths.CERTS_ONLY, _ENCODED, body)


@lru_cache(maxsize=1024)
def _names_of(certificate: x509.Certificate) -> tuple[bytes, bytes | None]:
    """Subject, and the value of subjectAltName, as they stand in a certificate; raises CertificateMalformed."""
    found = certificates.parts(certificate)
    try:
        san = None if found.extensions is None else certificates.extension_value(found.extensions, _SAN)
    except BodyMalformed as error:
        raise CertificateMalformed("the certificate being renewed cannot be read") from error
    return found.subject, san


def _what_changed(asked: bytes | None, old: bytes | None) -> str:
    """How two subjectAltName values differ, for whoever has to put the request right."""
    if asked is None:
        return "subjectAltName of the certificate being renewed is missing"
    if old is None:
        return "the certificate being renewed has no subjectAltName"
    if _names_in(asked) == _names_in(old):
        return "the names in subjectAltName are in another order than in the certificate being renewed"
    return "subjectAltName is not that of the certificate being renewed"


def _names_in(san: bytes) -> list[bytes]:
    start, stop = der.only(san, 0, len(san), der.SEQUENCE)
    return sorted(san[at:end] for _, at, _, end in der.elements(san, start, stop))


def _check_requested(extensions: x509.Extensions, never: Collection[str]) -> None:
    """Refuse what is not left out in silence: authority, and what we would turn into its opposite (RFC 5272, 3.1).

    Certificates here are for clients that sign.
    """
    for extension in extensions:
        value, name = extension.value, extension.oid.dotted_string
        kind = type(value)  # isinstance() with the library's abstract classes is slow, and nobody derives from these
        if kind is x509.BasicConstraints and value.ca:
            raise ExtensionNotGranted("a CA certificate is not given on request", extension="basicConstraints")
        if kind is x509.KeyUsage:
            if value.key_cert_sign or value.crl_sign:
                raise ExtensionNotGranted("a CA's key usage is not given on request", extension="keyUsage")
            if not value.digital_signature:
                raise ExtensionNotGranted(
                    "certificates here are for digital signatures, which the requested keyUsage leaves out",
                    extension="keyUsage",
                )
        if kind is x509.ExtendedKeyUsage:
            purposes = {one.dotted_string for one in value}
            if CMC_RA in purposes:
                raise ExtensionNotGranted("the cmcRA purpose is not given on request", extension="extendedKeyUsage")
            if not purposes & {CLIENT_AUTH, ANY_PURPOSE}:
                raise ExtensionNotGranted(
                    "certificates here are for TLS clients, which the requested extendedKeyUsage leaves out",
                    extension="extendedKeyUsage",
                )
        if name in never:
            raise ExtensionNotGranted("the binding to an owner is not given on request", extension=name)
        if extension.critical and kind is x509.UnrecognizedExtension:
            raise ExtensionNotGranted("a critical extension is requested that is unknown here", extension=name)
