"""CSR attributes: what a server wants to find in a certification request, and whether it is there
(RFC 7030, section 4.5.2; RFC 8951, section 4; RFC 9908).

Two encodings say the same: the old list of object identifiers and attributes, and the template, which looks like the
request that it asks for. A server may send both in one answer; who understands the template reads only that (RFC 9908,
section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from est import der as tlv
from est.csr import CHALLENGE_PASSWORD, EXTENSION_REQUEST, Csr
from est.errors import BodyMalformed, CsrAttributeMissing, CsrAttributesMalformed
from est.transfer import check_der

MAX_CSRATTRS = 16_384
EC_PUBLIC_KEY = "1.2.840.10045.2.1"
RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
TEMPLATE = "1.2.840.113549.1.9.16.2.61"
EXTENSION_TEMPLATE = "1.2.840.113549.1.9.16.2.62"
IDENTITY_LINKING = "1.2.840.113549.1.9.16.2.58"
REVOCATION_CHALLENGE = "1.2.840.113549.1.9.16.2.57"
OTP_CHALLENGE = "1.2.840.113549.1.9.16.2.56"
SUBJECT_ALT_NAME = "2.5.29.17"
COMMON_NAME = "2.5.4.3"

CURVES: Mapping[str, str] = MappingProxyType(
    {"secp256r1": "1.2.840.10045.3.1.7", "secp384r1": "1.3.132.0.34", "secp521r1": "1.3.132.0.35"}
)
_ECDSA_WITH: Mapping[str, str] = MappingProxyType(
    {"2.16.840.1.101.3.4.2.1": "1.2.840.10045.4.3.2", "2.16.840.1.101.3.4.2.2": "1.2.840.10045.4.3.3",
     "2.16.840.1.101.3.4.2.3": "1.2.840.10045.4.3.4"}
)  # fmt: skip
_RSA_WITH: Mapping[str, str] = MappingProxyType(
    {"2.16.840.1.101.3.4.2.1": "1.2.840.113549.1.1.11", "2.16.840.1.101.3.4.2.2": "1.2.840.113549.1.1.12",
     "2.16.840.1.101.3.4.2.3": "1.2.840.113549.1.1.13"}
)  # fmt: skip
_ALGORITHMS = frozenset({*_ECDSA_WITH, *_ECDSA_WITH.values(), *_RSA_WITH.values()})
_REQUEST_ATTRIBUTES = frozenset({CHALLENGE_PASSWORD, IDENTITY_LINKING, REVOCATION_CHALLENGE, OTP_CHALLENGE})
_DN_ARC = "2.5.4."
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        CHALLENGE_PASSWORD: "challengePassword", IDENTITY_LINKING: "estIdentityLinking",
        REVOCATION_CHALLENGE: "revocationChallenge", OTP_CHALLENGE: "otpChallenge", SUBJECT_ALT_NAME: "subjectAltName",
        COMMON_NAME: "commonName", "2.5.4.5": "serialNumber", "2.5.4.6": "countryName", "2.5.4.7": "localityName",
        "2.5.4.10": "organizationName", "2.5.4.11": "organizationalUnitName", "2.5.29.15": "keyUsage",
        "2.5.29.37": "extKeyUsage", "1.2.840.10045.3.1.7": "P-256", "1.3.132.0.34": "P-384", "1.3.132.0.35": "P-521",
        "2.16.840.1.101.3.4.2.1": "SHA-256", "2.16.840.1.101.3.4.2.2": "SHA-384", "2.16.840.1.101.3.4.2.3": "SHA-512",
        "1.2.840.10045.4.3.2": "ecdsa-with-SHA256", "1.2.840.10045.4.3.3": "ecdsa-with-SHA384",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KeyDemand:
    """A key of this algorithm (dotted), on this curve (dotted) or of this RSA size in bits; None = any."""

    algorithm: str
    curve: str | None = None
    bits: int | None = None


@dataclass(frozen=True, slots=True)
class NameDemand:
    """A subject attribute of this type (dotted); `value` is its DER with tag, None = the client fills it in."""

    kind: str
    value: bytes | None = None


@dataclass(frozen=True, slots=True)
class ExtensionDemand:
    """A requested extension of this type (dotted); `value` are the octets of extnValue, None = the client's choice."""

    kind: str
    critical: bool = False
    value: bytes | None = None


