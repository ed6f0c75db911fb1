"""base64url and raw ECDSA signatures: one form each way."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from est import jose
from tests.support import key


@given(st.binary(max_size=100))
def test_base64url_comes_back_and_has_one_spelling(octets: bytes) -> None:
    text = jose.base64url(octets)
    assert jose.unbase64url(text.encode()) == octets
    assert not set(text) & set("+/=")


@pytest.mark.parametrize(
    "text", [b"A", b"AB", b"AAB", b"AA==", b"AA=", b"A+==", b"++++", b"////", b"AA A", b"AAA\n", b"\xc3\xa9AA"]
)
def test_anything_but_canonical_base64url_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        jose.unbase64url(text)


@given(st.integers(0, 2**256 - 1), st.integers(0, 2**256 - 1))
def test_signatures_come_back(r: int, s: int) -> None:
    raw = r.to_bytes(32) + s.to_bytes(32)
    assert jose.write_ecdsa(jose.read_ecdsa(raw, 32), 32) == raw


def test_signatures_verify_and_have_a_fixed_length() -> None:
    signer = key("jose")
    raw = jose.write_ecdsa(signer.sign(b"data", ec.ECDSA(hashes.SHA256())), 32)
    signer.public_key().verify(jose.read_ecdsa(raw, 32), b"data", ec.ECDSA(hashes.SHA256()))
    for wrong in (raw[:-1], raw + b"\0", b"", raw * 2):
        with pytest.raises(ValueError):
            jose.read_ecdsa(wrong, 32)
