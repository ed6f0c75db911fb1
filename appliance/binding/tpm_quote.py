"""A TPM's quote beside a proxy's evidence: which software this machine booted, in the TPM's own word.

The TPM signs its platform configuration registers with an attestation key, which signs nothing that was not made inside
(TPM 2.0 Library Part 1, section 31; the structures are Part 2, sections 10.12 and 11.2). Its qualifying data bind it
to the nonce and to the hash of one request, so a quote counts once, like the evidence around it. Whose key it is, and
which registers are good, an appraisal policy says.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from appliance.binding import jws
from appliance.binding.claims import Claims
from appliance.binding.errors import TpmQuoteInvalid
from est.keys import spki_sha256

MAX_PCRS = 24
"""Registers of a PC client's TPM; all of one bank, SHA-256."""
_GENERATED = 0xFF544347
_QUOTE = 0x8018
_SHA256 = 0x000B
_MAX_ATTEST = 1024
_MEMBERS = frozenset({"attest", "sig", "jwk", "pcrs"})
_SIGNATURE_OCTETS = 64
_REGISTERS = frozenset(str(number) for number in range(MAX_PCRS))


@dataclass(frozen=True, slots=True)
class TpmQuote:
    """A quote as it came; nothing of it is believed before check().

    `attest` is the TPMS_ATTEST, `signature` r and s of 32 octets each, `key` the attestation key, `pcrs` the registers
    that it speaks of, by number.
    """

    attest: bytes
    signature: bytes
    key: ec.EllipticCurvePublicKey
    pcrs: Mapping[int, bytes]

    @property
    def key_sha256(self) -> bytes:
        """SHA-256 of the attestation key's SubjectPublicKeyInfo."""
        return spki_sha256(self.key)

    def write(self) -> dict[str, object]:
        """The members of `submods.tpm`."""
        return {
            "attest": jws.base64url(self.attest),
            "sig": jws.base64url(self.signature),
            "jwk": jws.jwk(self.key),
            "pcrs": {str(number): jws.base64url(value) for number, value in sorted(self.pcrs.items())},
        }


def qualifying_data(nonce: str, rqh: str) -> bytes:
    """What the TPM is given to sign along: SHA-256 of the nonce, a full stop, and the request's hash."""
    return sha256(f"{nonce}.{rqh}".encode("ascii")).digest()


def read(claims: Claims) -> TpmQuote:
    """The members of `submods.tpm`, each in its shape; raises Claim..., Malformed."""
    claims.check_names(_MEMBERS)
    pcrs = claims.inner("pcrs")
    found: dict[int, bytes] = {}
    for name, _ in pcrs.items():
        if name not in _REGISTERS:
            raise claims.malformed("pcrs", f"registers 0 to {MAX_PCRS - 1}")
        found[int(name)] = _octets(pcrs, name, 32)
    attest = claims.octets("attest", max_length=_MAX_ATTEST * 4 // 3 + 3)
    key = jws.read_ec_jwk(claims.value("jwk"), what="tpm jwk")
    return TpmQuote(attest, _octets(claims, "sig", _SIGNATURE_OCTETS), key, MappingProxyType(found))


def check(quote: TpmQuote, *, nonce: str, rqh: str) -> None:
    """Refuses (TpmQuoteInvalid) what is not its key's quote over just these registers for just this request."""
    r, s = quote.signature[:32], quote.signature[32:]
    signature = encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
    try:
        quote.key.verify(signature, quote.attest, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise TpmQuoteInvalid("the quote is not signed by the attestation key that it names") from error
    qualifying, selected, digest = _read_attest(quote.attest)
    if qualifying != qualifying_data(nonce, rqh):
        raise TpmQuoteInvalid("the quote was made for another request")
    if selected != tuple(sorted(quote.pcrs)):
        raise TpmQuoteInvalid("the quote speaks of other registers than those shown")
    if digest != sha256(b"".join(quote.pcrs[number] for number in selected)).digest():
        raise TpmQuoteInvalid("the registers shown are not those that the TPM signed")


def _read_attest(octets: bytes) -> tuple[bytes, tuple[int, ...], bytes]:
    """Qualifying data, registers and their digest of a TPMS_ATTEST that is a quote over one bank."""
    reader = _Reader(octets)
    magic, kind = reader.numbers(">IH")
    if magic != _GENERATED or kind != _QUOTE:
        raise TpmQuoteInvalid("this is no quote that a TPM made")
    reader.sized()  # qualifiedSigner: the name of the key, which the signature shows better
    qualifying = reader.sized()
    reader.numbers(">QIIBQ")  # clockInfo and firmwareVersion
    banks, algorithm, size = reader.numbers(">IHB")
    if banks != 1 or algorithm != _SHA256:
        raise TpmQuoteInvalid("a quote speaks of the bank of SHA-256 here, and of no other")
    bits = reader.take(size)
    digest = reader.sized()
    reader.end()
    selected = tuple(number for number in range(size * 8) if bits[number // 8] >> number % 8 & 1)
    return qualifying, selected, digest


class _Reader:
    """Big-endian fields one after the other; raises TpmQuoteInvalid where they end too early."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    def take(self, count: int) -> bytes:
        found = self._octets[self._at : self._at + count]
        if len(found) != count:
            raise TpmQuoteInvalid("the quote ends too early")
        self._at += count
        return found

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def sized(self) -> bytes:
        (size,) = self.numbers(">H")
        return self.take(size)

    def end(self) -> None:
        if self._at != len(self._octets):
            raise TpmQuoteInvalid("octets follow the quote")


def _octets(claims: Claims, name: str, count: int) -> bytes:
    octets = claims.octets(name, max_length=count * 4 // 3 + 3)
    if len(octets) != count:
        raise claims.malformed(name, f"{count} octets")
    return octets