@dataclass(frozen=True, slots=True)
class CsrAttrs:
    """What a CSR must have. `subject` None = names are not constrained; `attributes` and `algorithms` are dotted.

    `algorithms` are signature or hash algorithms of which one must have been used. `others` are items that are not
    understood here; a client ignores them (RFC 7030, section 4.5.2).
    """

    key: KeyDemand | None = None
    subject: tuple[NameDemand, ...] | None = None
    extensions: tuple[ExtensionDemand, ...] = ()
    attributes: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.key or self.subject is not None or self.extensions or self.attributes or self.algorithms or self.others
        )


def name_of(dotted: str) -> str:
    """The usual name of an object identifier that appears here, or its digits."""
    return _NAMES.get(dotted, dotted)


def write(wanted: CsrAttrs, *, old: bool = True, template: bool = True) -> bytes:
    """DER CsrAttrs in the old form, as a template, or with both in one answer; an empty SEQUENCE demands nothing.

    The old form cannot leave the value of an extension open, so such extensions are in the template only.
    """
    items: list[bytes] = []
    if old:
        items += [tlv.oid(kind) for kind in (*wanted.attributes, *wanted.algorithms)]
        items += [tlv.oid(one.kind) for one in wanted.subject or ()]
        if wanted.key is not None:
            items.append(_attribute(wanted.key.algorithm, *_key_parameters(wanted.key)))
        full = [_extension(one) for one in wanted.extensions if one.value is not None]
        if full:
            items.append(_attribute(EXTENSION_REQUEST, tlv.sequence(*full)))
    if template and wanted:
        items.append(_attribute(TEMPLATE, _write_template(wanted)))
    return tlv.sequence(*items)


def read(der: bytes) -> CsrAttrs:
    """What an answer to csrattrs demands; the template alone where there is one (RFC 9908, section 4).

    Unknown items and duplicates are taken; the malformed extension request of RFC 7030's own example is passed over
    (RFC 9908, section 5.2). Raises CsrAttributesMalformed, BodyTooLarge.
    """
    try:
        check_der(der, max_bytes=MAX_CSRATTRS)
        plain: list[str] = []
        attributes: list[tuple[str, list[bytes]]] = []
        for tag, at, start, stop in tlv.elements(der, *tlv.only(der, 0, len(der), tlv.SEQUENCE)):
            if tag == tlv.OID:
                plain.append(tlv.dotted(der[start:stop]))
            elif tag == tlv.SEQUENCE:
                attributes.append(_read_attribute(der, at, stop))
            else:
                raise CsrAttributesMalformed("an item is neither an OBJECT IDENTIFIER nor an Attribute")
        for kind, values in attributes:
            if kind == TEMPLATE:
                if len(values) != 1:
                    raise CsrAttributesMalformed("the template must have exactly one value")
                return _read_template(values[0])
        return _read_old(plain, attributes)
    except BodyMalformed as error:
        raise CsrAttributesMalformed(error.detail) from error


