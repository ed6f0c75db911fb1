"""An agent's class: rules of access policy and numbers of approvers go by it, so an agent never says its own.

An administrator may change it at any time. An owner may give one of `identity.owner_classes` to an agent of its own
that has none yet: what a class opens is the administrator's to say, and what it has closed stays closed.
"""

from __future__ import annotations

import re

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.errors import RequestMalformed
from appliance.store import agents
from appliance.store.agents import Agent
from appliance.store.transaction import Tx

_CLASS = re.compile(r"[A-Za-z0-9._-]{0,64}", re.ASCII)


def check_class(name: str) -> None:
    """Raises RequestMalformed for what cannot be a class; empty is none."""
    if not _CLASS.fullmatch(name):
        raise RequestMalformed("a class has at most 64 of A-Z a-z 0-9 . _ -")


def classify(tx: Tx, agent: Agent, name: str, *, actor: Actor, request_id: str = "") -> Agent:
    """Give an agent this class and audit it; the class that it has already changes nothing. Raises Conflict."""
    if agent.agent_class == name:
        return agent
    fields = {"owner": agent.owner_id, "proxy": agent.proxy_id, "was": agent.agent_class, "class": name}
    changed = agents.classify(tx, agent, name)
    audit.append(tx, AuditEvent("agent-classified", actor, agent.identifier, request_id=request_id, fields=fields))
    return changed
