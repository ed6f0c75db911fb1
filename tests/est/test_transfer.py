"""Bodies: every spelling that real clients send is read, everything else is refused."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from est import csr, profiles, transfer
from est.errors import BodyMalformed, BodyTooLarge
from tests.support import key

DER = csr.build(subject=profiles.name("proxy 1"), key=key("transfer"))
LINE = base64.b64encode(DER)
WRAPPED = base64.encodebytes(DER)


def armoured(word: bytes, *, glued: bool = False) -> bytes:
    end = b"" if glued else b"\n"
    return b"-----BEGIN " + word + b"-----" + end + WRAPPED + b"-----END " + word + b"-----" + end


@pytest.mark.req("E-20", "E-21", "E-22", "E-24")
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(LINE, id="one line"),
        pytest.param(LINE + b"\n", id="one line and LF"),
        pytest.param(WRAPPED, id="wrapped at 76"),
        pytest.param(WRAPPED.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(b" \t" + LINE[:9] + b" \t " + LINE[9:], id="spaces and tabs inside"),
        pytest.param(DER, id="raw DER"),
        pytest.param(armoured(b"CERTIFICATE REQUEST"), id="PEM"),
        pytest.param(armoured(b"NEW CERTIFICATE REQUEST"), id="PEM, old header"),
        pytest.param(armoured(b"CERTIFICATE REQUEST", glued=True), id="PEM with the armour glued on"),
        pytest.param(transfer.write_wrapped(DER), id="as our own client sends"),
    ],
)
def test_every_spelling_of_a_request_body_is_read(body: bytes) -> None:
    assert transfer.read_base64(body) == DER


@pytest.mark.req("E-27", "E-200")
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \r\n", id="white space only"),
        pytest.param(LINE[:-1], id="padding or last character missing"),
        pytest.param(LINE + b"====", id="padding too long"),
        pytest.param(LINE.replace(b"M", b"*", 1), id="foreign character"),
        pytest.param(LINE + LINE, id="two requests"),
        pytest.param(base64.b64encode(DER + DER), id="two objects in one base64"),
        pytest.param(base64.b64encode(DER + b"\0"), id="trailing byte"),
        pytest.param(DER + b"\0", id="raw DER with a trailing byte"),
        pytest.param(DER[:-1], id="raw DER cut off"),
        pytest.param(b"\xff" * 64, id="random bytes"),
        pytest.param(base64.urlsafe_b64encode(b"\x30\x03\xff\xff\xff"), id="URL alphabet"),
        pytest.param(armoured(b"CERTIFICATE"), id="other armour"),
        pytest.param(armoured(b"CERTIFICATE REQUEST") * 2, id="two armoured requests"),
        pytest.param(b"-----BEGIN CERTIFICATE REQUEST-----", id="armour without end"),
        pytest.param(b"MAB=", id="stray bits"),
        pytest.param("MIIé".encode(), id="not ASCII"),
    ],
)
def test_everything_else_is_malformed(body: bytes) -> None:
    with pytest.raises(BodyMalformed):
        transfer.read_base64(body)


@pytest.mark.req("E-201")
def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(BodyTooLarge) as refusal:
        transfer.read_base64(b"A" * 65537)
    assert refusal.value.fields["limit"] == 65536
    with pytest.raises(BodyMalformed):
        transfer.read_base64(b"A" * 65536)


@pytest.mark.req("E-26", "E-23")
@pytest.mark.parametrize("size", [1, 48, 700, 746, 747, 748, 3000])
@pytest.mark.parametrize("wrapped", [True, False, None])
def test_a_body_of_at_most_1000_bytes_is_one_line_and_a_longer_one_mirrors_the_request(
    size: int, wrapped: bool | None
) -> None:
    body = transfer.write_base64(bytes(size), wrapped=wrapped)
    assert base64.b64decode(body) == bytes(size)
    assert body.endswith(b"\n")
    lines = body.splitlines()
    if wrapped and len(base64.b64encode(bytes(size))) + 1 > 1000:
        assert {len(line) for line in lines[:-1]} == {64}
        assert b"\r" not in body
    else:
        assert len(lines) == 1


@pytest.mark.req("E-26")
def test_wrapping_is_recognised_by_a_line_break_and_never_in_raw_der() -> None:
    assert transfer.is_wrapped(WRAPPED)
    assert transfer.is_wrapped(WRAPPED.replace(b"\n", b"\r\n"))
    assert not transfer.is_wrapped(LINE)
    assert not transfer.is_wrapped(b"\x30\x01\n")


def test_json_from_outside_is_read() -> None:
    value = {"a": [1, -2, 1.5, True, None, '\u00e9 \\ " [[['], "b": {"c": "\U0001f600"}}
    assert transfer.read_json(json.dumps(value).encode()) == value


@pytest.mark.req("E-200")
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"a":1,"a":2}', id="duplicate name"),
        pytest.param(b'{"a":1,"\\u0061":2}', id="duplicate name in another spelling"),
        pytest.param(b'{"a":{"b":1,"b":1}}', id="duplicate name below"),
        pytest.param(b"[NaN]", id="NaN"),
        pytest.param(b"[-Infinity]", id="Infinity"),
        pytest.param(b"[1e999]", id="number out of range"),
        pytest.param(b"[" + b"9" * 21 + b"]", id="21 digits"),
        pytest.param(b"[" + b"9" * 5000 + b"]", id="5,000 digits"),
        pytest.param(b"[" * 17 + b"]" * 17, id="depth 17"),
        pytest.param(b"[" * 10000 + b"]" * 10000, id="depth 10,000"),
        pytest.param(b'{"a":' * 10000, id="depth 10,000, not closed"),
        pytest.param(b'["\\ud800"]', id="lone surrogate"),
        pytest.param(b'{"\\udfff":1}', id="lone surrogate in a name"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte order mark"),
        pytest.param(b'"\xff"', id="not UTF-8"),
        pytest.param(b"{} {}", id="two values"),
        pytest.param(b'{"a":1,}', id="trailing comma"),
        pytest.param(b"'a'", id="single quotes"),
        pytest.param(b'"' * 60000, id="quotes only"),
        pytest.param(b'"' + b'\\"' * 30000, id="unterminated string of escapes"),
    ],
)
def test_json_that_could_surprise_is_malformed(body: bytes) -> None:
    with pytest.raises(BodyMalformed):
        transfer.read_json(body)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**22), 10**22) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "ä", ""]), inner),
    max_leaves=8,
)
_PIECES = st.sampled_from(
    [b'{"a":1,"a":1}', b"-0", b"1e5", b"1E400", b"NaN", b"18446744073709551616", b'"\\ud800"', b'"\\u0061"', b" ",
     b'\xef\xbb\xbf"a"', b"[[[[[", b'"\xff"', b"1.0", b"0.10", b'"\\/"', b"", b"null"]
)  # fmt: skip


@given(
    _VALUES.map(lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()) | _PIECES, _PIECES
)
def test_json_is_read_alike_the_fast_way_and_the_slow_way(body: bytes, piece: bytes) -> None:
    for text in (
        body,
        b"[%b,%b]" % (body, piece),
        b'{"x":%b,"x":%b}' % (body, piece),
        b'{"x":%b,"y":%b}' % (piece, body),
    ):
        verdicts = []
        for way in (text, text + b" "):  # which no fast way reads
            try:
                verdicts.append(repr(transfer.read_json(way, max_depth=6)))
            except BodyMalformed as refusal:
                verdicts.append(refusal.detail)
        assert verdicts[0] == verdicts[1], text


def test_json_depth_counts_containers_and_not_brackets_in_strings() -> None:
    assert transfer.read_json(b"[" * 16 + b"]" * 16)
    assert transfer.read_json(b'["' + b"[" * 100 + b'\\"{{"]', max_depth=1)
    with pytest.raises(BodyMalformed):
        transfer.read_json(b"[[]]", max_depth=1)
    with pytest.raises(BodyTooLarge):
        transfer.read_json(b"[" + b" " * 100 + b"]", max_bytes=100)


@pytest.mark.parametrize("levels", [200, 480, 900, 20_000])
@pytest.mark.parametrize("inmost", [b"1", b'"\\u00e4"'])
def test_pairs_are_nested_as_deeply_as_the_decoder_takes_and_never_end_in_a_traceback(
    levels: int, inmost: bytes
) -> None:
    try:
        transfer.read_json_pairs(b'{"a":' * levels + inmost + b"}" * levels, max_bytes=1_000_000)
    except BodyMalformed:
        assert levels > 200