def check(csr: Csr, wanted: CsrAttrs) -> None:
    """Hold a request against what was demanded; raises CsrAttributeMissing, which names the first thing that lacks.

    (RFC 8995, section 5.9.2: the registrar checks the CSR against what it told.)
    """
    if wanted.key is not None:
        _check_key(csr, wanted.key)
    if wanted.algorithms:
        used = _signature_algorithm(csr.der)
        taken = {used} | {short for table in (_ECDSA_WITH, _RSA_WITH) for short, long in table.items() if long == used}
        if taken.isdisjoint(wanted.algorithms):
            _lacks(" or ".join(map(name_of, wanted.algorithms)), "signature algorithm")
    for name in wanted.subject or ():
        found = _values_in_subject(csr, name.kind)
        if not found or (name.value is not None and name.value not in found):
            _lacks(name_of(name.kind), "subject attribute")
    for kind in wanted.attributes:
        if kind not in csr.attributes:
            _lacks(name_of(kind), "attribute")
    asked = {one.oid.dotted_string: one.value.public_bytes() for one in csr.extensions}
    if csr.san_der is not None:
        asked[SUBJECT_ALT_NAME] = csr.san_der
    for extension in wanted.extensions:
        value = asked.get(extension.kind)
        if value is None or (extension.value is not None and value != extension.value):
            _lacks(name_of(extension.kind), "extension")


def _lacks(item: str, what: str) -> None:
    raise CsrAttributeMissing(f"the request lacks the {what} {item} that csrattrs asks for", item=item)


def _values_in_subject(csr: Csr, kind: str) -> list[bytes]:
    """The values of one type in the subject, DER with tag, as they were sent."""
    wanted = tlv.oid(kind)
    found = []
    der = csr.subject_der
    for _, _, start, stop in tlv.elements(der, *tlv.only(der, 0, len(der), tlv.SEQUENCE)):
        for _, _, first, last in tlv.elements(der, start, stop):
            _, after = tlv.expect(der, first, last, tlv.OID)
            if der[first:after] == wanted:
                found.append(der[after:last])
    return found


def _check_key(csr: Csr, wanted: KeyDemand) -> None:
    key = csr.public_key
    if isinstance(key, ec.EllipticCurvePublicKey):
        fits = wanted.algorithm == EC_PUBLIC_KEY and wanted.curve in (None, CURVES.get(key.curve.name))
    else:
        assert isinstance(key, rsa.RSAPublicKey)  # est.csr reads no others
        fits = wanted.algorithm == RSA_ENCRYPTION and wanted.bits in (None, key.key_size)
    if fits:
        return
    if wanted.algorithm == EC_PUBLIC_KEY:
        _lacks("an elliptic curve" if wanted.curve is None else name_of(wanted.curve), "key on")
    _lacks("RSA" if wanted.bits is None else f"RSA with {wanted.bits} bits", "key of type")


def _signature_algorithm(der: bytes) -> str:
    start, stop = tlv.only(der, 0, len(der), tlv.SEQUENCE)
    _, _, _, info_end = next(tlv.elements(der, start, stop))
    first, last = tlv.expect(der, info_end, stop, tlv.SEQUENCE)
    return tlv.dotted(der[slice(*tlv.expect(der, first, last, tlv.OID))])


def _key_parameters(key: KeyDemand) -> list[bytes]:
    if key.curve is not None:
        return [tlv.oid(key.curve)]
    return [] if key.bits is None else [tlv.integer(key.bits)]


def _attribute(kind: str, *values: bytes) -> bytes:
    return tlv.sequence(tlv.oid(kind), tlv.set_of(values))


def _extension(one: ExtensionDemand) -> bytes:
    value = b"" if one.value is None else tlv.tlv(tlv.OCTET_STRING, one.value)
    return tlv.sequence(tlv.oid(one.kind), b"\x01\x01\xff" if one.critical else b"", value)


def _write_template(wanted: CsrAttrs) -> bytes:
    """CertificationRequestInfoTemplate with implicit tags (RFC 9908, section 3.4)."""
    parts = [tlv.integer(0)]
    if wanted.subject is not None:
        parts.append(
            tlv.sequence(*(tlv.set_of([tlv.sequence(tlv.oid(one.kind), one.value or b"")]) for one in wanted.subject))
        )
    if wanted.key is not None:
        parts.append(tlv.tlv(0xA0, _write_key(wanted.key)))
    attributes = [_attribute(kind) for kind in wanted.attributes]
    if wanted.extensions:
        is_full = all(one.value is not None for one in wanted.extensions)
        kind = EXTENSION_REQUEST if is_full else EXTENSION_TEMPLATE
        attributes.append(_attribute(kind, tlv.sequence(*map(_extension, wanted.extensions))))
    parts.append(tlv.tlv(0xA1, b"".join(sorted(attributes))))
    return tlv.sequence(*parts)


