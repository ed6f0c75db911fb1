"""The root's key leaves the home: a verified copy first, then the original goes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from cryptography import x509

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.errors import KeyFileMissing
from appliance.hierarchy import key_file
from appliance.keys import check_pair, read_key, read_private, remove_private, write_private
from appliance.store import Store


async def export_root(
    home: Path, label: str, root: x509.Certificate, file: Path, passphrase: bytes, *, store: Store, actor: Actor
) -> dict[str, Any]:
    """Move the encrypted key of the root to `file`, which must not exist; the home works without it.

    The copy is read back from the disk, opened with the passphrase and held against the root's certificate before the
    original is removed. Raises KeyFileMissing where the key is not in the home, KeyFileExists, PassphraseWrong,
    KeyMismatch.
    """
    original = key_file(home, label)
    if not original.exists():
        raise KeyFileMissing("the root's key is not in this home", path=str(original))
    content = read_private(original)
    write_private(file, content)
    check_pair(read_key(file, passphrase), root)
    digest = hashlib.sha256(content).hexdigest()
    event = AuditEvent("root-exported", actor, object=file.name, fields={"file_sha256": digest})
    await store.write(lambda tx: audit.append(tx, event))
    remove_private(original)
    return {"file": str(file), "sha256": digest, "next": "keep two copies of it, and the passphrase apart from them"}
