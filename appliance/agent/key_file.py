"""An agent's private key in its file."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from appliance.binding import jws
from appliance.errors import KeyFileExists, KeyFileMissing, KeyMalformed


def new_key_file(path: Path) -> str:
    """Makes an agent's key in a new file that only its user may read; answers its thumbprint. Raises KeyFileExists."""
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise KeyFileExists(f"{path} exists already and is not written over") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return jws.jkt(key.public_key())


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """An agent's key out of its file; raises KeyFileMissing, KeyMalformed."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise KeyFileMissing(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise KeyMalformed(f"{path} is not an unencrypted private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise KeyMalformed(f"{path} does not hold a P-256 key")
    return key
