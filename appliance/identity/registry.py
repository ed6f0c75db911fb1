"""The registry of agents, for administrators and auditors: register beforehand, look, classify, revoke (A-113).

Answers are JSON values, the same for command line, console and API.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

from appliance import audit, cascade
from appliance.audit import Actor, AuditEvent
from appliance.binding import jws
from appliance.errors import Conflict, NotFound, RequestMalformed
from appliance.identity.classes import check_class, classify
from appliance.identity.errors import KeyAlreadyAgent
from appliance.identity.issue import timestamp
from appliance.identity.owner_desk import shown as shown_standing
from appliance.identity.owner_desk import shown_approvals
from appliance.store import agents, certificates, org_material, owners, proxies, requests, standing_approvals
from appliance.store.agents import Agent
from appliance.store.store import Store
from appliance.store.transaction import Tx

Json = Mapping[str, Any]
_JKT = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]", re.ASCII)


class AgentRegistry:
    """What administrators do about agents."""

    def __init__(self, *, origin: str, store: Store) -> None:
        """`origin` is scheme and trust domain, the front of agent identifiers."""
        self._origin = origin
        self._store = store

    async def add(self, owner: str, proxy: str, jkt: str, agent_class: str = "", *, actor: Actor) -> Json:
        """Register an agent before it asks: its owner (ref or identifier), proxy (identifier), key and class are fixed.

        Without an owner it acts for itself, where its class may.

        Raises NotFound, RequestMalformed, KeyAlreadyAgent, Conflict for an owner or proxy that is not active.
        """
        if not _JKT.fullmatch(jkt):
            raise RequestMalformed("jkt is not the thumbprint of a key (RFC 7638)")
        check_class(agent_class)

        def write(tx: Tx) -> Json:
            owner_id = _active_owner(tx, owner) if owner else None
            behind = proxies.by_identifier(tx, proxy)
            if behind is None:
                raise NotFound("there is no such proxy")
            if not behind.is_active:
                raise Conflict("the proxy is revoked")
            if any(one.state != agents.RESERVED for one in agents.by_jkt(tx, jkt)) or owners.key(tx, jkt) is not None:
                raise KeyAlreadyAgent("this key is an agent's or an owner's already")
            name = str(uuid.uuid4())
            made = Agent(
                name, f"{self._origin}/agent/{name}", owner_id, proxy, jkt, agent_class, agents.REGISTERED,
                tx.now, tx.now,
            )  # fmt: skip
            agents.add(tx, made)
            fields = {"owner": made.owner_id, "proxy": proxy, "jkt": jkt, "class": agent_class}
            audit.append(tx, AuditEvent("agent-registered", actor, made.identifier, fields=fields))
            return _brief(tx, made)

        return await self._store.write(write)

    async def list(self, owner: str = "") -> list[Json]:
        """Agents with their newest live credential; with `owner` (ref or identifier), only that one's."""

        def read(tx: Tx) -> list[Json]:
            if not owner:
                return [_brief(tx, one) for one in agents.page(tx)]
            found = owners.find(tx, owner)
            if found is None:
                raise NotFound("there is no such owner")
            return [_brief(tx, one) for one in agents.of_owner(tx, found.identifier)]

        return await self._store.read(read)

    async def show(self, agent: str) -> Json:
        """One agent with every credential and what stands behind each: hashes of request, approvals, evidence, result.

        `agent` is the identifier or its UUID. Raises NotFound.
        """

        def read(tx: Tx) -> Json:
            found = self._find(tx, agent)
            return {
                **_brief(tx, found),
                "jkt": found.jkt,
                "credentials": [_credential(row) for row in certificates.of(tx, "agent_id", found.identifier)],
                "standing": [shown_standing(row) for row in standing_approvals.of_agent(tx, found.identifier)],
                "requests": [_request(tx, row) for row in requests.of_agent(tx, found.identifier)],
            }

        return await self._store.read(read)

    async def revoke(self, agent: str, *, actor: Actor, why: str = "") -> Json:
        """Revoke an agent and its credentials for good; raises NotFound, Conflict if it is revoked already."""

        def write(tx: Tx) -> Json:
            found = self._find(tx, agent)
            count = cascade.revoke_agent(tx, found, actor=actor, why=why[:200])
            return {"identifier": found.identifier, "state": agents.REVOKED, "credentials_revoked": count}

        return await self._store.write(write, essential=True)

    async def suspend(self, agent: str, *, actor: Actor, why: str = "") -> Json:
        """Refuse its requests and logins until it is resumed; credentials stay. Raises NotFound, Conflict."""
        return await self._move(agent, agents.REGISTERED, agents.SUSPENDED, "agent-suspended", actor, why)

    async def resume(self, agent: str, *, actor: Actor) -> Json:
        """End a suspension; raises NotFound, Conflict."""
        return await self._move(agent, agents.SUSPENDED, agents.REGISTERED, "agent-resumed", actor, "")

    async def classify(self, agent: str, agent_class: str, *, actor: Actor) -> Json:
        """Give an agent another class, or none; the next decision and the next request go by it, credentials stay.

        Raises NotFound, RequestMalformed, Conflict for one that is revoked.
        """
        check_class(agent_class)

        def write(tx: Tx) -> Json:
            found = self._find(tx, agent)
            if found.state == agents.REVOKED:
                raise Conflict("the agent is revoked")
            return _brief(tx, classify(tx, found, agent_class, actor=actor))

        return await self._store.write(write, essential=True)

    async def _move(self, agent: str, was: str, state: str, event: str, actor: Actor, why: str) -> Json:
        def write(tx: Tx) -> Json:
            found = self._find(tx, agent)
            if found.state != was:
                raise Conflict(f"the agent is {found.state}")
            moved = agents.move(tx, found, state)
            fields = {"owner": found.owner_id, "proxy": found.proxy_id, "why": why[:200]}
            audit.append(tx, AuditEvent(event, actor, found.identifier, fields=fields))
            return _brief(tx, moved)

        return await self._store.write(write, essential=True)

    def _find(self, tx: Tx, agent: str) -> Agent:
        name = agent if "://" in agent else f"{self._origin}/agent/{agent}"
        found = agents.by_identifier(tx, name)
        if found is None:
            raise NotFound("there is no such agent")
        return found


