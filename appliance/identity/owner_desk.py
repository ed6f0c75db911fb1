"""What owners ask and do for themselves, over their own connection (A-113): standing approvals, classes, an overview.

Who asks is known by the client key of the connection; everything is read and changed in that owner's name alone. A
standing approval counts by its signature, as every approval does; to withdraw one, the connection is enough, because
that can only take away, and to give an agent a class that an administrator lets owners give.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from appliance import cascade
from appliance.audit import Actor
from appliance.binding import approval as approvals
from appliance.binding import jws, standing
from appliance.binding.errors import ApprovalForOtherAgent
from appliance.binding.facts import Limits
from appliance.clock import Clock
from appliance.errors import Conflict, NotFound
from appliance.identity.approvers import ClassRules
from appliance.identity.challenges import OwnerCaller
from appliance.identity.classes import classify
from appliance.identity.errors import ClassAlreadyGiven, ClassNotForOwners
from appliance.identity.issue import timestamp
from appliance.identity.records import Registry, record_standing
from appliance.store import agents, certificates, further_approvals, owners, requests, standing_approvals
from appliance.store.requests import Request
from appliance.store.standing_approvals import StandingRow
from appliance.store.store import Store
from appliance.store.transaction import Tx

Json = Mapping[str, Any]
MAX_ISSUED = 1000


class OwnerDesk:
    """Standing approvals and what was issued, for owners and administrators."""

    def __init__(
        self,
        *,
        server_id: str,
        store: Store,
        clock: Clock,
        registry: Registry,
        limits: Limits,
        rules: ClassRules,
        owner_classes: Collection[str] = (),
    ) -> None:
        """`owner_classes` are those that owners may give to agents of their own."""
        self._server_id = server_id
        self._store = store
        self._clock = clock
        self._registry = registry
        self._limits = limits
        self._rules = rules
        self._owner_classes = frozenset(owner_classes)

    async def hand_in(self, caller: OwnerCaller, token: str, request_id: str = "") -> Json:
        """Take in an owner's standing approval; the same one may come again.

        Raises what `standing.check` raises, ApprovalForOtherAgent for an agent that is not this owner's, ApprovalSpent,
        Conflict for one that was withdrawn.
        """
        sealed = approvals.read(token)
        approver = self._store.read_sync(lambda tx: self._registry.approver(tx, sealed))
        checked = standing.check(
            sealed,
            approver.owner,
            server_id=self._server_id,
            now=self._clock.now(),
            limits=self._limits,
            signer_is_agent=approver.is_agent,
        )

        def write(tx: Tx) -> Json:
            agent = agents.by_identifier(tx, checked.sub)
            is_mine = agent is not None and (
                agent.owner_id == caller.owner_id
                or self._rules.of(agent.agent_class).beside(caller.owner_id) is not None
            )
            if checked.iss != caller.owner_id or not is_mine:
                raise ApprovalForOtherAgent("the standing approval is not about an agent of yours")
            row = record_standing(tx, checked, caller.actor, request_id)
            if row.state != standing_approvals.LIVE:
                raise Conflict("this standing approval was withdrawn; sign a new one")
            return shown(row)

        return await self._store.write(write)

    async def standing(self, owner_id: str) -> list[Json]:
        """An owner's standing approvals, oldest first."""
        return await self._store.read(lambda tx: [shown(row) for row in standing_approvals.of_owner(tx, owner_id)])

    async def withdraw(self, owner_id: str, s256: str, *, actor: Actor, request_id: str = "") -> Json:
        """Withdraw a standing approval for good; credentials that were issued under it stay.

        Raises NotFound for one that is not this owner's, Conflict if it is withdrawn already.
        """

        def write(tx: Tx) -> Json:
            row = standing_approvals.get(tx, s256)
            if row is None or row.owner_id != owner_id:
                raise NotFound("this owner has no such standing approval")
            cascade.withdraw_standing(tx, row, actor=actor, why="by hand", request_id=request_id)
            after = standing_approvals.get(tx, s256)
            assert after is not None  # rows stay
            return shown(after)

        return await self._store.write(write, essential=True)

    async def classify(self, caller: OwnerCaller, agent_id: str, name: str, request_id: str = "") -> Json:
        """Give a class to an agent of the caller's that has none; the one that it has already may come again.

        Raises ClassNotForOwners, NotFound for an agent that is not this owner's, Conflict for one that is suspended or
        revoked, ClassAlreadyGiven.
        """
        if name not in self._owner_classes:
            raise ClassNotForOwners("owners may not give this class here; ask an administrator")

        def write(tx: Tx) -> Json:
            agent = agents.by_identifier(tx, agent_id)
            if agent is None or agent.owner_id != caller.owner_id:
                raise NotFound("this owner has no such agent")
            if agent.state != agents.REGISTERED:
                raise Conflict(f"the agent is {agent.state}")
            if agent.agent_class not in ("", name):
                raise ClassAlreadyGiven("the agent has a class; only an administrator changes it")
            changed = classify(tx, agent, name, actor=caller.actor, request_id=request_id)
            return {"identifier": changed.identifier, "class": changed.agent_class, "state": changed.state}

        return await self._store.write(write)

    async def of_owner(self, name: str) -> list[Json]:
        """The same as standing(), for an owner's ref or identifier; raises NotFound."""
        return await self.standing(await self._store.read(lambda tx: _owner(tx, name)))

    async def withdraw_of(self, name: str, s256: str, *, actor: Actor) -> Json:
        """The same as withdraw(), for an owner's ref or identifier."""
        return await self.withdraw(await self._store.read(lambda tx: _owner(tx, name)), s256, actor=actor)

    async def issued(self, owner_id: str) -> Json:
        """What was issued in an owner's name: agents with their credentials, newest first, and who stands behind each.

        `beside`: credentials of other owners' agents that this owner approved beside them. At most the newest
        MAX_ISSUED of either; `more` says whether there are others.
        """

        def read(tx: Tx) -> Json:
            rows = sorted(certificates.of(tx, "owner_id", owner_id), key=lambda row: row.id, reverse=True)
            mine = agents.of_owner(tx, owner_id)
            behind = {
                one.result["serial"]: one
                for agent in mine
                for one in requests.of_agent(tx, agent.identifier)
                if one.result is not None and one.result.get("serial")
            }
            beside = sorted(further_approvals.certificates_of(tx, owner_id), key=lambda row: row.id, reverse=True)
            return {
                "owner": owner_id,
                "agents": [
                    {
                        "identifier": one.identifier,
                        "proxy": one.proxy_id,
                        "class": one.agent_class,
                        "state": one.state,
                        "since": timestamp(one.created_at),
                    }
                    for one in mine
                ],
                "credentials": [_credential(row, behind.get(row.serial)) for row in rows[:MAX_ISSUED]],
                "beside": [
                    {**_credential(row, None), "owner": row.owner_id, "kid": row.approved_by}
                    for row in beside[:MAX_ISSUED]
                ],
                "more": max(len(rows), len(beside)) > MAX_ISSUED,
            }

        return await self._store.read(read)


