"""The file of `proxy.spiffe_workloads`: which user with which program is which agent, and under which approvals."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.binding.errors import BindingError
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.request import MAX_TTL_SECONDS
from appliance.proxy.errors import WorkloadsMalformed

MAX_WORKLOADS = 256
MAX_FILE_BYTES = 1 << 20
_MAX_STANDING_BYTES = 16_384
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NEEDED = frozenset({"agent", "owner", "uid", "executables", "standing"})
_KNOWN = _NEEDED | {"ttl_seconds"}


@dataclass(frozen=True, slots=True)
class Workload:
    """One agent that a local user's program may be. `executables` are SHA-256, `standing` files or hashes."""

    agent: str
    owner: str
    uid: int
    executables: frozenset[bytes]
    standing: tuple[str, ...]
    ttl_seconds: int = 8 * 3600

    def standing_tokens(self) -> tuple[str, ...]:
        """Read anew each time, so that the owner may put a newer one in place. Raises WorkloadsMalformed."""
        found = []
        for one in self.standing:
            if len(one) == 43 and "/" not in one:
                found.append(one)
                continue
            try:
                text = Path(one).read_text(encoding="ascii")[:_MAX_STANDING_BYTES].strip()
            except (OSError, ValueError) as cause:
                raise WorkloadsMalformed(f"the standing approval {one} cannot be read") from cause
            found.append(text)
        return tuple(found)


def read_workloads(path: Path) -> tuple[Workload, ...]:
    """Every `[[workload]]` of the file. Raises WorkloadsMalformed."""
    try:
        with path.open("rb") as file:
            values = tomllib.loads(file.read(MAX_FILE_BYTES).decode())
    except (OSError, ValueError) as cause:
        raise WorkloadsMalformed(f"{path} does not read: {cause}") from cause
    tables = values.get("workload")
    if set(values) != {"workload"} or not isinstance(tables, list) or not 0 < len(tables) <= MAX_WORKLOADS:
        raise WorkloadsMalformed(f"{path} has 1 to {MAX_WORKLOADS} tables [[workload]] and nothing else")
    found = tuple(_workload(one) for one in tables)
    callers = [(one.uid, digest) for one in found for digest in one.executables]
    if len(set(callers)) != len(callers) or len({one.agent for one in found}) != len(found):
        raise WorkloadsMalformed("two workloads have one agent, or one user and program")
    return found


def _workload(table: Any) -> Workload:
    if not isinstance(table, dict) or not _NEEDED <= table.keys() <= _KNOWN:
        raise WorkloadsMalformed("a workload has agent, owner, uid, executables, standing and perhaps ttl_seconds")
    try:
        agent = read_kind(_text(table, "agent"), Kind.AGENT).uri
        owner = read_kind(_text(table, "owner"), Kind.OWNER).uri
    except BindingError as cause:
        raise WorkloadsMalformed(f"a workload names something else: {cause.detail}") from cause
    digests, standing = _texts(table, "executables"), _texts(table, "standing")
    if not all(_DIGEST.fullmatch(one) for one in digests):
        raise WorkloadsMalformed("executables are SHA-256 digests in hex")
    uid = _whole(table, "uid", 0, 2**32 - 2)
    ttl = _whole(table, "ttl_seconds", 1, MAX_TTL_SECONDS) if "ttl_seconds" in table else 8 * 3600
    return Workload(agent, owner, uid, frozenset(bytes.fromhex(one) for one in digests), standing, ttl)


def _text(table: dict[str, Any], name: str) -> str:
    value = table[name]
    if not isinstance(value, str) or not value.isascii():
        raise WorkloadsMalformed(f"{name} is a text")
    return value


def _texts(table: dict[str, Any], name: str) -> tuple[str, ...]:
    value = table[name]
    if not isinstance(value, list) or not 0 < len(value) <= 16 or not all(isinstance(one, str) for one in value):
        raise WorkloadsMalformed(f"{name} is a list of 1 to 16 texts")
    return tuple(value)


def _whole(table: dict[str, Any], name: str, low: int, high: int) -> int:
    value = table[name]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise WorkloadsMalformed(f"{name} is a whole number from {low} to {high}")
    return value
