"""An owner's approval key in a PKCS#11 token: made there, and never seen here (A-41, A-70).

The file that stands for it says where it is: the library, the token, the label, and the file with the PIN. Python's
binding is the optional package python-pkcs11.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from appliance.binding import jws
from appliance.binding.errors import BindingError
from appliance.errors import KeyFileMissing, KeyMalformed
from appliance.owner.keys import (
    MAX_FILE,
    STATEMENT_FILE,
    STATEMENT_SECONDS,
    OwnerKeyFiles,
    must_be_new,
    state_possession,
    write_new,
)
from appliance.settings import HsmSettings
from appliance.token import Token, TokenSigner

KEY_FILE = "token-key.json"
KIND = "pkcs11"
_NAME = "approval"


def keygen_in_token(
    folder: Path,
    *,
    ref: str,
    audience: str,
    now: datetime,
    module: Path,
    token: str,
    pin_file: Path,
    label: str,
    statement_seconds: int = STATEMENT_SECONDS,
) -> OwnerKeyFiles:
    """Makes a P-256 approval key in a token, and its statement in `folder`; `ref` and `audience` as for keygen.

    Raises TokenUnavailable, KeyFileExists for a label or file that is taken, KeyFileMissing and KeyFileExposed for the
    file with the PIN.
    """
    must_be_new(folder / KEY_FILE, folder / STATEMENT_FILE)
    settings = HsmSettings(module=module.absolute(), token=token, pin_file=pin_file.absolute(), label=label)
    opened = Token(settings)
    try:
        signer = opened.generate(_NAME)
        statement = state_possession(
            signer, ref=ref, audience=audience, now=now, seconds=statement_seconds, protection=KIND
        )
    finally:
        opened.close()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = {
        "version": 1, "kind": KIND, "module": str(settings.module), "token": token, "pin_file": str(settings.pin_file),
        "label": label,
    }  # fmt: skip
    write_new(folder / KEY_FILE, json.dumps(document, indent=1).encode() + b"\n", 0o600)
    write_new(folder / STATEMENT_FILE, statement.encode("ascii") + b"\n", 0o644)
    return OwnerKeyFiles(
        folder / KEY_FILE, folder / STATEMENT_FILE, jws.jkt(signer.public_key()), statement, is_encrypted=True
    )


def is_token_file(path: Path) -> bool:
    """Whether a key file stands for a key in a token."""
    try:
        with path.open("rb") as file:
            start = file.read(MAX_FILE)
        return start.startswith(b"{") and jws.read_object(start, "key file").get("kind") == KIND
    except (OSError, BindingError):
        return False


def load_token_key(path: Path) -> TokenSigner:
    """The key that a file stands for; raises TokenUnavailable, KeyFileMissing, KeyFileExposed, KeyMalformed."""
    try:
        with path.open("rb") as file:
            value = jws.read_object(file.read(MAX_FILE), "key file")
    except OSError as error:
        raise KeyFileMissing(f"cannot read {path}: {error.strerror}") from error
    except BindingError as error:
        raise KeyMalformed(f"{path} does not stand for a key in a token: {error.detail}") from error
    texts = [value.get(name) for name in ("module", "token", "pin_file", "label")]
    if value.get("version") != 1 or not all(isinstance(one, str) and one for one in texts):
        raise KeyMalformed(f"{path} does not stand for a key in a token")
    module, token, pin_file, label = map(str, texts)
    settings = HsmSettings(module=Path(module), token=token, pin_file=Path(pin_file), label=label)
    return Token(settings).signer(_NAME)
