"""The owner's approval key: made here, kept in one file, announced by a signed statement of possession.

The statement goes to the campus administrator (`appliance owners add-key`); the key file goes nowhere.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from appliance.binding import jws, possession
from appliance.binding.webauthn import Authenticator
from appliance.errors import KeyFileExists, KeyFileExposed, KeyFileMissing, KeyMalformed, PassphraseWrong
from est.signer import KeySigner, Signer

KEY_FILE = "owner.key.pem"
STATEMENT_FILE = "owner-key.jwt"
STATEMENT_SECONDS = 7 * 86_400
MAX_FILE = 65_536


@dataclass(frozen=True, slots=True)
class OwnerKeyFiles:
    """What `keygen` wrote."""

    key_file: Path
    statement_file: Path
    jkt: str
    """Thumbprint of the key: what the administrator's screen shows too."""
    statement: str
    is_encrypted: bool


def keygen(
    folder: Path,
    *,
    ref: str,
    audience: str,
    now: datetime,
    passphrase: bytes | None = None,
    statement_seconds: int = STATEMENT_SECONDS,
) -> OwnerKeyFiles:
    """Makes a P-256 approval key and its statement in `folder`.

    `ref` is the owner as the campus directory calls it (or the owner's identifier), `audience` the campus's origin,
    such as spiffe://campus.example. Without a passphrase the key file is protected by its mode (0600) alone. Raises
    KeyFileExists; nothing is ever written over.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    encryption: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    signer = KeySigner(key)
    statement = state_possession(signer, ref=ref, audience=audience, now=now, seconds=statement_seconds)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_file, statement_file = folder / KEY_FILE, folder / STATEMENT_FILE
    must_be_new(statement_file)
    write_new(key_file, pem, 0o600)
    write_new(statement_file, statement.encode("ascii") + b"\n", 0o644)
    return OwnerKeyFiles(key_file, statement_file, jws.jkt(signer.public_key()), statement, bool(passphrase))


def state_possession(
    signer: Signer | Authenticator,
    *,
    ref: str,
    audience: str,
    now: datetime,
    seconds: int = STATEMENT_SECONDS,
    protection: str = "software",
    typ: str = possession.TYP,
    credential: str | None = None,
) -> str:
    """A statement of possession, good from `now` for so long and read once as the campus will read it.

    `ref` and `audience` are as for keygen, the rest as for `possession.seal`. Raises what `possession.unseal` raises.
    """
    iat = int(now.timestamp())
    statement = possession.seal(
        signer,
        sub=ref,
        aud=audience,
        iat=iat,
        exp=iat + seconds,
        jti=jws.base64url(secrets.token_bytes(16)),
        protection=protection,
        typ=typ,
        credential=credential,
    )
    possession.unseal(statement, typ=typ)
    return statement


def must_be_new(*paths: Path) -> None:
    """Raises KeyFileExists for a file that is there."""
    for path in paths:
        if path.exists():
            raise KeyFileExists(f"{path} exists already")


def load(key_file: Path, *, passphrase: bytes | None = None) -> KeySigner:
    """The approval key in a file that nobody else may read; raises as load_private()."""
    return KeySigner(load_private(key_file, passphrase=passphrase))


def load_private(key_file: Path, *, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """A private key in a file that nobody else may read.

    Raises KeyFileMissing, KeyFileExposed, KeyMalformed, PassphraseWrong.
    """
    try:
        with key_file.open("rb") as file:
            exposed = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077
            pem = file.read(MAX_FILE)
    except OSError as error:
        raise KeyFileMissing(f"cannot read {key_file}: {error.strerror}") from error
    if exposed:
        raise KeyFileExposed(f"{key_file} can be read by others: chmod 600 it, and think about who has read it")
    try:
        key = load_pem_private_key(pem, passphrase)
    except TypeError as error:
        # cryptography's way of telling a passphrase too many from one too few
        if passphrase is None:
            raise PassphraseWrong(f"{key_file} is encrypted: a passphrase file is needed") from error
        return load_private(key_file)
    except ValueError as error:
        if b"ENCRYPTED" in pem:
            raise PassphraseWrong(f"the passphrase does not open {key_file}") from error
        raise KeyMalformed(f"{key_file} is not a private key in PEM form") from error
    except UnsupportedAlgorithm as error:
        raise KeyMalformed(f"{key_file} holds a kind of key that is not used here") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in ("secp256r1", "secp384r1"):
        raise KeyMalformed(f"{key_file} does not hold a P-256 or P-384 key")
    return key


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Writes a file that must not exist yet, with its final mode from the start; raises KeyFileExists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError as error:
        raise KeyFileExists(f"{path} exists already and is not written over") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
