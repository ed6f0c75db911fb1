"""A TPM 2.0 as this machine has it: connection, primary keys, and quotes of its registers.

Python's binding is the optional package tpm2-pytss. Keys here are primary keys: the TPM derives them from its seed, the
same each time, so nothing is stored and nothing can be lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from appliance.errors import TpmUnavailable


@dataclass(frozen=True, slots=True)
class Quoted:
    """What the TPM says: TPMS_ATTEST, its ECDSA signature (r and s of 32 octets), and the registers by number."""

    attest: bytes
    signature: bytes
    key: ec.EllipticCurvePublicKey
    pcrs: dict[int, bytes]


def binding() -> Any:
    """The package tpm2_pytss; raises TpmUnavailable where it is missing."""
    from importlib import import_module

    try:
        return import_module("tpm2_pytss")
    except (ImportError, OSError) as error:  # the binding is there and the libraries of tpm2-tss are not
        raise TpmUnavailable("keys in a TPM need the package tpm2-pytss: install the extra tpm") from error


@contextlib.contextmanager
def primary(tpm: Any, esapi: Any, kind: str, marks: Any) -> Iterator[tuple[Any, Any]]:
    """A primary key of the owner hierarchy, by handle, and its public part.

    `kind` is written as tpm2-tools do, `marks` come beside the usual attributes.
    """
    bits = tpm.TPMA_OBJECT
    fixed = bits.FIXEDTPM | bits.FIXEDPARENT | bits.SENSITIVEDATAORIGIN | bits.USERWITHAUTH
    template = tpm.TPM2B_PUBLIC.parse(kind, objectAttributes=fixed | marks)
    handle, public, *_ = esapi.create_primary(tpm.TPM2B_SENSITIVE_CREATE(), template, tpm.ESYS_TR.OWNER)
    with flushed(esapi, handle):
        yield handle, public


@contextlib.contextmanager
def flushed(esapi: Any, handle: Any) -> Iterator[None]:
    """A TPM has room for three objects: whatever happens, ours are gone afterwards."""
    try:
        yield
    finally:
        esapi.flush_context(handle)


def quote(tcti: str, numbers: Sequence[int], qualifying: bytes) -> Quoted:
    """The TPM's quote over these registers of its SHA-256 bank, with `qualifying` signed along; blocks meanwhile.

    The key is a restricted one on P-256: it signs what the TPM itself made, and nothing that it is handed. Raises
    TpmUnavailable, also when the registers change while they are read.
    """
    tpm = binding()
    bits = tpm.TPMA_OBJECT
    selection = tpm.TPML_PCR_SELECTION.parse("sha256:" + ",".join(map(str, sorted(numbers))))
    scheme = tpm.TPMT_SIG_SCHEME(scheme=tpm.TPM2_ALG.NULL)
    try:
        with (
            tpm.ESAPI(tcti) as esapi,
            primary(tpm, esapi, "ecc256:ecdsa-sha256:null", bits.RESTRICTED | bits.SIGN_ENCRYPT) as (handle, public),
        ):
            read = _read_registers(tpm, esapi, numbers)
            attest, signed = esapi.quote(handle, selection, tpm.TPM2B_DATA(qualifying), scheme)
            key = load_pem_public_key(public.to_pem())
    except (tpm.TSS2_Exception, ValueError, TypeError) as error:
        raise TpmUnavailable(f"the TPM makes no quote: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TpmUnavailable("the TPM made another kind of key than was asked for")
    pair = signed.signature.ecdsa
    parts = (int.from_bytes(bytes(one)).to_bytes(32) for one in (pair.signatureR, pair.signatureS))
    return Quoted(bytes(attest), b"".join(parts), key, read)


def _read_registers(tpm: Any, esapi: Any, numbers: Sequence[int]) -> dict[int, bytes]:
    """A TPM reads eight registers at a time at the most."""
    found: dict[int, bytes] = {}
    for number in sorted(numbers):
        selection = tpm.TPML_PCR_SELECTION.parse(f"sha256:{number}")
        _, _, values = esapi.pcr_read(selection)
        found[number] = bytes(values[0])
    return found
