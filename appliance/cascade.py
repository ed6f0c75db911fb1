"""What falls with an owner, a proxy or an agent: functions over a Tx, each inside its caller's one transaction.

Whoever revokes calls one of these, so that no credential outlives the party that stands behind it (A-102, A-110).
Everything revoked reaches the CRL and the decision snapshot through the outbox.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.binding import approval as approvals
from appliance.binding import dual_identity, jws
from appliance.binding.errors import BindingError
from appliance.ca import revoke as revoke_certificate
from appliance.errors import Conflict
from appliance.store import agents, certificates, further_approvals, owners, requests, standing_approvals
from appliance.store.agents import Agent
from appliance.store.owners import Owner
from appliance.store.standing_approvals import StandingRow
from appliance.store.transaction import Tx
from est.certificates import read_certificate
from est.errors import EstError

_AGENTS = "agents"


def withdraw_standing(tx: Tx, row: StandingRow, *, actor: Actor, why: str, request_id: str = "") -> None:
    """Withdraw one standing approval; Conflict if it is withdrawn already."""
    if not standing_approvals.withdraw(tx, row.s256):
        raise Conflict("the standing approval is withdrawn already")
    fields = {"approval_s256": row.s256, "agent": row.agent_id, "uses": row.uses, "why": why}
    event = AuditEvent("standing-approval-withdrawn", actor, row.owner_id, request_id=request_id, fields=fields)
    audit.append(tx, event)


def revoke_agent(tx: Tx, agent: Agent, *, actor: Actor, reason: str = "cessationOfOperation", why: str = "") -> int:
    """Revoke an agent and its live credentials; returns how many. Conflict if it is revoked already.

    `reason` is a CRLReason name, `why` text for the log.
    """
    agents.revoke(tx, agent)
    fields = {"owner": agent.owner_id, "proxy": agent.proxy_id, "why": why}
    audit.append(tx, AuditEvent("agent-revoked", actor, agent.identifier, reason=reason, fields=fields))
    for row in standing_approvals.live_for_agent(tx, agent.identifier):
        withdraw_standing(tx, row, actor=actor, why="agent revoked")
    return _revoke_all(tx, "agent_id", agent.identifier, actor, reason)


def revoke_owner(tx: Tx, owner: Owner, *, actor: Actor) -> int:
    """Revoke an owner, its keys and every live credential in its name; returns how many credentials (A-110).

    The owner's agents are revoked too: they were nobody else's. Of other owners' agents, the credentials fall that this
    owner approved beside them: without it they would not have been issued. Conflict if the owner is not in the state
    it shows.
    """
    owners.set_state(tx, owner, owners.REVOKED)
    audit.append(tx, AuditEvent("owner-revoked", actor, owner.identifier, fields={"ref": owner.ref}))
    for key in owners.keys(tx, owner.identifier):
        if key.state != owners.REVOKED:
            owners.end_key(tx, key, state=owners.REVOKED, at=tx.now)
    for row in standing_approvals.live_of_owner(tx, owner.identifier):
        withdraw_standing(tx, row, actor=actor, why="owner revoked")
    count = 0
    for agent in agents.of_owner(tx, owner.identifier):
        if agent.state != agents.REVOKED:
            count += revoke_agent(tx, agent, actor=actor, reason="privilegeWithdrawn", why="owner revoked")
    count += _revoke_all(tx, "owner_id", owner.identifier, actor, "privilegeWithdrawn")
    beside = further_approvals.live_certificates_of(tx, owner.identifier)
    return count + _revoke_each(tx, beside, actor, "privilegeWithdrawn")


def revoke_approved_by(tx: Tx, owner: Owner, jkt: str, *, arc: str, actor: Actor) -> int:
    """Revoke the live credentials whose approval one key of an owner signed; returns how many.

    Its standing approvals are withdrawn. Those of other owners' agents fall too that it approved beside them. The
    certificate itself holds the first approver's key, and the request behind it every approval; a certificate whose
    extension cannot be read falls too.
    """
    for standing in standing_approvals.live_of_owner(tx, owner.identifier):
        if standing.kid == jkt:
            withdraw_standing(tx, standing, actor=actor, why="owner key revoked")
    fallen = []
    behind: dict[str, set[str]] = {}
    for row in certificates.live(tx, "owner_id", owner.identifier, tx.now):
        if row.issuer_role != _AGENTS:
            continue
        if row.agent_id is not None and row.agent_id not in behind:
            behind[row.agent_id] = _certified_by(tx, row.agent_id, jkt)
        if _approving_key(row.der, arc) in (jkt, None) or row.serial in behind.get(row.agent_id or "", ()):
            fallen.append(row)
    fallen += [row for row in further_approvals.live_certificates_of(tx, owner.identifier) if row.approved_by == jkt]
    return _revoke_each(tx, fallen, actor, "keyCompromise")


def _certified_by(tx: Tx, agent_id: str, jkt: str) -> set[str]:
    """Serials of an agent's certificates among whose approvals is one by this key."""
    return {
        str(one.result["serial"])
        for one in requests.of_agent(tx, agent_id)
        if one.result is not None and any(approvals.kid_of(token) == jkt for token in one.approval.split())
    }


def _approving_key(der: bytes | None, arc: str) -> str | None:
    """Thumbprint of the owner's key in a dual-identity certificate; None where there is none to be read."""
    if der is None:
        return None
    try:
        dual = dual_identity.of_certificate(read_certificate(der), arc)
    except (BindingError, EstError):
        return None
    return None if dual is None else jws.jkt(dual.owner_key)


def revoke_behind_proxy(tx: Tx, proxy_id: str, *, actor: Actor) -> int:
    """Revoke the agents that a proxy alone vouched for, with their credentials; returns how many credentials (A-102).

    `proxy_id` is the proxy's identifier. An agent stands behind one proxy, so all of them fall with it.
    """
    count = 0
    for agent in agents.registered_behind(tx, proxy_id):
        count += revoke_agent(tx, agent, actor=actor, reason="cessationOfOperation", why="proxy revoked")
    return count + _revoke_all(tx, "proxy_id", proxy_id, actor, "cessationOfOperation")


def _revoke_all(tx: Tx, column: str, value: str, actor: Actor, reason: str) -> int:
    rows = [row for row in certificates.live(tx, column, value, tx.now) if row.issuer_role == _AGENTS]
    return _revoke_each(tx, rows, actor, reason)


def _revoke_each(tx: Tx, rows: Iterable[Any], actor: Actor, reason: str) -> int:
    """Revoke live certificates, each once however often it was found: a Conflict would undo the whole cascade."""
    found = {row.id: row for row in rows}
    for row in found.values():
        revoke_certificate(tx, row.issuer_aki, int(row.serial, 16), reason=reason, actor=actor)
    return len(found)
