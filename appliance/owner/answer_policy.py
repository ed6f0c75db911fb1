"""Answers by rule: a policy file that says yes or no where nobody looks.

    version = 1
    otherwise = "leave"                  # or "deny": what happens to a challenge that no rule fits

    [[rule]]
    decision = "approve"                 # or "deny"
    agents = ["spiffe://..."]            # identifiers; left out: any agent that is registered to you
    proxies = ["spiffe://..."]           # likewise
    purposes = ["issue", "renew"]        # what may be asked; left out: both
    profiles = ["x509", "wit"]           # at most these; left out: both
    longest_seconds = 28800              # at most this life; left out: 24 h

The first rule that fits decides. A rule sees the same typed fields that a person is shown, and never the agent's text.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

from appliance.binding.challenge import BindingChallenge
from appliance.binding.facts import PROFILES, PURPOSES
from appliance.owner.errors import AnswerPolicyInvalid
from appliance.owner.sign import LONG_LIFE_SECONDS

APPROVE, DENY, LEAVE = "approve", "deny", "leave"
MAX_POLICY = 262_144
_KEYS = frozenset({"decision", "agents", "proxies", "purposes", "profiles", "longest_seconds"})


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; None = any."""

    decision: str
    agents: frozenset[str] | None = None
    proxies: frozenset[str] | None = None
    purposes: frozenset[str] = frozenset(PURPOSES)
    profiles: frozenset[str] = frozenset(PROFILES)
    longest_seconds: int = LONG_LIFE_SECONDS

    def fits(self, asked: BindingChallenge) -> bool:
        """Whether this rule is about such a challenge."""
        return (
            (self.agents is None or asked.sub in self.agents)
            and (self.proxies is None or asked.proxy in self.proxies)
            and asked.purpose in self.purposes
            and self.profiles >= set(asked.profiles)
            and asked.ttl <= self.longest_seconds
        )


@dataclass(frozen=True, slots=True)
class AnswerPolicy:
    """Rules in their order, and what happens otherwise."""

    rules: tuple[Rule, ...]
    otherwise: str = LEAVE

    def decide(self, asked: BindingChallenge) -> str:
        """approve, deny or leave."""
        return next((rule.decision for rule in self.rules if rule.fits(asked)), self.otherwise)


def read_answer_policy(text: str) -> AnswerPolicy:
    """The policy in a TOML text; raises AnswerPolicyInvalid naming the place."""
    if len(text) > MAX_POLICY:
        raise AnswerPolicyInvalid(f"the policy has more than {MAX_POLICY} characters")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as cause:
        raise AnswerPolicyInvalid(str(cause) or "nested too deeply") from cause
    if unknown := sorted(set(document) - {"version", "otherwise", "rule"}):
        raise AnswerPolicyInvalid(f"unknown key {unknown[0]}")
    if document.get("version") != 1:
        raise AnswerPolicyInvalid("version must be 1")
    otherwise = document.get("otherwise", LEAVE)
    if otherwise not in (LEAVE, DENY):
        raise AnswerPolicyInvalid("otherwise is leave or deny")
    rules = document.get("rule", [])
    if not isinstance(rules, list):
        raise AnswerPolicyInvalid("rule is a list of tables: [[rule]]")
    return AnswerPolicy(tuple(_rule(table, f"rule {at}") for at, table in enumerate(rules, 1)), otherwise)


def _rule(table: Any, where: str) -> Rule:
    if not isinstance(table, dict):
        raise AnswerPolicyInvalid(f"{where} is no table")
    if unknown := sorted(set(table) - _KEYS):
        raise AnswerPolicyInvalid(f"{where}: unknown key {unknown[0]}")
    if table.get("decision") not in (APPROVE, DENY):
        raise AnswerPolicyInvalid(f"{where}: decision is approve or deny")
    longest = table.get("longest_seconds", LONG_LIFE_SECONDS)
    if type(longest) is not int or not 0 < longest <= LONG_LIFE_SECONDS:
        raise AnswerPolicyInvalid(f"{where}: longest_seconds is 1 to {LONG_LIFE_SECONDS}")
    return Rule(
        decision=table["decision"],
        agents=_texts(table, "agents", where),
        proxies=_texts(table, "proxies", where),
        purposes=_texts(table, "purposes", where, PURPOSES) or frozenset(PURPOSES),
        profiles=_texts(table, "profiles", where, PROFILES) or frozenset(PROFILES),
        longest_seconds=longest,
    )


def _texts(table: dict[str, Any], key: str, where: str, known: tuple[str, ...] | None = None) -> frozenset[str] | None:
    if key not in table:
        return None
    value = table[key]
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise AnswerPolicyInvalid(f"{where}: {key} is a list of texts that is not empty")
    if known is not None and not set(value) <= set(known):
        raise AnswerPolicyInvalid(f"{where}: {key} are of {', '.join(known)}")
    return frozenset(value)
