"""The EST client's half: what to send next, and what a Reply means (RFC 7030, section 4; RFC 8951).

The connection is the caller's: it has authenticated the server before anything here is believed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from cryptography import x509
from cryptography.x509 import GeneralName, SubjectAlternativeName

from est import cms, csrattrs, paths, transfer
from est.certificates import extensions_of, is_self_signed
from est.chains import PINNED_SERVER, EndEntityPolicy, TrustAnchors, check, spki_sha256
from est.csr import Csr
from est.csr import read as read_csr
from est.csrattrs import CsrAttrs
from est.errors import EnrollmentRefused, EstError, ReplyNotAccepted
from est.exchange import Call, Reply
from est.keys import ISSUER_KEYS, PublicKey

MAX_REPLY = 262144
MAX_RETRY_SECONDS = 86400
DEFAULT_RETRY_SECONDS = 60

_ISSUER = EndEntityPolicy(require_digital_signature=False, forbid_ca=False, keys=ISSUER_KEYS)


@dataclass(frozen=True, slots=True)
class Pending:
    """The server wants to be asked again, with the same request, after this many seconds (RFC 7030, section 4.2.3)."""

    retry_after_seconds: int


@dataclass(frozen=True, slots=True)
class CaCertificates:
    """What cacerts said: the current root, and all other certificates that have a path to it."""

    root: x509.Certificate
    others: tuple[x509.Certificate, ...]

    @property
    def anchors(self) -> TrustAnchors:
        """The explicit trust anchor database: the current root (RFC 7030, section 4.1.3)."""
        return TrustAnchors((self.root,))


class EstClient:
    """Makes the calls of one client under one label, and reads the replies."""

    def __init__(self, *, label: str | None = None) -> None:
        self._label = label

    def cacerts_call(self) -> Call:
        """Ask for the CA certificates."""
        return Call("GET", paths.path(paths.CACERTS, self._label), headers={"accept": paths.PKCS7})

    def csrattrs_call(self) -> Call:
        """Ask what a request must have."""
        return Call("GET", paths.path(paths.CSRATTRS, self._label), headers={"accept": paths.CSR_ATTRIBUTES})

    def simpleenroll_call(self, csr_der: bytes) -> Call:
        """Ask for a first certificate."""
        return self._enroll(paths.SIMPLEENROLL, csr_der)

    def simplereenroll_call(self, csr_der: bytes) -> Call:
        """Ask for a renewed or rekeyed certificate, over TLS with the old one."""
        return self._enroll(paths.SIMPLEREENROLL, csr_der)

    def serverkeygen_call(self, csr_der: bytes) -> Call:
        """Ask for a key pair and its certificate; `serverkeygen.read_reply` reads the answer."""
        call = self._enroll(paths.SERVERKEYGEN, csr_der)
        return replace(call, headers={**call.headers, "accept": "multipart/mixed"})

    def read_cacerts(self, reply: Reply, *, at: datetime | None = None) -> CaCertificates:
        """The current root and what hangs from it (RFC 7030, section 4.1.3).

        The current root is the self-signed certificate that expires last. Of the others only those with a path to it
        are kept (validity at `at`; None = dates are not looked at): being in the bag earns no trust.
        Raises ReplyNotAccepted, EnrollmentRefused.
        """
        certificates = _read_certificates(reply)
        if not any(map(is_self_signed, certificates)):
            raise ReplyNotAccepted("the CA certificates hold no self-signed root")
        root = current_root(certificates)
        if at is not None and not root.not_valid_before_utc <= at <= root.not_valid_after_utc:
            raise ReplyNotAccepted("the current root certificate is not valid at this time")
        anchors = _anchors(root)
        rest = [one for one in certificates if one != root]
        kept = tuple(one for one in rest if _has_path(one, rest, anchors, at))
        return CaCertificates(root, kept)

    def read_successor(self, reply: Reply, anchors: TrustAnchors, *, at: datetime | None = None) -> CaCertificates:
        """What cacerts said over a connection that proves nothing, where an anchor that we hold vouches for it.

        The current root's key must be certified by that anchor: NewWithOld (RFC 4210, section 4.4.1). Raises
        ReplyNotAccepted, EnrollmentRefused.
        """
        found = self.read_cacerts(reply, at=at)
        certificates = _read_certificates(reply)
        wanted = _fingerprint(found.root)
        links = [one for one in certificates if one != found.root and _fingerprint(one) == wanted]
        if found.root not in anchors.certificates and not any(
            _has_path(one, certificates, anchors, at) for one in links
        ):
            raise ReplyNotAccepted("no anchor that is held vouches for the current root")
        return found

    def read_csrattrs(self, reply: Reply) -> CsrAttrs:
        """What is demanded of a request; every answer but 200 says: nothing (RFC 7030, section 4.5.2).

        Raises CsrAttributesMalformed, and ReplyNotAccepted for another media type or no base64.
        """
        if reply.status != 200:
            return CsrAttrs()
        if paths.essence(reply.media_type) != paths.CSR_ATTRIBUTES:
            raise ReplyNotAccepted(f"the reply's media type is not {paths.CSR_ATTRIBUTES}")
        try:
            der = transfer.read_base64(reply.body, max_bytes=csrattrs.MAX_CSRATTRS)
        except EstError as refusal:
            raise ReplyNotAccepted(f"the reply cannot be read: {refusal.detail}") from refusal
        return csrattrs.read(der)

    def read_enrolled(
        self,
        reply: Reply,
        public_key: PublicKey,
        *,
        csr_der: bytes | None = None,
        trust: CaCertificates | None = None,
        at: datetime | None = None,
    ) -> x509.Certificate | Pending:
        """The certificate for this key, wherever it stands in the reply; or Pending.

        With `csr_der` its names are held against the request, with `trust` it must have a path to the current root
        (validity at `at`; None = dates are not looked at). Raises ReplyNotAccepted, EnrollmentRefused.
        """
        if reply.status == 202:
            return Pending(_retry_after(reply, at))
        wanted = spki_sha256(public_key)
        mine = [one for one in _read_certificates(reply) if _fingerprint(one) == wanted]
        if len(mine) != 1:
            raise ReplyNotAccepted("the reply does not hold exactly one certificate for our key")
        certificate = mine[0]
        if csr_der is not None:
            _check_names(certificate, read_csr(csr_der))
        if trust is not None and not _has_path(certificate, trust.others, trust.anchors, at, PINNED_SERVER):
            raise ReplyNotAccepted("the issued certificate has no path to the current root")
        return certificate

    def _enroll(self, operation: str, csr_der: bytes) -> Call:
        headers = {"accept": paths.PKCS7, paths.TRANSFER_ENCODING: "base64"}
        body = transfer.write_wrapped(csr_der)
        return Call("POST", paths.path(operation, self._label), paths.PKCS10, headers, body)


def current_root(certificates: Iterable[x509.Certificate]) -> x509.Certificate:
    """The self-signed certificate that expires last: what clients hold after cacerts. ValueError if there is none."""
    return max(filter(is_self_signed, certificates), key=lambda one: one.not_valid_after_utc)


def _read_certificates(reply: Reply) -> tuple[x509.Certificate, ...]:
    if reply.status != 200:
        text = "".join(char for char in reply.body[:2000].decode("utf-8", "replace") if char.isprintable())[:500]
        raise EnrollmentRefused(f"the EST server answered {reply.status}", status=reply.status, text=text)
    if paths.essence(reply.media_type) != paths.PKCS7:
        raise ReplyNotAccepted(f"the reply's media type is not {paths.PKCS7}")
    try:
        return cms.read_certs_only(transfer.read_base64(reply.body, max_bytes=MAX_REPLY))
    except EstError as refusal:
        raise ReplyNotAccepted(f"the reply cannot be read: {refusal.detail}") from refusal


def _retry_after(reply: Reply, at: datetime | None) -> int:
    """Seconds to wait, 1 to 86400; dates need a clock, and without a usable value it is a minute."""
    value = reply.headers.get(paths.RETRY_AFTER, "").strip()
    seconds = DEFAULT_RETRY_SECONDS
    if value.isascii() and value.isdigit() and len(value) < 10:
        seconds = int(value)
    elif value and at is not None:
        try:
            moment = parsedate_to_datetime(value)
            seconds = int((moment.replace(tzinfo=moment.tzinfo or UTC) - at) / timedelta(seconds=1))
        except (ValueError, TypeError):
            seconds = DEFAULT_RETRY_SECONDS
    return min(max(seconds, 1), MAX_RETRY_SECONDS)


def _fingerprint(certificate: x509.Certificate) -> bytes:
    try:
        return spki_sha256(certificate)
    except EstError as refusal:
        raise ReplyNotAccepted("a certificate in the reply cannot be read") from refusal


def _anchors(root: x509.Certificate) -> TrustAnchors:
    try:
        return TrustAnchors((root,))
    except EstError as refusal:
        raise ReplyNotAccepted(f"the current root cannot be used: {refusal.detail}") from refusal


def _has_path(
    certificate: x509.Certificate,
    others: Iterable[x509.Certificate],
    anchors: TrustAnchors,
    at: datetime | None,
    policy: EndEntityPolicy = _ISSUER,
) -> bool:
    moment = certificate.not_valid_before_utc if at is None else at
    try:
        check(certificate, _ancestors(certificate, others), anchors, at=moment, policy=policy, ignore_expiry=at is None)
    except EstError:
        return False
    return True


def _ancestors(certificate: x509.Certificate, others: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """Those of the others that can stand above the certificate by name, so that a large bag is no long chain."""
    rest = list(others)
    found: list[x509.Certificate] = []
    names = {certificate.issuer}
    while named := [one for one in rest if one.subject in names and one not in found and one != certificate]:
        found += named
        names = {one.issuer for one in named}
    return found


def _check_names(certificate: x509.Certificate, request: Csr) -> None:
    if list(request.subject) and certificate.subject != request.subject:
        raise ReplyNotAccepted("the issued certificate has another subject than was asked for")
    if request.san is None:
        return
    try:
        found = next(
            (set(one.value) for one in extensions_of(certificate) if isinstance(one.value, SubjectAlternativeName)),
            set[GeneralName](),
        )
    except EstError as refusal:
        raise ReplyNotAccepted("the issued certificate cannot be read") from refusal
    if not set(request.san) <= found:
        raise ReplyNotAccepted("the issued certificate lacks a subjectAltName that was asked for")
