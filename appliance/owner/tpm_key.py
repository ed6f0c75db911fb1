"""An owner's approval key in a TPM 2.0: made there, wrapped by it, and of no use on another machine (A-41, A-70).

The file that stands for it holds the wrapped key, which only this TPM opens, under its storage hierarchy's primary key.
Each signature connects, loads, signs and leaves nothing behind. Python's binding is the optional package tpm2-pytss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from appliance.binding import jws
from appliance.binding.errors import BindingError
from appliance.errors import KeyFileMissing, KeyMalformed, TpmUnavailable
from appliance.owner.keys import (
    MAX_FILE,
    STATEMENT_FILE,
    STATEMENT_SECONDS,
    OwnerKeyFiles,
    must_be_new,
    state_possession,
    write_new,
)
from appliance.tpm import binding, flushed, primary

KEY_FILE = "tpm-key.json"
KIND = "tpm"
TCTI = "device:/dev/tpmrm0"


class TpmSigner:
    """A Signer over a wrapped key; sign() blocks while the TPM works."""

    def __init__(self, tcti: str, public: bytes, private: bytes, passphrase: bytes | None) -> None:
        """Raises TpmUnavailable where the binding is missing, KeyMalformed for what is no P-256 key."""
        self._tcti = tcti
        self._passphrase = passphrase
        tpm = binding()
        try:
            self._public = tpm.TPM2B_PUBLIC.unmarshal(public)[0]
            self._private = tpm.TPM2B_PRIVATE.unmarshal(private)[0]
            key = load_pem_public_key(self._public.to_pem())
        except (ValueError, TypeError, tpm.TSS2_Exception) as error:
            raise KeyMalformed("the wrapped key cannot be read") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise KeyMalformed("the wrapped key is not on P-256")
        self._key = key

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key

    def sign(self, data: bytes) -> bytes:
        """Raises TpmUnavailable, also for a wrong passphrase and for a key of another TPM."""
        tpm = binding()
        try:
            with tpm.ESAPI(self._tcti) as esapi, _storage(tpm, esapi) as parent:
                handle = esapi.load(parent, self._private, self._public)
                with flushed(esapi, handle):
                    if self._passphrase is not None:
                        esapi.tr_set_auth(handle, self._passphrase)
                    made = esapi.sign(
                        handle,
                        hashlib.sha256(data).digest(),
                        tpm.TPMT_SIG_SCHEME(scheme=tpm.TPM2_ALG.NULL),
                        tpm.TPMT_TK_HASHCHECK(tag=tpm.TPM2_ST.HASHCHECK, hierarchy=tpm.TPM2_RH.NULL),
                    )
        except tpm.TSS2_Exception as error:
            raise TpmUnavailable(f"the TPM does not sign: {error}") from error
        pair = made.signature.ecdsa
        return encode_dss_signature(int.from_bytes(bytes(pair.signatureR)), int.from_bytes(bytes(pair.signatureS)))


def keygen_in_tpm(
    folder: Path,
    *,
    ref: str,
    audience: str,
    now: datetime,
    tcti: str = TCTI,
    passphrase: bytes | None = None,
    statement_seconds: int = STATEMENT_SECONDS,
) -> OwnerKeyFiles:
    """Makes a P-256 approval key in the TPM at `tcti`, and its statement in `folder`; `ref`, `audience` as for keygen.

    With a passphrase the TPM asks for it at every signature, and locks itself against guessing. Raises TpmUnavailable,
    KeyFileExists.
    """
    must_be_new(folder / KEY_FILE, folder / STATEMENT_FILE)
    private, public = _create(tcti, passphrase)
    signer = TpmSigner(tcti, public, private, passphrase)
    statement = state_possession(
        signer, ref=ref, audience=audience, now=now, seconds=statement_seconds, protection=KIND
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = {
        "version": 1, "kind": KIND, "tcti": tcti, "public": jws.base64url(public), "private": jws.base64url(private),
    }  # fmt: skip
    write_new(folder / KEY_FILE, json.dumps(document, indent=1).encode() + b"\n", 0o600)
    write_new(folder / STATEMENT_FILE, statement.encode("ascii") + b"\n", 0o644)
    key_file, statement_file = folder / KEY_FILE, folder / STATEMENT_FILE
    return OwnerKeyFiles(key_file, statement_file, jws.jkt(signer.public_key()), statement, bool(passphrase))


def is_tpm_file(path: Path) -> bool:
    """Whether a key file stands for a key in a TPM."""
    try:
        with path.open("rb") as file:
            start = file.read(MAX_FILE)
        return start.startswith(b"{") and jws.read_object(start, "key file").get("kind") == KIND
    except (OSError, BindingError):
        return False


def load_tpm_key(path: Path, *, passphrase: bytes | None = None) -> TpmSigner:
    """The key that a file stands for; raises TpmUnavailable, KeyFileMissing, KeyMalformed."""
    try:
        with path.open("rb") as file:
            value = jws.read_object(file.read(MAX_FILE), "key file")
        texts = [value.get(name) for name in ("tcti", "public", "private")]
        if value.get("version") != 1 or not all(isinstance(one, str) and one for one in texts):
            raise KeyMalformed(f"{path} does not stand for a key in a TPM")
        tcti, public, private = map(str, texts)
        return TpmSigner(tcti, jws.unbase64url(public, "key"), jws.unbase64url(private, "key"), passphrase)
    except OSError as error:
        raise KeyFileMissing(f"cannot read {path}: {error.strerror}") from error
    except BindingError as error:
        raise KeyMalformed(f"{path} does not stand for a key in a TPM: {error.detail}") from error


def _create(tcti: str, passphrase: bytes | None) -> tuple[bytes, bytes]:
    """A new key, wrapped: private and public part. It may sign, and be moved nowhere."""
    tpm = binding()
    marks = tpm.TPMA_OBJECT
    fixed = marks.FIXEDTPM | marks.FIXEDPARENT | marks.SENSITIVEDATAORIGIN | marks.USERWITHAUTH
    wanted = tpm.TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256", objectAttributes=fixed | marks.SIGN_ENCRYPT)
    secret = tpm.TPM2B_SENSITIVE_CREATE(tpm.TPMS_SENSITIVE_CREATE(userAuth=passphrase or b""))
    try:
        with tpm.ESAPI(tcti) as esapi, _storage(tpm, esapi) as parent:
            private, public, *_ = esapi.create(parent, secret, wanted)
    except tpm.TSS2_Exception as error:
        raise TpmUnavailable(f"the TPM makes no key: {error}") from error
    return bytes(private.marshal()), bytes(public.marshal())


@contextlib.contextmanager
def _storage(tpm: Any, esapi: Any) -> Iterator[Any]:
    """The storage key of the owner hierarchy."""
    bits = tpm.TPMA_OBJECT
    with primary(tpm, esapi, "ecc256:aes128cfb", bits.RESTRICTED | bits.DECRYPT | bits.NODA) as (handle, _):
        yield handle
