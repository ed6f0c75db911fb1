"""Answers by rule: a policy file that says yes or no where nobody looks (an owner of the kind `policy`).

    version = 1
    otherwise = "leave"                  # to a person; or "deny": what happens to a request that no rule fits

    [[class]]
    name = "reader"                      # a kind of agent, by what its proxy has measured
    executables = ["<sha-256, hex>"]     # left out: any program
    uids = [1001]                        # left out: any user of the proxy's machine

    [[rule]]
    name = "readers"                     # for the record; left out: "rule 1" and so on
    decision = "approve"                 # or "deny"
    agents = ["spiffe://..."]            # identifiers; left out: any agent of yours
    owners = ["spiffe://..."]            # other owners, beside whom you approve; left out: your own agents alone
    proxies = ["spiffe://..."]           # likewise
    classes = ["reader"]                 # left out: any agent
    executables = ["<sha-256, hex>"]     # left out: any program
    purposes = ["issue", "renew"]        # what may be asked; left out: both
    profiles = ["x509", "wit"]           # at most these; left out: both
    longest_seconds = 28800              # at most this life; left out: 24 h
    per_hour = 100                       # at most so many decisions of this rule in any hour; left out: any number
    per_agent_hour = 4                   # likewise, for one agent

The first rule that fits decides; a rule whose rate is used up does not fit. A rule sees the same typed fields that a
person is shown, what the proxy has measured where its evidence is at hand (`appliance owner gateway`), and never the
agent's text.
"""

from __future__ import annotations

import re
import tomllib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.binding import jws
from appliance.binding.challenge import BindingChallenge
from appliance.binding.evidence import Evidence
from appliance.binding.facts import PROFILES, PURPOSES
from appliance.binding.request import AgentRequest
from appliance.clock import Clock
from appliance.owner.errors import AnswerPolicyInvalid
from appliance.owner.sign import LONG_LIFE_SECONDS