def _write_key(key: KeyDemand) -> bytes:
    """SubjectPublicKeyInfoTemplate; an RSA size is shown by a placeholder modulus of that size."""
    if key.algorithm != RSA_ENCRYPTION:
        return tlv.sequence(tlv.oid(key.algorithm), *_key_parameters(key))
    algorithm = tlv.sequence(tlv.oid(RSA_ENCRYPTION), tlv.tlv(tlv.NULL, b""))
    if key.bits is None:
        return algorithm
    placeholder = tlv.sequence(tlv.integer((1 << key.bits) - 1), tlv.integer(65537))
    return algorithm + tlv.tlv(tlv.BIT_STRING, b"\x00" + placeholder)


def _read_attribute(der: bytes, at: int, end: int) -> tuple[str, list[bytes]]:
    """Type and values, each value with its tag."""
    start, stop = tlv.only(der, at, end, tlv.SEQUENCE)
    first, last = tlv.expect(der, start, stop, tlv.OID)
    values = tlv.only(der, last, stop, tlv.SET)
    return tlv.dotted(der[first:last]), [der[a:b] for _, a, _, b in tlv.elements(der, *values)]


def _read_old(plain: Sequence[str], attributes: Sequence[tuple[str, list[bytes]]]) -> CsrAttrs:
    key: KeyDemand | None = None
    extensions: tuple[ExtensionDemand, ...] = ()
    others = [kind for kind in plain if kind not in _REQUEST_ATTRIBUTES | _ALGORITHMS and not kind.startswith(_DN_ARC)]
    for kind, values in attributes:
        if kind in (EC_PUBLIC_KEY, RSA_ENCRYPTION):
            key = key or _read_key_attribute(kind, values)
        elif kind == EXTENSION_REQUEST:
            if len(values) == 1 and values[0][0] == tlv.SEQUENCE and not extensions:
                extensions = _read_extensions(values[0])
        else:
            others.append(kind)
    names = tuple(NameDemand(kind) for kind in dict.fromkeys(plain) if kind.startswith(_DN_ARC))
    return CsrAttrs(
        key,
        names or None,
        extensions,
        tuple(kind for kind in dict.fromkeys(plain) if kind in _REQUEST_ATTRIBUTES),
        tuple(kind for kind in dict.fromkeys(plain) if kind in _ALGORITHMS),
        tuple(dict.fromkeys(others)),
    )


def _read_key_attribute(kind: str, values: Sequence[bytes]) -> KeyDemand:
    if len(values) > 1:
        raise CsrAttributesMalformed("a key attribute must have at most one value")
    if not values:
        return KeyDemand(kind)
    value = values[0]
    tag = tlv.OID if kind == EC_PUBLIC_KEY else tlv.INTEGER
    span = tlv.only(value, 0, len(value), tag)
    if kind == EC_PUBLIC_KEY:
        return KeyDemand(kind, curve=tlv.dotted(value[slice(*span)]))
    return KeyDemand(kind, bits=tlv.read_integer(value, span))


