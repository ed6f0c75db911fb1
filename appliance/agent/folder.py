"""A folder whose credential changes as one: key, chain and WIT switch together, whatever happens in between.

    DIR/agent.key.pem, chain.pem, wit.txt, ...   symbolic links into `current`, which programs are configured with
    DIR/current                                  a symbolic link to the generation that counts; renamed over, atomically
    DIR/generations/000001/                      what was issued together; the one before the current stays beside it
    DIR/pending/                                 an attempt: its key and what was handed in, finished after a restart

A program that must read several files of one credential resolves `current` once and reads below that.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.agent.errors import CredentialFolderUnusable
from appliance.agent.key_file import load_key
from appliance.agent.requester import (
    CHAIN_FILE,
    COMPOSITE_FILE,
    KEY_FILE,
    RESULT_FILE,
    ROOT_FILE,
    SUPPLICANT_FILE,
    WIT_FILE,
)
from appliance.binding import jws
from appliance.binding.errors import BindingError
from appliance.errors import ApplianceError
from est.certificates import pem_certificates
from est.signer import KeySigner

CURRENT, GENERATIONS, PENDING = "current", "generations", "pending"
LINKED = (KEY_FILE, CHAIN_FILE, ROOT_FILE, WIT_FILE, SUPPLICANT_FILE, RESULT_FILE)


@dataclass(frozen=True, slots=True)
class Held:
    """A credential as its files say: the key, whose it is, and the shortest life of certificate and WIT."""

    folder: Path
    signer: KeySigner
    agent_id: str
    owner_id: str | None
    profiles: tuple[str, ...]
    begins: datetime
    ends: datetime
    vouches_until: datetime
    """When the key stops to count for a renewal: with the certificate, or with the WIT where there is none."""


class CredentialFolder:
    """One folder, with one keeper."""

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def pending(self) -> Path:
        """Where the attempt under way has its files."""
        return self.out / PENDING

    @property
    def has_handed_in(self) -> bool:
        """Whether an earlier attempt came so far that it can be finished."""
        return (self.pending / COMPOSITE_FILE).exists()

    def prepare(self) -> None:
        """Make the folder, and take over a credential that `agent request` left in it as plain files.

        Raises CredentialFolderUnusable.
        """
        self.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.out / GENERATIONS).mkdir(mode=0o700, exist_ok=True)
        if (self.out / CURRENT).is_symlink():
            self._link()
            return
        if not (self.out / RESULT_FILE).exists():
            return
        first = self.out / GENERATIONS / "000001"
        shutil.rmtree(first, ignore_errors=True)
        first.mkdir(mode=0o700)
        for name in LINKED:
            source = self._plain(name)
            if source.exists():
                _copy(source, first / name)
        held = read_held(first)
        if held is None:
            shutil.rmtree(first)
            raise CredentialFolderUnusable(f"{self.out} holds no whole credential")
        self._point(first)

    def current(self) -> Held | None:
        """The credential that counts; None before the first one. Raises CredentialFolderUnusable."""
        if not (self.out / CURRENT).is_symlink():
            return None
        held = read_held((self.out / CURRENT).resolve())
        if held is None:
            raise CredentialFolderUnusable(f"{self.out / CURRENT} holds no whole credential")
        return held

    def drop_pending(self) -> None:
        """Forget an attempt, with its key."""
        shutil.rmtree(self.pending, ignore_errors=True)

    def switch(self) -> Path:
        """The attempt's files become the current generation, in one rename; answers its folder."""
        numbers = [int(one.name) for one in (self.out / GENERATIONS).iterdir() if one.name.isdigit()]
        made = self.out / GENERATIONS / f"{max(numbers, default=0) + 1:06d}"
        for one in self.pending.iterdir():
            _sync(one)
        _sync(self.pending)
        self.pending.rename(made)
        _sync(self.out / GENERATIONS)
        before = (self.out / CURRENT).resolve() if (self.out / CURRENT).is_symlink() else None
        self._point(made)
        for one in (self.out / GENERATIONS).iterdir():
            if one not in (made, before):
                shutil.rmtree(one, ignore_errors=True)
        return made

    def _plain(self, name: str) -> Path:
        """Where `agent request` put a file; the key may lie elsewhere."""
        if name != KEY_FILE:
            return self.out / name
        try:
            files: Any = json.loads((self.out / RESULT_FILE).read_text(encoding="utf-8"))["files"]
            return Path(str(files["key"]))
        except (OSError, ValueError, KeyError, TypeError):
            return self.out / name

    def _point(self, generation: Path) -> None:
        _replace_link(self.out / CURRENT, Path(GENERATIONS) / generation.name)
        self._link()

    def _link(self) -> None:
        for name in LINKED:
            here = self.out / name
            if (self.out / CURRENT / name).exists():
                if not here.is_symlink():
                    _replace_link(here, Path(CURRENT) / name)
            elif here.is_symlink():
                here.unlink()
        _sync(self.out)


def read_held(folder: Path) -> Held | None:
    """The credential in a folder, as far as its files agree; None where they do not."""
    try:
        key = load_key(folder / KEY_FILE)
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        lives = []
        profiles = []
        if (folder / CHAIN_FILE).exists():
            leaf = pem_certificates((folder / CHAIN_FILE).read_bytes())[0]
            if leaf.public_key() != key.public_key():
                return None
            profiles.append("x509")
            lives.append((leaf.not_valid_before_utc, leaf.not_valid_after_utc))
        if (folder / WIT_FILE).exists():
            claims = jws.read_object(jws.read((folder / WIT_FILE).read_text().strip()).payload, "WIT")
            profiles.append("wit")
            lives.append((_moment(claims["iat"]), _moment(claims["exp"])))
        begins, ends = min(lives, key=lambda life: life[1])
        owner = result["owner_id"]
        return Held(
            folder, KeySigner(key), str(result["agent_id"]), None if owner is None else str(owner), tuple(profiles),
            begins, ends, lives[0][1],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, OverflowError, BindingError, ApplianceError):
        return None


def _moment(value: object) -> datetime:
    if not isinstance(value, int):
        raise TypeError("a time that is no number")
    return datetime.fromtimestamp(value, UTC)


def _copy(source: Path, to: Path) -> None:
    content = source.read_bytes()
    mode = 0o600 if to.name == KEY_FILE else 0o644
    descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _replace_link(link: Path, target: Path) -> None:
    beside = link.with_name(f".{link.name}.new")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    beside.symlink_to(target)
    beside.rename(link)
    _sync(link.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
