"""ChangeSubjectName: a request that asks for other names than it carries (RFC 6402, section 2.8; RFC 7030, 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from est import der as tlv
from est.csr import Csr
from est.errors import BodyMalformed, CsrMalformed

CHANGE_SUBJECT_NAME = "1.3.6.1.5.5.7.7.36"
_COMMON_NAME = "2.5.4.3"
_SUBJECT_ALT = 0xA1
_STRINGS = (tlv.UTF8_STRING, tlv.PRINTABLE_STRING)


@dataclass(frozen=True, slots=True)
class NewNames:
    """The names asked for, DER. None does not mean "as before": the certificate would be without."""

    subject_der: bytes | None
    san_der: bytes | None

    @property
    def common_name(self) -> str | None:
        """The subject's one common name; None where there is anything else in it, or nothing."""
        der = self.subject_der
        if der is None:
            return None
        try:
            relative = tlv.only(der, *tlv.only(der, 0, len(der), tlv.SEQUENCE), tlv.SET)
            at, end = tlv.only(der, *relative, tlv.SEQUENCE)
            first, after = tlv.expect(der, at, end, tlv.OID)
            tag, start, stop = tlv.read_tlv(der, after, end)
            if tlv.dotted(der[first:after]) == _COMMON_NAME and tag in _STRINGS and stop == end:
                return der[start:stop].decode("utf-8")
        except (BodyMalformed, UnicodeDecodeError):
            pass
        return None


def read(csr: Csr) -> NewNames | None:
    """What the attribute asks for, None without it; raises CsrMalformed."""
    values = csr.attributes.get(CHANGE_SUBJECT_NAME)
    if values is None:
        return None
    if len(values) != 1:
        raise CsrMalformed("ChangeSubjectName must have exactly one value")
    try:
        found = _read_value(values[0])
    except BodyMalformed as error:
        raise CsrMalformed("ChangeSubjectName cannot be read") from error
    if found.subject_der is None and found.san_der is None:
        raise CsrMalformed("ChangeSubjectName names nothing")
    return found


def write(subject: x509.Name | None, san: x509.SubjectAlternativeName | None) -> bytes:
    """The attribute's value, with the tag that erratum 3943 gave to subjectAlt."""
    parts = [] if subject is None else [subject.public_bytes()]
    if san is not None:
        names = san.public_bytes()
        parts.append(tlv.tlv(_SUBJECT_ALT, names[slice(*tlv.only(names, 0, len(names), tlv.SEQUENCE))]))
    return tlv.sequence(*parts)


def _read_value(value: bytes) -> NewNames:
    """Both fields were a SEQUENCE until erratum 3943; what is in it tells which one it is: a Name holds SETs."""
    subject: bytes | None = None
    san: bytes | None = None
    for tag, begin, start, stop in tlv.elements(value, *tlv.only(value, 0, len(value), tlv.SEQUENCE)):
        is_name = tag == tlv.SEQUENCE and (start == stop or value[start] == tlv.SET)
        if is_name and subject is None and san is None:
            subject = value[begin:stop]
        elif not is_name and tag in (tlv.SEQUENCE, _SUBJECT_ALT) and san is None and start != stop:
            san = tlv.tlv(tlv.SEQUENCE, value[start:stop])
        else:
            raise CsrMalformed("ChangeSubjectName holds something else than a subject and subjectAlt")
    return NewNames(subject, san)
