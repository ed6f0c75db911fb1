"""The gateway's file: where it listens, for which campuses it works, which rules sign there.

    version = 1
    listen = "0.0.0.0:9444"
    key = "gateway"                      # folder that `appliance owner gateway keygen` made

    [limits]                             # all optional; the defaults are those of `Limits`
    queue = 1000

    [[domain]]                           # one for each campus
    name = "campus"
    server = "https://ids.campus.example:8443"
    root = "root.pem"                    # the campus root, by which the server is known
    client = "client"                    # folder that `appliance owner client-keygen` made
    owner = "spiffe://campus.example/owner/..."
    proxies = ["spiffe://..."]           # left out: every proxy of the campus
    org = ["membership.jwt"]             # organisational material that goes along with every approval
    policy = "answers.toml"              # left out: a person decides about everything
    policy_key = "policy.key.pem"        # the approval key of the rules

Paths are relative to the file's own folder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from appliance.binding.composite import MAX_ORG, is_org_text
from appliance.binding.errors import BindingError
from appliance.binding.identifier import Kind, read_kind
from appliance.owner.answer_policy import AnswerPolicy, read_answer_policy
from appliance.owner.errors import GatewayConfigInvalid

MAX_DOMAINS = 64
MAX_PROXIES = 10_000
_TOP = frozenset({"version", "listen", "key", "limits", "domain"})
_DOMAIN = frozenset({"name", "server", "root", "client", "owner", "proxies", "org", "policy", "policy_key"})


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Bounds of the queue, token buckets (per second, and how many at once), and times in seconds."""

    queue: int = 1000
    queue_per_proxy: int = 100
    queue_per_program: int = 10
    rate: int = 200
    burst: int = 1000
    proxy_rate: int = 20
    proxy_burst: int = 200
    agent_rate: int = 2
    agent_burst: int = 20
    submissions: int = 8
    wait_seconds: int = 5
    mute_seconds: int = 900


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """One campus; `policy` None: a person decides."""

    name: str
    server: str
    root: Path
    client: Path
    owner: str
    proxies: frozenset[str] | None
    org: tuple[str, ...]
    policy: AnswerPolicy | None
    policy_key: Path | None


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The file as read."""

    host: str
    port: int
    key: Path
    limits: GatewayLimits
    domains: tuple[DomainConfig, ...]


def load_gateway_config(path: Path) -> GatewayConfig:
    """The file with the files that it names; raises GatewayConfigInvalid naming the place, AnswerPolicyInvalid."""
    try:
        document = tomllib.loads(_text(path))
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as cause:
        raise GatewayConfigInvalid(str(cause) or "nested too deeply") from cause
    _check_keys(document, _TOP, "the file")
    if document.get("version") != 1:
        raise GatewayConfigInvalid("version must be 1")
    host, port = _listen(document.get("listen"))
    tables = document.get("domain", [])
    if not isinstance(tables, list) or not 0 < len(tables) <= MAX_DOMAINS:
        raise GatewayConfigInvalid(f"domain is a list of 1 to {MAX_DOMAINS} tables: [[domain]]")
    folder = path.absolute().parent
    domains = tuple(_domain(table, f"domain {at}", folder) for at, table in enumerate(tables, 1))
    if len({one.name for one in domains}) != len(domains):
        raise GatewayConfigInvalid("two domains have one name")
    return GatewayConfig(
        host, port, folder / _string(document, "key", "the file"), _limits(document.get("limits", {})), domains
    )


def _listen(value: object) -> tuple[str, int]:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not host or not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise GatewayConfigInvalid("listen is ADDRESS:PORT; port 0 picks one")
    return host.strip("[]"), int(port)


def _limits(table: Any) -> GatewayLimits:
    _check_keys(table, frozenset(one.name for one in fields(GatewayLimits)), "limits")
    for name, value in table.items():
        if type(value) is not int or not 0 < value <= 1_000_000:
            raise GatewayConfigInvalid(f"limits: {name} is a whole number from 1 to 1000000")
    found = GatewayLimits(**table)
    if found.wait_seconds > 25:
        raise GatewayConfigInvalid("limits: wait_seconds is at most 25, because a proxy waits 40 s for an answer")
    return found


def _domain(table: Any, where: str, folder: Path) -> DomainConfig:
    _check_keys(table, _DOMAIN, where)
    owner = _string(table, "owner", where)
    proxies = table.get("proxies")
    if proxies is not None and not (
        isinstance(proxies, list) and len(proxies) <= MAX_PROXIES and all(isinstance(one, str) for one in proxies)
    ):
        raise GatewayConfigInvalid(f"{where}: proxies is a list of identifiers")
    try:
        origin = read_kind(owner, Kind.OWNER).origin
        for one in proxies or ():
            read_kind(one, Kind.PROXY, origin=origin)
    except BindingError as cause:
        raise GatewayConfigInvalid(f"{where}: {cause.detail}") from cause
    policy, policy_key = (_optional(table, name, where, folder) for name in ("policy", "policy_key"))
    if (policy is None) != (policy_key is None):
        raise GatewayConfigInvalid(f"{where}: policy and policy_key come together")
    return DomainConfig(
        name=_string(table, "name", where),
        server=_string(table, "server", where),
        root=folder / _string(table, "root", where),
        client=folder / _string(table, "client", where),
        owner=owner,
        proxies=None if proxies is None else frozenset(proxies),
        org=read_org(_paths(table, where, folder)),
        policy=None if policy is None else read_answer_policy(_text(policy)),
        policy_key=policy_key,
    )


def read_org(paths: list[Path]) -> tuple[str, ...]:
    """Organisational material out of files, one piece each; raises GatewayConfigInvalid."""
    if len(paths) > MAX_ORG:
        raise GatewayConfigInvalid(f"at most {MAX_ORG} pieces of organisational material go along")
    found = tuple(_text(path).strip() for path in paths)
    for path, text in zip(paths, found, strict=True):
        if not is_org_text(text):
            raise GatewayConfigInvalid(f"{path} is not one line of printable ASCII of at most 8 KiB")
    return found


def _paths(table: Mapping[str, Any], where: str, folder: Path) -> list[Path]:
    names = table.get("org", [])
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise GatewayConfigInvalid(f"{where}: org is a list of file names")
    return [folder / one for one in names]


def _check_keys(table: Any, known: frozenset[str], where: str) -> None:
    if not isinstance(table, dict):
        raise GatewayConfigInvalid(f"{where} is no table")
    if unknown := sorted(set(table) - known):
        raise GatewayConfigInvalid(f"{where}: unknown key {unknown[0]}")


def _string(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise GatewayConfigInvalid(f"{where}: {key} is missing or no text")
    return value


def _optional(table: Mapping[str, Any], key: str, where: str, folder: Path) -> Path | None:
    return folder / _string(table, key, where) if key in table else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise GatewayConfigInvalid(f"{path} cannot be read as text") from cause