def shown(row: StandingRow) -> dict[str, Any]:
    """A standing approval as people read it."""
    return {
        "s256": row.s256,
        "agent": row.agent_id,
        "state": row.state,
        "uses": row.uses,
        "max_uses": row.max_uses,
        "until": timestamp(row.expires_at),
        "used_at": None if row.used_at is None else timestamp(row.used_at),
        "kid": row.kid,
    }


def _credential(row: Any, behind: Request | None) -> dict[str, Any]:
    return {
        "serial": row.serial,
        "agent": row.agent_id,
        "proxy": row.proxy_id,
        "model": row.model,
        "state": row.state,
        "not_before": timestamp(row.not_before),
        "not_after": timestamp(row.not_after),
        "revoked_at": None if row.revoked_at is None else timestamp(row.revoked_at),
        "txn": row.txn,
        "platform": None if behind is None else platform_of(behind.evidence),
        "approvals_s256": [] if behind is None else [jws.s256(one) for one in behind.approval.split()],
        "approvals": [] if behind is None else shown_approvals(behind),
    }


def shown_approvals(row: Request) -> list[Json]:
    """Every approval behind a request: whose, by which key, its hash; the agent's own owner's first."""
    found: list[Json] = []
    for token in row.approval.split():
        owner_id, kid = approvals.signer_of(token)
        found.append({"owner": owner_id, "kid": kid, "s256": jws.s256(token)})
    return found


def platform_of(evidence_token: str) -> Json:
    """What the proxy had measured of device, program and user, octets as hex: what a standing approval would name."""
    claims = jws.read_object(jws.read(evidence_token).payload, "evidence")
    parts = claims.get("submods")
    agent = parts.get("agent", {}) if isinstance(parts, dict) else {}
    digest = agent.get("executable_digest")
    return {
        "ueid": _hex(claims.get("ueid")),
        "executable_sha256": _hex(digest["hash"]) if isinstance(digest, dict) and digest["alg"] == "sha-256" else None,
        "uid": agent.get("uid"),
        **({"key_origin": str(agent["key_origin"])} if "key_origin" in agent else {}),
    }


def _hex(value: object) -> str | None:
    return jws.unbase64url(value, "evidence").hex() if isinstance(value, str) else None


def _owner(tx: Tx, name: str) -> str:
    found = owners.find(tx, name)
    if found is None:
        raise NotFound("there is no such owner")
    return found.identifier