def _active_owner(tx: Tx, name: str) -> str:
    found = owners.find(tx, name)
    if found is None:
        raise NotFound("there is no such owner")
    if found.state != owners.ACTIVE:
        raise Conflict(f"the owner is {found.state}")
    return found.identifier


def _brief(tx: Tx, agent: Agent) -> dict[str, Any]:
    live = certificates.live(tx, "agent_id", agent.identifier, tx.now)
    newest = live[-1] if live else None
    return {
        "identifier": agent.identifier,
        "owner": agent.owner_id,
        "proxy": agent.proxy_id,
        "class": agent.agent_class,
        "state": agent.state,
        "serial": None if newest is None else newest.serial,
        "not_after": None if newest is None else timestamp(newest.not_after),
    }


def _credential(row: Any) -> dict[str, Any]:
    return {
        "serial": row.serial,
        "owner": row.owner_id,
        "model": row.model,
        "state": row.state,
        "not_before": timestamp(row.not_before),
        "not_after": timestamp(row.not_after),
        "cert_sha256": row.cert_sha256,
        "txn": row.txn,
    }


def _request(tx: Tx, row: requests.Request) -> dict[str, Any]:
    return {
        "txn": row.txn,
        "state": row.state,
        "serial": None if row.result is None else row.result.get("serial"),
        "log_index": None if row.result is None else row.result.get("log_index"),
        "rqh": row.rqh,
        "approvals_s256": [jws.s256(one) for one in row.approval.split()],
        "approvals": shown_approvals(row),
        "evidence_s256": jws.s256(row.evidence),
        "ear_s256": jws.s256(row.ear),
        "org": org_material.of_request(tx, row.rqh),
        "at": timestamp(row.created_at),
    }
