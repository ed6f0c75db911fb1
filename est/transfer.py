"""Bodies on the wire: base64 of DER, read leniently, written exactly; JSON without surprises (RFC 8951, section 3).

Real clients disagree about white space, armour and line length; what is accepted and sent here is the one combination
that the tested ones agree on. After white space is gone everything is strict.
"""

from __future__ import annotations

import binascii
import json
import math
import re

import orjson

from est import der as tlv
from est.errors import BodyMalformed, BodyTooLarge

MAX_BODY = 65536
ONE_LINE = 1000
"""Longest body in bytes, final LF included, that goes out as one line to everybody."""

_ARMOUR = re.compile(
    rb"\s*-----BEGIN (NEW )?CERTIFICATE REQUEST-----([^-]*)-----END (NEW )?CERTIFICATE REQUEST-----\s*\Z"
)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND = bytes.maketrans(b"[]{}", b"()()")


def check_der(der: bytes, *, max_depth: int = 32, max_bytes: int = MAX_BODY) -> None:
    """The gate before every lenient parser: one DER object, nothing after it.

    Definite minimal lengths, depth and number of elements bounded. Raises BodyTooLarge or BodyMalformed.
    """
    if len(der) > max_bytes:
        raise BodyTooLarge(f"more than {max_bytes} bytes", limit=max_bytes)
    tlv.check(der, max_depth=max_depth)


def read_base64(body: bytes, *, max_bytes: int = MAX_BODY) -> bytes:
    """The DER object in an EST body, whatever Content-Transfer-Encoding says (RFC 8951, section 3).

    White space anywhere is dropped; a PEM-armoured CSR and raw DER are taken too, because clients send them. What is
    left must be canonical base64 of exactly one DER object. Raises BodyTooLarge or BodyMalformed.
    """
    der = decode_base64(body, max_bytes=max_bytes)
    check_der(der, max_bytes=max_bytes)
    return der


def decode_base64(body: bytes, *, max_bytes: int = MAX_BODY) -> bytes:
    """`read_base64` for a reader that looks at the DER itself: `check_der` has still to follow."""
    if len(body) > max_bytes:
        raise BodyTooLarge(f"more than {max_bytes} bytes", limit=max_bytes)
    # 0x30 is SEQUENCE, and also the digit "0", with which no base64 of a SEQUENCE can begin.
    if body[:1] == b"\x30":
        return body
    if body.lstrip()[:5] == b"-----":
        armoured = _ARMOUR.match(body)
        if not armoured or armoured[1] != armoured[3]:
            raise BodyMalformed("PEM armour is not that of one certificate request")
        body = armoured[2]
    # one search each, where there is nothing to drop; translate() would look at every octet in a table
    text = body.replace(b"\n", b"").replace(b"\r", b"").replace(b" ", b"").replace(b"\t", b"")
    if not text:
        raise BodyMalformed("the body is empty")
    try:
        der = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise BodyMalformed("the body is not base64") from error
    groups = len(der) // 3  # of four characters each, in which no bit is left over
    if binascii.b2a_base64(der[3 * groups :], newline=False) != text[4 * groups :]:
        raise BodyMalformed("the base64 has stray bits in its last character")
    return der


def is_wrapped(body: bytes) -> bool:
    """Whether a base64 body came with line breaks, which tells what its sender can read back."""
    return body[:1] != b"\x30" and (b"\n" in body or b"\r" in body)


def write_base64(der: bytes, *, wrapped: bool | None = None) -> bytes:
    """The body of a response: one line and LF if at most 1000 bytes, else wrapped at 64 if `wrapped`, else one line."""
    line = binascii.b2a_base64(der)
    if wrapped and len(line) > ONE_LINE:
        return write_wrapped(der)
    return line


def write_wrapped(der: bytes) -> bytes:
    """The body of a request: lines of 64 and a final LF, which every tested server reads."""
    line = binascii.b2a_base64(der, newline=False)
    return b"".join(line[at : at + 64] + b"\n" for at in range(0, len(line), 64))


def read_json(body: bytes, *, max_bytes: int = MAX_BODY, max_depth: int = 16) -> object:
    """The JSON value in a body from outside.

    UTF-8 without byte order mark or lone surrogates, no duplicate names, no NaN or Infinity, integers of at most 20
    digits, arrays and objects nested at most `max_depth`. Raises BodyTooLarge or BodyMalformed.
    """
    # What orjson writes in the same octets again has no name twice, no white space and no number of two meanings. Most
    # programs write JSON like that. Brackets that are too few to nest too deeply need not be looked at.
    if len(body) <= min(max_bytes, MAX_BODY) and body.count(b"[") + body.count(b"{") <= max_depth:
        try:
            value: object = orjson.loads(body)
            if orjson.dumps(value) == body:
                return value
        except (orjson.JSONDecodeError, TypeError):
            pass  # the slow way has the words for it
    return _read(body, _DECODER, max_bytes, max_depth)


def _read(body: bytes, decoder: json.JSONDecoder, max_bytes: int, max_depth: int | None) -> object:
    if len(body) > max_bytes:
        raise BodyTooLarge(f"more than {max_bytes} bytes", limit=max_bytes)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BodyMalformed("the JSON is not UTF-8") from error
    # so few brackets cannot nest too deeply
    if max_depth is not None and body.count(b"[") + body.count(b"{") > max_depth:
        _check_depth(body, max_depth)
    try:
        value: object = _decode(text, decoder)
    except ValueError as error:
        raise BodyMalformed("the body is not JSON") from error
    except RecursionError as error:
        raise BodyMalformed("the JSON is nested too deeply") from error
    if "\\" in text and "\\u" in text:  # to look for one character first is ten times as fast
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BodyMalformed("the JSON has a lone surrogate") from error
        except RecursionError as error:
            raise BodyMalformed("the JSON is nested too deeply") from error
    return value


def _decode(text: str, decoder: json.JSONDecoder) -> object:
    """`decoder.decode`, whose search for white space around the value costs as much as reading a small one."""
    if text[:1] == "{" and text[-1:] == "}":
        value, end = decoder.raw_decode(text)
        if end == len(text):
            return value
    return decoder.decode(text)


def read_json_pairs(body: bytes, *, max_bytes: int) -> object:
    """As read_json(), but objects come as tuples of (name, value), and names given twice are the caller's to refuse.

    So is what is nested more deeply than the caller expects: here only the decoder's own bound counts, some hundred
    levels. For bodies of many small objects that are read once: no function of ours runs per object, and to count
    their brackets would take as long as to read them.
    """
    return _read(body, _PAIRS, max_bytes, None)


def _check_depth(body: bytes, max_depth: int) -> None:
    """Peel the brackets from inside, one level at a time: as many rounds as levels, each of them in C.

    Escaped quotes go first, then every second piece between quotes is outside of strings. Where a backslash stands
    outside of a string the pieces may be wrong, but there the decoder stops as well and never sees what follows.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(body.split(b'"')[::2]).translate(_ONE_KIND, _NO_BRACKET)
    for _ in range(max_depth):
        brackets = brackets.replace(b"()", b"")
        if not brackets:
            return
    raise BodyMalformed("the JSON is nested too deeply, or its brackets do not match")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise BodyMalformed("the JSON has a duplicate name")
    return members


def _no_constant(word: str) -> object:
    raise BodyMalformed(f"the JSON has {word}")


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise BodyMalformed("the JSON has an integer of more than 20 digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise BodyMalformed("the JSON has a number that is out of range")
    return number


_PAIRS = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_no_constant, parse_int=_integer, parse_float=_float)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_integer, parse_float=_float
)
