"""`appliance init`: a home is made whole beside its place and then moved there, so there is never half a home."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from cryptography.hazmat.primitives import hashes

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.clock import Clock
from appliance.errors import ApplianceError, KeyFileMissing, PassphraseWrong
from appliance.hierarchy import ROOT, create_hierarchy, record_hierarchy
from appliance.keys import read_private, write_private
from appliance.settings import FILE_NAME, Settings, load_settings, sample_file
from appliance.store.store import Store
from appliance.store.transaction import Tx

PASSPHRASE_FILE = "passphrase"  # noqa: S105 - a file's name
CREDENTIAL = "appliance-passphrase"
MIN_PASSPHRASE = 12


class HomeExists(ApplianceError):
    """There is something where the new home should be; nothing was touched."""

    reason: ClassVar[str] = "home-exists"


def initialise(
    home: Path,
    clock: Clock,
    *,
    trust_domain: str,
    organization: str,
    assignments: Sequence[str] = (),
    passphrase_file: Path | None = None,
) -> dict[str, Any]:
    """Make keys, CAs, store and settings file of a new home; answers what was made and what to do next.

    Raises HomeExists, SettingsInvalid, PassphraseWrong, KeyFileMissing.
    """
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise HomeExists(f"{home} exists and is not empty; choose another --home or move it away")
    home.parent.mkdir(parents=True, exist_ok=True)
    fresh = home.with_name(f".{home.name}.new-{secrets.token_hex(4)}")
    fresh.mkdir(mode=0o700)
    old_mask = os.umask(0o077)
    try:
        chosen: dict[str, Any] = {"domain.trust_domain": trust_domain, "domain.organization": organization}
        wanted = load_settings(fresh, assignments)
        for dotted, origin in wanted.origins.items():
            if origin == "flag":  # what the first command line says is meant to stay
                section, _, key = dotted.partition(".")
                chosen[dotted] = getattr(getattr(wanted.settings, section), key)
        write_private(fresh / FILE_NAME, sample_file(chosen).encode())
        settings = load_settings(fresh).settings
        given = find_passphrase(fresh, passphrase_file)
        passphrase = given or secrets.token_urlsafe(32).encode()
        if not given:
            write_private(fresh / PASSPHRASE_FILE, passphrase + b"\n")
        hierarchy = create_hierarchy(fresh, settings, passphrase, clock.now())
        store = Store.open(settings.store_url, clock, create=True)
        try:
            actor = Actor("administrator", "init")

            def record(tx: Tx) -> None:
                fields = {"trust_domain": trust_domain}
                audit.append(tx, AuditEvent("home-initialised", actor, object=trust_domain, fields=fields))
                record_hierarchy(tx, hierarchy, actor)

            store.write_sync(record)
        finally:
            store.close()
        if home.exists():
            home.rmdir()
        fresh.rename(home)
    except BaseException:  # whatever it was, Ctrl-C too: no half of a home and no key of it stays
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    finally:
        os.umask(old_mask)
    root = hierarchy.certificates[ROOT]
    fingerprint = root.fingerprint(hashes.SHA256()).hex(":").upper()
    result = {
        "home": str(home),
        "trust_domain": trust_domain,
        "root_sha256": fingerprint,
        "passphrase": "as given" if given else str(home / PASSPHRASE_FILE),
    }
    return result | {"next": _next(home, result, settings)}


def find_passphrase(home: Path, passphrase_file: Path | None) -> bytes | None:
    """The passphrase of a home: the named file, a systemd credential, or HOME/passphrase; None where none is found.

    Raises KeyFileMissing, KeyFileExposed for HOME/passphrase with a loose mode, PassphraseWrong for one too short.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    candidates = [passphrase_file] if passphrase_file else []
    if credentials and not passphrase_file:
        candidates.append(Path(credentials) / CREDENTIAL)
    for path in candidates:
        try:
            found = path.read_bytes().strip()
        except OSError as cause:
            if passphrase_file is None:
                continue
            raise KeyFileMissing(f"cannot read the passphrase file {path}", path=str(path)) from cause
        if len(found) < MIN_PASSPHRASE:
            raise PassphraseWrong(f"a passphrase has at least {MIN_PASSPHRASE} characters")
        return found
    path = home / PASSPHRASE_FILE
    return read_private(path).strip() if path.exists() else None


def need_passphrase(home: Path, passphrase_file: Path | None) -> bytes:
    """As find_passphrase(); raises PassphraseWrong with instructions where none is found."""
    found = find_passphrase(home, passphrase_file)
    if found is None:
        raise PassphraseWrong(
            f"no passphrase: give --passphrase-file, or the systemd credential {CREDENTIAL}, or put it into "
            f"{home / PASSPHRASE_FILE} (mode 0600)"
        )
    return found


def _next(home: Path, result: dict[str, str], settings: Settings) -> str:
    at = f" --home {home}"
    kept = (
        ""
        if result["passphrase"] == "as given"  # noqa: S105 - a word, no passphrase
        else f"\nThe passphrase of all keys lies in {result['passphrase']}; better, make it the systemd credential\n"
        f"{CREDENTIAL} and delete that file. Without it nothing here can be opened.\n"
    )
    return f"""Made {home} for trust domain {result["trust_domain"]}.
Root certificate, SHA-256: {result["root_sha256"]}
{kept}
Next:
  appliance manufacturers add MAKER-CA.pem --masa https://masa.example --masa-anchors MASA-TLS-CA.pem{at}
  appliance owners import owners.csv{at}          # columns: ref,name,kind,department
  appliance policy publish policy.toml{at}
  appliance nas add switch-1 192.0.2.10{at}
  appliance run{at}
Then plug in a proxy: appliance proxy run --state DIR. Settings: {home / FILE_NAME}"""
