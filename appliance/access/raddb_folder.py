"""Where a rendered FreeRADIUS folder may lie, who reads it, what is secret in it, and what FreeRADIUS' errors mean."""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Final

from appliance.errors import ApplianceError
from radius.render import FOLDER_MODE

RUNTIME: Final = Path("/run/appliance-radius")
LAST_GOOD: Final = "last-good"
_TOKEN: Final = re.compile(r'Authorization: Bearer ([^"]+)"')


class FreeRadiusMissing(ApplianceError):
    """The FreeRADIUS program is not installed (Debian: apt-get install freeradius freeradius-rest)."""

    reason: ClassVar[str] = "freeradius-missing"


class FreeRadiusRefused(ApplianceError):
    """FreeRADIUS refuses its configuration; `detail` says why in plain words, with its own last word behind."""

    reason: ClassVar[str] = "freeradius-refused"


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user that FreeRADIUS runs as in place of root."""

    name: str
    uid: int
    gid: int


def run_as(user: str) -> RunAs | None:
    """Whom to become; None when we are not root and FreeRADIUS simply runs as we do. Raises FreeRadiusRefused."""
    if os.geteuid() != 0:
        return None
    try:
        found = pwd.getpwnam(user)
    except KeyError as cause:
        raise FreeRadiusRefused(
            f"there is no user {user!r} here to run FreeRADIUS as; name one in radius.user"
        ) from cause
    if found.pw_uid == 0:
        raise FreeRadiusRefused("radius.user must not be root")
    return RunAs(user, found.pw_uid, found.pw_gid)


def owner_of(who: RunAs | None) -> tuple[int, int] | None:
    """As write_raddb wants it."""
    return None if who is None else (who.uid, who.gid)


def default_folder(home: Path, who: RunAs | None) -> Path:
    """HOME/radius; where FreeRADIUS has a user of its own, which cannot enter HOME, a folder under /run."""
    if who is None:
        return home / "radius"
    RUNTIME.mkdir(mode=0o755, exist_ok=True)
    return RUNTIME / sha256(str(home).encode()).hexdigest()[:16]


def check_reachable(folder: Path, who: RunAs | None) -> None:
    """Whether that user can get into the folder at all; raises FreeRadiusRefused naming the one that is shut."""
    if who is None:
        return
    for one in reversed(folder.absolute().parents):
        if not one.exists():
            return
        state = one.stat()
        bit = 0o100 if state.st_uid == who.uid else 0o010 if state.st_gid == who.gid else 0o001
        if not state.st_mode & bit:
            raise FreeRadiusRefused(f"the user {who.name} cannot enter {one}; choose another folder with --dir")


def own_folder(folder: Path, who: RunAs | None) -> None:
    """Make the folder, for root and the group of FreeRADIUS' user only."""
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    if who is not None:
        os.chown(folder, -1, who.gid)


def find_program() -> str:
    """Path of FreeRADIUS; raises FreeRadiusMissing."""
    for name in ("freeradius", "radiusd"):
        if found := shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin"):
            return found
    raise FreeRadiusMissing("FreeRADIUS is not installed (Debian: apt-get install freeradius freeradius-rest)")


def find_libraries() -> str:
    """The folder of FreeRADIUS' modules; raises FreeRadiusMissing where rlm_rest is not among them."""
    for folder in ("/usr/lib/freeradius", "/usr/lib64/freeradius", "/usr/local/lib"):
        if (Path(folder) / "rlm_rest.so").exists():
            return folder
    raise FreeRadiusMissing("FreeRADIUS' module rlm_rest is not installed (Debian: apt-get install freeradius-rest)")


@functools.cache
def knows(program: str, libraries: str, option: str) -> bool:
    """Whether this FreeRADIUS has a word for the option: distributions back-port options into older releases."""
    word = b"\0" + option.encode() + b"\0"
    for path in (Path(program), Path(libraries) / "libfreeradius-server.so"):
        try:
            if word in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def secrets_in(files: Mapping[str, str]) -> frozenset[str]:
    """Shared secrets and tokens of a rendered folder."""
    found: set[str] = set()
    for text in files.values():
        found.update(re.findall(r'^\s*secret = "([^"]+)"', text, re.MULTILINE))
        found.update(_TOKEN.findall(text))
    return frozenset(found)


def token_in(folder: Path) -> str:
    """The decision port's token that a rendered folder carries; empty where there is none."""
    try:
        found = _TOKEN.search((folder / "sites-enabled" / "check-eap-tls").read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def redacted(line: str, secrets: Iterable[str]) -> str:
    """A log line fit to be shown: no secrets, no passwords, no control characters, not endless."""
    for secret in secrets:
        line = line.replace(secret, "<secret>")
    line = re.sub(r"(?i)((?:User-Password|secret|Bearer)\W{1,5})(?!<)\S+", r"\1<secret>", line)
    return "".join(char if char.isprintable() else "?" for char in line[:500])


_WORDS: Final = (
    (
        r"link to module .?rlm_rest",
        "FreeRADIUS' module for HTTP is not installed (Debian: apt-get install freeradius-rest)",
    ),
    (
        r"link to module",
        "a module of FreeRADIUS is not installed (Debian: apt-get install freeradius)",
    ),
    (
        r"Address already in use",
        "another program has the RADIUS port; does a FreeRADIUS of the system run (systemctl stop freeradius)?",
    ),
    (
        r"Cannot assign requested address",
        "this machine does not have the address in radius.host, radius.more_hosts or radius.radsec_host",
    ),
    (r"Permission denied", "the user that FreeRADIUS runs as may not read its folder or open its port"),
    (r"key values mismatch", "the RADIUS server's key does not belong to its certificate"),
    (r"Failed reading (?:certificate|Trusted|private)|PEM|no start line", "a certificate or key file cannot be read"),
    (r"Unknown attribute|Failed to find attribute", "the dictionary is not that of this rendering; render again"),
    (r"duplicate client", "two NAS have the same address or name"),
    (
        r"[Pp]arse error|Unexpected|Expecting|Expected|Too many closing|Failed to parse|without|missing|EOF",
        "a file of the folder was changed by hand or is cut short; render again",
    ),
    (r"[Tt]hreads|threaded", "this FreeRADIUS has no threads, which RadSec needs"),
)
"""What FreeRADIUS complains of (a pattern), and what that means."""


def in_words(output: str) -> str:
    """What FreeRADIUS complains of, in words an administrator can act on, with its own last word behind."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"rror|ailed|ermission|already in use", line)]
    own = (errors or lines or ["no output"])[-1][:300]
    looked = "\n".join(lines[-12:])
    for pattern, meaning in _WORDS:
        if re.search(pattern, looked):
            return f"{meaning}; FreeRADIUS says: {own}"
    return f"FreeRADIUS says: {own}"
