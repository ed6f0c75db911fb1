"""DER, strictly: a small reader and writer of tag-length-value (X.690, sections 8.1 and 10.1).

Definite minimal lengths, single-octet tags, nothing left over. Network input meets this reader, or the equally strict
one inside cryptography, before anything else looks at it. Offsets instead of slices: a voucher is read in 20 us.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache

from est.errors import BodyMalformed

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
UTF8_STRING, PRINTABLE_STRING, IA5_STRING, UTC_TIME, GENERALIZED_TIME = 0x0C, 0x13, 0x16, 0x17, 0x18
SEQUENCE, SET = 0x30, 0x31
MAX_ELEMENTS = 20_000
MAX_OID = 64

Span = tuple[int, int]


def read_tlv(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Tag, start and stop of the value of the element at `at`; its successor begins at the stop.

    Raises BodyMalformed for anything but a definite minimal length that stays within `end`.
    """
    if end - at < 2:
        raise BodyMalformed("DER ends in the middle of an element")
    tag = data[at]
    if tag & 0x1F == 0x1F:
        raise BodyMalformed("DER tag number above 30")
    length = data[at + 1]
    start = at + 2
    if length > 0x7F:
        octets = length & 0x7F
        start += octets
        if not 1 <= octets <= 4 or start > end:
            raise BodyMalformed("DER length is indefinite, too long or cut off")
        length = int.from_bytes(data[at + 2 : start], "big")
        if length < 0x80 or length >> (8 * (octets - 1)) == 0:
            raise BodyMalformed("DER length is not minimal")
    stop = start + length
    if stop > end:
        raise BodyMalformed("DER element is longer than its container")
    return tag, start, stop


def expect(data: bytes, at: int, end: int, tag: int) -> Span:
    """Start and stop of the value at `at`, which must carry this tag."""
    # read_tlv() for the two lengths that most elements have: below 128 octets, and 256 to 65,535
    if end - at >= 4 and data[at] == tag:
        length = data[at + 1]
        if length < 0x80:
            stop = at + 2 + length
            if stop <= end:
                return at + 2, stop
        elif length == 0x82 and data[at + 2]:
            stop = at + 4 + (data[at + 2] << 8 | data[at + 3])
            if stop <= end:
                return at + 4, stop
    found, start, stop = read_tlv(data, at, end)
    if found != tag:
        raise BodyMalformed(f"DER tag {found:#04x} where {tag:#04x} is due")
    return start, stop


def only(data: bytes, at: int, end: int, tag: int) -> Span:
    """Like `expect`, and the element fills its container up to `end`."""
    span = expect(data, at, end, tag)
    if span[1] != end:
        raise BodyMalformed("DER has bytes after the element that should be the last")
    return span


