"""What the proxy's request says: names and key, as the EST server asks for them (RFC 7030, section 4.5; RFC 9908).

What the proxy does not know or cannot do is passed over (RFC 7030, section 4.5.2); the server then says what it misses.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import identifier
from appliance.binding.errors import BindingError
from est import chains, csr, csrattrs
from est import der as tlv
from est.csrattrs import CsrAttrs
from est.errors import EstError

_CURVES: dict[str | None, ec.EllipticCurve] = {
    csrattrs.CURVES["secp256r1"]: ec.SECP256R1(),
    csrattrs.CURVES["secp384r1"]: ec.SECP384R1(),
}
_STRINGS = (tlv.UTF8_STRING, tlv.PRINTABLE_STRING)
_URI = 0x86
_SAN = x509.SubjectAlternativeName.oid


@dataclass(frozen=True, slots=True)
class Asking:
    """Names and curve of a request; `san_der` is the value of subjectAltName, None = no such extension.

    `links_by` is the attribute, dotted, that ties the request to its connection: a server that lists estIdentityLinking
    gets that (RFC 7894, section 3.2), others get challengePassword.
    """

    subject: x509.Name
    san_der: bytes | None
    curve: ec.EllipticCurve
    links_by: str = csr.CHALLENGE_PASSWORD

    def fits(self, der: bytes) -> bool:
        """Whether this request asks for the same."""
        request = csr.read(der)
        key = request.public_key
        return (
            (request.subject, request.san_der) == (self.subject, self.san_der)
            and isinstance(key, ec.EllipticCurvePublicKey)
            and key.curve.name == self.curve.name
        )

    def request(self, key: ec.EllipticCurvePrivateKey, *, binding: bytes | None = None) -> bytes:
        """The signed request, DER; `binding` is the text that ties it to its connection (est.linking)."""
        names = () if self.san_der is None else (x509.UnrecognizedExtension(_SAN, self.san_der),)
        linked = {} if binding is None else {self.links_by: (tlv.tlv(tlv.UTF8_STRING, binding),)}
        return csr.build(subject=self.subject, key=key, extensions=names, attributes=linked)


def first(wanted: CsrAttrs) -> Asking:
    """A first request. Without demands it names nobody: who the proxy is, the registrar decides."""
    curve = _CURVES.get(wanted.key.curve if wanted.key else None, ec.SECP256R1())
    demanded = next((one.value for one in wanted.extensions if one.kind == csrattrs.SUBJECT_ALT_NAME), None)
    san_der = demanded if demanded is not None and _uris(demanded) else None
    is_listed = csrattrs.IDENTITY_LINKING in wanted.attributes
    links_by = csrattrs.IDENTITY_LINKING if is_listed else csr.CHALLENGE_PASSWORD
    return Asking(_subject(wanted, san_der), san_der, curve, links_by)


def again(old: x509.Certificate) -> Asking:
    """A renewal: the names stay (RFC 7030, section 4.2.2)."""
    san = next((one.value for one in chains.extensions_of(old) if one.oid == _SAN), None)
    return Asking(old.subject, None if san is None else san.public_bytes(), ec.SECP256R1())


def _subject(wanted: CsrAttrs, san_der: bytes | None) -> x509.Name:
    """Values that the server gives are taken; of what it leaves to us we know a common name only."""
    names = []
    for one in wanted.subject or ():
        kind = x509.ObjectIdentifier(one.kind)
        try:
            if one.value is not None:
                tag, start, stop = tlv.read_tlv(one.value, 0, len(one.value))
                if tag in _STRINGS:
                    names.append(x509.NameAttribute(kind, one.value[start:stop].decode()))
            elif one.kind == csrattrs.COMMON_NAME:
                names.append(x509.NameAttribute(kind, _common_name(san_der)))
        except (ValueError, EstError):  # not text, or not a value for this attribute
            continue
    return x509.Name(names)


def _common_name(san_der: bytes | None) -> str:
    for uri in _uris(san_der) if san_der is not None else ():
        try:
            return f"proxy {identifier.read_kind(uri, identifier.Kind.PROXY).segments[-1]}"
        except BindingError:
            continue
    return "identity proxy"


def _uris(san_der: bytes) -> list[str]:
    """The URIs that these names consist of; empty when they are something else."""
    found = []
    try:
        for tag, _, start, stop in tlv.elements(san_der, *tlv.only(san_der, 0, len(san_der), tlv.SEQUENCE)):
            if tag != _URI:
                return []
            found.append(san_der[start:stop].decode("ascii"))
    except (EstError, UnicodeDecodeError):
        return []
    return found if len(found) <= csr.MAX_SANS else []