APPROVE, DENY, LEAVE = "approve", "deny", "leave"
MAX_POLICY = 262_144
MAX_RATE = 1_000_000
HOUR_SECONDS = 3600
_TOP = frozenset({"version", "otherwise", "class", "rule"})
_RULE = frozenset(
    {"name", "decision", "agents", "owners", "proxies", "classes", "executables", "purposes", "profiles"}
    | {"longest_seconds", "per_hour", "per_agent_hour"}
)
_CLASS = frozenset({"name", "executables", "uids"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)

Decided = Callable[[str, str | None], int]
"""How often a rule (by name) decided within the last hour: for one agent, or in all (None)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What rules look at; `executable` (SHA-256, hex) and `uid` are the proxy's measurements, None without them."""

    sub: str
    proxy: str
    purpose: str
    profiles: tuple[str, ...]
    ttl: int
    executable: str | None = None
    uid: int | None = None
    beside: str | None = None
    """The agent's own owner, where that is somebody else."""

    @classmethod
    def of_challenge(cls, challenge: BindingChallenge, beside: str | None = None) -> Asked:
        """What a server's challenge asks; the server keeps the evidence to itself."""
        return cls(challenge.sub, challenge.proxy, challenge.purpose, challenge.profiles, challenge.ttl, beside=beside)

    @classmethod
    def of_request(cls, request: AgentRequest, seen: Evidence) -> Asked:
        """What a request asks, with what its proxy has measured."""
        uid = seen.agent.get("uid")
        return cls(
            request.sub, seen.iss, request.purpose, request.profiles, request.ttl, executable_of(seen),
            uid if isinstance(uid, int) else None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class AgentClass:
    """A kind of agent by its measurements; None = any."""

    executables: frozenset[str] | None = None
    uids: frozenset[int] | None = None

    def fits(self, asked: Asked) -> bool:
        return (self.executables is None or asked.executable in self.executables) and (
            self.uids is None or asked.uid in self.uids
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; None = any, but for `owners`: whoever approves for others by rule has said for whom."""

    decision: str
    name: str = "rule"
    agents: frozenset[str] | None = None
    owners: frozenset[str] | None = None
    proxies: frozenset[str] | None = None
    classes: tuple[AgentClass, ...] | None = None
    executables: frozenset[str] | None = None
    purposes: frozenset[str] = frozenset(PURPOSES)
    profiles: frozenset[str] = frozenset(PROFILES)
    longest_seconds: int = LONG_LIFE_SECONDS
    per_hour: int | None = None
    per_agent_hour: int | None = None

    def fits(self, asked: Asked) -> bool:
        """Whether this rule is about such a request."""
        return (
            (asked.beside is None if self.owners is None else asked.beside in self.owners)
            and (self.agents is None or asked.sub in self.agents)
            and (self.proxies is None or asked.proxy in self.proxies)
            and (self.classes is None or any(one.fits(asked) for one in self.classes))
            and (self.executables is None or asked.executable in self.executables)
            and asked.purpose in self.purposes
            and self.profiles >= set(asked.profiles)
            and asked.ttl <= self.longest_seconds
        )

    def has_room(self, asked: Asked, decided: Decided) -> bool:
        """Whether the rule's rates allow one decision more."""
        return (self.per_hour is None or decided(self.name, None) < self.per_hour) and (
            self.per_agent_hour is None or decided(self.name, asked.sub) < self.per_agent_hour
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """approve, deny or leave, and why: the rule's name, or that none fitted."""

    answer: str
    rule: str
    why: str


@dataclass(frozen=True, slots=True)
class AnswerPolicy:
    """Rules in their order, and what happens otherwise."""

    rules: tuple[Rule, ...]
    otherwise: str = LEAVE

    def judge(self, asked: Asked, decided: Decided) -> Verdict:
        """The first rule that fits and has room, or what happens otherwise."""
        full = ""
        for rule in self.rules:
            if rule.fits(asked):
                if rule.has_room(asked, decided):
                    return Verdict(rule.decision, rule.name, f"{rule.name} fits")
                full = full or f"; the rate of {rule.name} is used up"
        return Verdict(self.otherwise, "", f"no rule fits{full}")

    @property
    def has_rates(self) -> bool:
        """Whether decisions have to be counted."""
        return any(rule.per_hour is not None or rule.per_agent_hour is not None for rule in self.rules)


class DecisionBook:
    """Decisions of the last hour, kept in memory: what the rates of a tool without a store are counted by."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._made: deque[tuple[float, str, str]] = deque()

    def note(self, rule: str, agent: str) -> None:
        """A decision was made."""
        self._made.append((self._clock.monotonic(), rule, agent))

    def decided(self, rule: str, agent: str | None) -> int:
        """How many there were within the last hour."""
        oldest = self._clock.monotonic() - HOUR_SECONDS
        while self._made and self._made[0][0] <= oldest:
            self._made.popleft()
        return sum(1 for _, name, sub in self._made if name == rule and agent in (None, sub))


def executable_of(seen: Evidence) -> str | None:
    """The measured program of the agent, SHA-256 in hex; None where it is measured otherwise or not at all."""
    digest = seen.agent.get("executable_digest")
    if not isinstance(digest, dict) or digest["alg"] != "sha-256":
        return None
    return jws.unbase64url(digest["hash"], "executable_digest").hex()


def read_answer_policy(text: str) -> AnswerPolicy:
    """The policy in a TOML text; raises AnswerPolicyInvalid naming the place."""
    if len(text) > MAX_POLICY:
        raise AnswerPolicyInvalid(f"the policy has more than {MAX_POLICY} characters")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as cause:
        raise AnswerPolicyInvalid(str(cause) or "nested too deeply") from cause
    if unknown := sorted(set(document) - _TOP):
        raise AnswerPolicyInvalid(f"unknown key {unknown[0]}")
    if document.get("version") != 1:
        raise AnswerPolicyInvalid("version must be 1")
    otherwise = document.get("otherwise", LEAVE)
    if otherwise not in (LEAVE, DENY):
        raise AnswerPolicyInvalid("otherwise is leave or deny")
    classes = dict(_class(table, f"class {at}") for at, table in enumerate(_tables(document, "class"), 1))
    rules = tuple(_rule(table, f"rule {at}", classes) for at, table in enumerate(_tables(document, "rule"), 1))
    names = [rule.name for rule in rules]
    if len(set(names)) != len(names):
        raise AnswerPolicyInvalid("two rules have one name")
    return AnswerPolicy(rules, otherwise)


def _tables(document: Mapping[str, Any], key: str) -> list[Any]:
    tables = document.get(key, [])
    if not isinstance(tables, list):
        raise AnswerPolicyInvalid(f"{key} is a list of tables: [[{key}]]")
    return tables


def _class(table: Any, where: str) -> tuple[str, AgentClass]:
    _check_keys(table, _CLASS, where)
    uids = table.get("uids")
    if uids is not None and not (
        isinstance(uids, list) and uids and all(type(one) is int and one >= 0 for one in uids)
    ):
        raise AnswerPolicyInvalid(f"{where}: uids is a list of numbers that is not empty")
    found = AgentClass(_digests(table, where), None if uids is None else frozenset(uids))
    return _name(table, "", where), found


def _rule(table: Any, where: str, classes: Mapping[str, AgentClass]) -> Rule:
    _check_keys(table, _RULE, where)
    if table.get("decision") not in (APPROVE, DENY):
        raise AnswerPolicyInvalid(f"{where}: decision is approve or deny")
    named = _texts(table, "classes", where, tuple(classes))
    return Rule(
        decision=table["decision"],
        name=_name(table, where, where),
        agents=_texts(table, "agents", where),
        owners=_texts(table, "owners", where),
        proxies=_texts(table, "proxies", where),
        classes=None if named is None else tuple(classes[one] for one in sorted(named)),
        executables=_digests(table, where),
        purposes=_texts(table, "purposes", where, PURPOSES) or frozenset(PURPOSES),
        profiles=_texts(table, "profiles", where, PROFILES) or frozenset(PROFILES),
        longest_seconds=_number(table, "longest_seconds", where, LONG_LIFE_SECONDS) or LONG_LIFE_SECONDS,
        per_hour=_number(table, "per_hour", where, MAX_RATE),
        per_agent_hour=_number(table, "per_agent_hour", where, MAX_RATE),
    )


def _check_keys(table: Any, known: frozenset[str], where: str) -> None:
    if not isinstance(table, dict):
        raise AnswerPolicyInvalid(f"{where} is no table")
    if unknown := sorted(set(table) - known):
        raise AnswerPolicyInvalid(f"{where}: unknown key {unknown[0]}")


def _name(table: dict[str, Any], default: str, where: str) -> str:
    name = table.get("name", default)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise AnswerPolicyInvalid(f"{where}: name has 1 to 64 of A-Z a-z 0-9 . _ - and blanks")
    return name


def _number(table: dict[str, Any], key: str, where: str, most: int) -> int | None:
    value = table.get(key)
    if value is not None and (type(value) is not int or not 0 < value <= most):
        raise AnswerPolicyInvalid(f"{where}: {key} is 1 to {most}")
    return value


def _digests(table: dict[str, Any], where: str) -> frozenset[str] | None:
    found = _texts(table, "executables", where)
    if found is not None and not all(_SHA256.fullmatch(one) for one in found):
        raise AnswerPolicyInvalid(f"{where}: executables are SHA-256 digests in small hex")
    return found


def _texts(table: dict[str, Any], key: str, where: str, known: tuple[str, ...] | None = None) -> frozenset[str] | None:
    if key not in table:
        return None
    value = table[key]
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise AnswerPolicyInvalid(f"{where}: {key} is a list of texts that is not empty")
    if known is not None and not set(value) <= set(known):
        raise AnswerPolicyInvalid(f"{where}: {key} are of {', '.join(known) or 'the classes above'}")
    return frozenset(value)