def _read_extensions(der: bytes) -> tuple[ExtensionDemand, ...]:
    """Extensions or their template; an empty GeneralNames is a value to be filled in (RFC 9908, section 3.4)."""
    found: dict[str, ExtensionDemand] = {}
    for _, _, start, stop in tlv.elements(der, *tlv.only(der, 0, len(der), tlv.SEQUENCE)):
        first, at = tlv.expect(der, start, stop, tlv.OID)
        kind, critical, value = tlv.dotted(der[first:at]), False, None
        if at < stop and der[at] == tlv.BOOLEAN:
            first, at = tlv.expect(der, at, stop, tlv.BOOLEAN)
            critical = der[first] != 0
        if at < stop:
            value = der[slice(*tlv.only(der, at, stop, tlv.OCTET_STRING))]
        if kind in found:
            raise CsrAttributesMalformed("an extension is asked for twice")
        is_open = kind == SUBJECT_ALT_NAME and value == b"\x30\x00"
        found[kind] = ExtensionDemand(kind, critical, None if is_open else value)
    return tuple(found.values())


def _read_template(der: bytes) -> CsrAttrs:
    at, end = tlv.only(der, 0, len(der), tlv.SEQUENCE)
    span = tlv.expect(der, at, end, tlv.INTEGER)
    if tlv.read_integer(der, span) != 0:
        raise CsrAttributesMalformed("the template has another version than 0")
    at, subject, key = span[1], None, None
    if at < end and der[at] == tlv.SEQUENCE:
        start, at = tlv.expect(der, at, end, tlv.SEQUENCE)
        subject = _read_subject(der, start, at)
    if at < end and der[at] == 0xA0:
        start, at = tlv.expect(der, at, end, 0xA0)
        key = _read_key(der, start, at)
    extensions: tuple[ExtensionDemand, ...] | None = None
    attributes: list[str] = []
    others: list[str] = []
    for _, first, _, last in tlv.elements(der, *tlv.only(der, at, end, 0xA1)):
        kind, values = _read_attribute(der, first, last)
        if kind in (EXTENSION_REQUEST, EXTENSION_TEMPLATE):
            if extensions is not None or len(values) != 1:
                raise CsrAttributesMalformed("the template asks for extensions in more than one place")
            extensions = _read_extensions(values[0])
        else:
            (attributes if kind in _REQUEST_ATTRIBUTES else others).append(kind)
    return CsrAttrs(key, subject, extensions or (), tuple(dict.fromkeys(attributes)), (), tuple(dict.fromkeys(others)))


def _read_subject(der: bytes, at: int, end: int) -> tuple[NameDemand, ...]:
    names = []
    for tag, _, start, stop in tlv.elements(der, at, end):
        if tag != tlv.SET:
            raise CsrAttributesMalformed("the template's subject is not a sequence of sets")
        for _, _, first, last in tlv.elements(der, start, stop):
            oid_at, after = tlv.expect(der, first, last, tlv.OID)
            value = der[after:last]
            if value and tlv.read_tlv(value, 0, len(value))[2] != len(value):
                raise CsrAttributesMalformed("a name in the template has more than one value")
            names.append(NameDemand(tlv.dotted(der[oid_at:after]), value or None))
    return tuple(names)


def _read_key(der: bytes, at: int, end: int) -> KeyDemand:
    if der[at : at + 1] != b"\x30":
        raise CsrAttributesMalformed("the template's key has no algorithm")
    start, after = tlv.expect(der, at, end, tlv.SEQUENCE)
    # SubjectPublicKeyInfoTemplate ::= SEQUENCE { algorithm, subjectPublicKey OPTIONAL }, under an implicit tag
    first, rest = tlv.expect(der, start, after, tlv.OID)
    kind = tlv.dotted(der[first:rest])
    if kind == EC_PUBLIC_KEY:
        return KeyDemand(
            kind, curve=tlv.dotted(der[slice(*tlv.only(der, rest, after, tlv.OID))]) if rest < after else None
        )
    if kind != RSA_ENCRYPTION or after == end:
        return KeyDemand(kind)
    start, stop = tlv.only(der, after, end, tlv.BIT_STRING)
    first, last = tlv.only(der, start + 1, stop, tlv.SEQUENCE)
    modulus = tlv.read_integer(der, tlv.expect(der, first, last, tlv.INTEGER))
    return KeyDemand(kind, bits=modulus.bit_length())
