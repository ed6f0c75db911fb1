"""Impact: what a draft policy would change, seen by replaying past logins against it.

Each login is judged twice with everything that the rules looked at then: by the policy in force and by the draft. So
what changed in the directory since, or between earlier revisions, is not mistaken for the draft's doing. Memory is
bounded whatever the number of logins: past the caps, changes and agents are counted and no longer listed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from radius.policy import Policy
from radius.rules import Asked
from radius.ruling import Ruling, rule_on

MAX_CHANGES: Final = 1000
MAX_AGENTS: Final = 100_000


class Past(NamedTuple):
    """A login of the past or a session that is open: what the rules were asked with, and who it was."""

    time: datetime
    asked: Asked
    agent_id: str = ""
    owner_id: str = ""
    mac: str = ""

    @property
    def who(self) -> str:
        """The agent or proxy, else the MAC address."""
        return self.agent_id or self.mac


@dataclass(slots=True)
class Change:
    """An agent, proxy or MAC address that would get something else: in how many logins, and the last of them."""

    who: str
    owner_id: str
    before: str
    after: str
    why: str
    logins: int
    last: Past


class Replay:
    """Takes past logins one after the other and keeps what a draft would change."""

    def __init__(self, current: Policy, draft: Policy, *, max_changes: int = MAX_CHANGES) -> None:
        self._current = current
        self._draft = draft
        self._max_changes = max_changes
        self._changes: dict[tuple[str, str, str], Change] = {}
        self._agents: set[str] = set()
        self.logins = 0
        self.changed_logins = 0
        self.transitions: Counter[tuple[str, str]] = Counter()
        self.is_complete = True
        """Whether every change is listed and every agent that changes is counted."""

    def add(self, past: Past) -> bool:
        """Judge one login; answers whether the draft changes it."""
        self.logins += 1
        before = rule_on(past.asked, past.time, self._current)
        after = rule_on(past.asked, past.time, self._draft)
        was, becomes = outcome_text(before), outcome_text(after)
        if was == becomes:
            return False
        self.changed_logins += 1
        self.transitions[was, becomes] += 1
        if len(self._agents) < MAX_AGENTS:
            self._agents.add(past.who)
        elif past.who not in self._agents:
            self.is_complete = False
        key = (past.who, was, becomes)
        if (known := self._changes.get(key)) is not None:
            known.logins += 1
            known.last = past
        elif len(self._changes) < self._max_changes:
            why = f"now {before.evidence}; then {after.evidence}"
            self._changes[key] = Change(past.who, past.owner_id, was, becomes, why, 1, past)
        else:
            self.is_complete = False
        return True

    @property
    def changes(self) -> list[Change]:
        """What would change, the most frequent first."""
        return sorted(self._changes.values(), key=lambda one: (-one.logins, one.who))

    @property
    def changed_agents(self) -> int:
        """How many agents, proxies and MAC addresses would get something else (at most MAX_AGENTS are counted)."""
        return len(self._agents)


def outcome_text(ruling: Ruling) -> str:
    """What a login gets, in one line; two logins with the same line are treated alike by the switch."""
    if ruling.verdict == "reject":
        return "reject"
    parts = [f"{ruling.verdict} VLAN {ruling.vlan} ({ruling.vlan_name})"]
    parts += [f"role {ruling.role}"] if ruling.role else []
    parts += [f"Filter-Id {ruling.filter_id}"] if ruling.filter_id else []
    parts += [f"at most {ruling.session_timeout} s"] if ruling.session_timeout is not None else []
    return ", ".join(parts)