def elements(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The elements between `at` and `end`: tag, start of the element, start and stop of its value."""
    while at < end:
        tag, start, stop = read_tlv(data, at, end)
        yield tag, at, start, stop
        at = stop


def read_integer(data: bytes, span: Span) -> int:
    """The INTEGER in this span, minimal (X.690, section 8.3.2)."""
    value = data[span[0] : span[1]]
    if not value or (
        len(value) > 1 and ((value[0] == 0 and value[1] < 0x80) or (value[0] == 0xFF and value[1] > 0x7F))
    ):
        raise BodyMalformed("DER INTEGER is empty or not minimal")
    return int.from_bytes(value, "big", signed=True)


def read_time(tag: int, value: bytes) -> datetime:
    """The moment in a UTCTime or GeneralizedTime with seconds and Z, the only form that DER has for it here."""
    if tag == UTC_TIME and len(value) == 13:
        value = (b"19" if value[:2] >= b"50" else b"20") + value
    elif tag != GENERALIZED_TIME or len(value) != 15:
        raise BodyMalformed("DER time in another form than UTCTime or GeneralizedTime with seconds")
    if value[-1:] != b"Z" or not value[:-1].isdigit():
        raise BodyMalformed("DER time without Z or with other characters than digits")
    try:
        month, day, hour, minute, second = (int(value[at : at + 2]) for at in range(4, 14, 2))
        return datetime(int(value[:4]), month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise BodyMalformed("DER time that does not exist") from error


def check(der: bytes, *, max_depth: int = 32) -> None:
    """Refuse (BodyMalformed) everything that is not exactly one DER element, walking all that is constructed."""
    _, start, stop = read_tlv(der, 0, len(der))
    if stop != len(der):
        raise BodyMalformed("bytes after the DER object")
    if not der[0] & 0x20:
        _check_primitive(der, der[0], start, stop)
        return
    _check_constructed(der[0])
    open_ends: list[int] = []
    at, end, count = start, stop, 0
    while True:
        while at == end:
            if not open_ends:
                return
            end = open_ends.pop()
        # read_tlv() for elements below 128 octets, which most are
        if end - at >= 2 and (length := der[at + 1]) < 0x80 and (tag := der[at]) & 0x1F != 0x1F:
            start = at + 2
            stop = start + length
            if stop > end:
                raise BodyMalformed("DER element is longer than its container")
        else:
            tag, start, stop = read_tlv(der, at, end)
        count += 1
        if count > MAX_ELEMENTS:
            raise BodyMalformed("DER has too many elements")
        if tag & 0x20:
            if tag < 0x40 and tag != SEQUENCE and tag != SET:
                _check_constructed(tag)
            if len(open_ends) + 1 >= max_depth:
                raise BodyMalformed("DER is nested too deeply")
            open_ends.append(end)
            at, end = start, stop
        else:
            if tag in _CHECKED:
                _check_primitive(der, tag, start, stop)
            at = stop


_CHECKED = frozenset({0x00, BOOLEAN, INTEGER, BIT_STRING, NULL, OID, 0x10, 0x11})
"""Primitive tags whose content has rules of its own, and tags that are never primitive."""


def _check_constructed(tag: int) -> None:
    if tag < 0x40 and tag not in (SEQUENCE, SET):
        raise BodyMalformed("DER string in constructed form")


def _check_primitive(der: bytes, tag: int, start: int, stop: int) -> None:
    if tag == INTEGER:
        read_integer(der, (start, stop))
    elif tag == BOOLEAN:
        if stop - start != 1 or der[start] not in (0x00, 0xFF):
            raise BodyMalformed("DER BOOLEAN is neither 00 nor FF")
    elif tag == NULL:
        if stop != start:
            raise BodyMalformed("DER NULL with content")
    elif tag == OID:
        if stop == start or der[stop - 1] & 0x80:
            raise BodyMalformed("DER OBJECT IDENTIFIER is empty or cut off")
    elif tag == BIT_STRING:
        if (
            stop == start
            or der[start] > 7
            or (der[start] and (stop - start == 1 or der[stop - 1] & ((1 << der[start]) - 1)))
        ):
            raise BodyMalformed("DER BIT STRING with wrong or set unused bits")
    elif tag in (0x00, 0x10, 0x11):
        raise BodyMalformed("DER SEQUENCE or SET in primitive form")


def tlv(tag: int, value: bytes) -> bytes:
    """One element."""
    length = len(value)
    if length < 0x80:
        return bytes((tag, length)) + value
    if length < 0x100:
        return bytes((tag, 0x81, length)) + value
    if length < 0x10000:
        return bytes((tag, 0x82, length >> 8, length & 0xFF)) + value
    octets = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | octets)) + length.to_bytes(octets, "big") + value


def header(tag: int, length: int) -> bytes:
    """Tag and length of an element, for whoever joins a large one out of parts without copying them twice."""
    if length < 0x80:
        return bytes((tag, length))
    octets = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | octets)) + length.to_bytes(octets, "big")


def sequence(*parts: bytes) -> bytes:
    """SEQUENCE of these encoded elements, in this order."""
    return tlv(SEQUENCE, b"".join(parts))


def set_of(parts: Iterable[bytes]) -> bytes:
    """SET OF these encoded elements, in DER order (X.690, section 11.6)."""
    return tlv(SET, b"".join(sorted(parts)))


def integer(value: int) -> bytes:
    """INTEGER, minimal two's complement."""
    octets = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return tlv(INTEGER, value.to_bytes(octets, "big", signed=True))


def write_time(moment: datetime) -> bytes:
    """UTCTime until 2049, GeneralizedTime after (RFC 5280, section 4.1.2.5)."""
    utc = moment.astimezone(UTC)
    rest = b"%02d%02d%02d%02d%02dZ" % (utc.month, utc.day, utc.hour, utc.minute, utc.second)
    if 1950 <= utc.year < 2050:
        return b"\x17\x0d%02d" % (utc.year % 100) + rest
    return b"\x18\x0f%04d" % utc.year + rest


@lru_cache(maxsize=256)
def oid(dotted: str) -> bytes:
    """OBJECT IDENTIFIER from dotted decimal."""
    arcs = [int(arc) for arc in dotted.split(".")]
    out = bytearray()
    for arc in (arcs[0] * 40 + arcs[1], *arcs[2:]):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | (arc & 0x7F))
        out += bytes(reversed(groups))
    return tlv(OID, bytes(out))


@lru_cache(maxsize=256)
def dotted(value: bytes) -> str:
    """Dotted decimal from the content octets of an OBJECT IDENTIFIER; raises BodyMalformed."""
    if len(value) > MAX_OID:  # first of all: an arc grows with its octets, and shifting it costs its length each time
        raise BodyMalformed("DER OBJECT IDENTIFIER is too long")
    arcs: list[int] = []
    number = 0
    fresh = True
    for octet in value:
        if fresh and octet == 0x80:
            raise BodyMalformed("DER OBJECT IDENTIFIER is not minimal")
        number = number << 7 | octet & 0x7F
        fresh = not octet & 0x80
        if fresh:
            arcs.append(number)
            number = 0
    if not arcs or not fresh:
        raise BodyMalformed("DER OBJECT IDENTIFIER is empty or cut off")
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))
