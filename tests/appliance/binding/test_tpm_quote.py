"""A TPM's quote inside evidence, made here in software; a real (swtpm) one is in tests/appliance/test_tpm.py."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from appliance.binding import jws, tpm_quote
from appliance.binding.claims import Claims
from appliance.binding.errors import BindingError, TpmQuoteInvalid
from appliance.binding.tpm_quote import TpmQuote

KEY = ec.derive_private_key(7, ec.SECP256R1())
NONCE, RQH = "n" * 43, "r" * 43
PCRS = {0: b"\x00" * 32, 7: b"\x07" * 32}


def attest(
    *,
    magic: int = 0xFF544347,
    kind: int = 0x8018,
    qualifying: bytes | None = None,
    algorithm: int = 0x000B,
    banks: int = 1,
    bits: bytes = b"\x81\x00\x00",
    digest: bytes | None = None,
    after: bytes = b"",
) -> bytes:
    """A TPMS_ATTEST as TPM 2.0 Library Part 2, section 10.12.8 lays it out."""
    name, told = b"\x00\x0b" + b"N" * 32, tpm_quote.qualifying_data(NONCE, RQH) if qualifying is None else qualifying
    shown = sha256(b"".join(PCRS.values())).digest() if digest is None else digest
    return (
        struct.pack(">IH", magic, kind)
        + struct.pack(">H", len(name)) + name
        + struct.pack(">H", len(told)) + told
        + struct.pack(">QIIBQ", 1, 2, 3, 1, 4)
        + struct.pack(">IHB", banks, algorithm, len(bits)) + bits
        + struct.pack(">H", len(shown)) + shown
        + after
    )  # fmt: skip


def signed(octets: bytes, pcrs: Mapping[int, bytes] = PCRS) -> TpmQuote:
    r, s = decode_dss_signature(KEY.sign(octets, ec.ECDSA(hashes.SHA256())))
    return TpmQuote(octets, r.to_bytes(32) + s.to_bytes(32), KEY.public_key(), pcrs)


@pytest.mark.req("A-21")
def test_a_quote_is_written_read_and_believed() -> None:
    made = signed(attest())
    again = tpm_quote.read(Claims(made.write(), "tpm"))
    assert again == made
    tpm_quote.check(again, nonce=NONCE, rqh=RQH)
    assert again.key_sha256 == made.key_sha256


@pytest.mark.req("A-23")
@pytest.mark.parametrize(
    ("octets", "pcrs"),
    [
        (attest(magic=0), PCRS),
        (attest(kind=0x8017), PCRS),  # a certification, also made inside
        (attest(qualifying=tpm_quote.qualifying_data("m" * 43, RQH)), PCRS),
        (attest(qualifying=tpm_quote.qualifying_data(NONCE, "s" * 43)), PCRS),
        (attest(qualifying=b""), PCRS),
        (attest(algorithm=0x0004), PCRS),  # the bank of SHA-1
        (attest(banks=2), PCRS),
        (attest(bits=b"\x80\x00\x00"), PCRS),
        (attest(digest=b"\x00" * 32), PCRS),
        (attest(after=b"\x00"), PCRS),
        (attest()[:-1], PCRS),
        (b"", PCRS),
        (attest(), {**PCRS, 7: b"\x08" * 32}),
        (attest(), {0: PCRS[0]}),
        (attest(), {**PCRS, 8: b"\x08" * 32}),
    ],
)
def test_whatever_is_signed_but_says_something_else_is_refused(octets: bytes, pcrs: Mapping[int, bytes]) -> None:
    with pytest.raises(TpmQuoteInvalid):
        tpm_quote.check(signed(octets, pcrs), nonce=NONCE, rqh=RQH)


def test_another_keys_signature_is_refused() -> None:
    made = signed(attest())
    other = TpmQuote(made.attest, made.signature, ec.derive_private_key(8, ec.SECP256R1()).public_key(), made.pcrs)
    for bad in (other, TpmQuote(made.attest, b"\x00" * 64, made.key, made.pcrs)):
        with pytest.raises(TpmQuoteInvalid, match="not signed"):
            tpm_quote.check(bad, nonce=NONCE, rqh=RQH)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attest": "!"}, "malformed"),
        ({"attest": "A" * 2000}, "claim-malformed"),
        ({"sig": jws.base64url(b"\x00" * 63)}, "claim-malformed"),
        ({"jwk": {}}, "malformed"),
        ({"pcrs": {"24": jws.base64url(b"\x00" * 32)}}, "claim-malformed"),
        ({"pcrs": {"07": jws.base64url(b"\x00" * 32)}}, "claim-malformed"),
        ({"pcrs": {"9" * 5000: jws.base64url(b"\x00" * 32)}}, "claim-malformed"),
        ({"pcrs": {"0": jws.base64url(b"\x00" * 20)}}, "claim-malformed"),
        ({"pcrs": []}, "claim-malformed"),
        ({"other": 1}, "claim-unknown"),
    ],
)
def test_members_have_their_shape(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BindingError) as caught:
        tpm_quote.read(Claims({**signed(attest()).write(), **changes}, "tpm"))
    assert caught.value.reason == reason


@given(st.binary(max_size=200))
def test_no_octets_do_anything_but_be_refused(octets: bytes) -> None:
    with pytest.raises(TpmQuoteInvalid):
        tpm_quote.check(signed(octets), nonce=NONCE, rqh=RQH)


@given(st.integers(0, len(attest()) * 8 - 1))
def test_a_changed_bit_in_what_was_signed_is_noticed(bit: int) -> None:
    made = signed(attest())
    octets = bytearray(made.attest)
    octets[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TpmQuoteInvalid):
        tpm_quote.check(TpmQuote(bytes(octets), made.signature, made.key, made.pcrs), nonce=NONCE, rqh=RQH)
