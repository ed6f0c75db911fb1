"""Whether an issued request still counts: WITs stand on no list, so whoever hands one out asks here (A-110)."""

from __future__ import annotations

from appliance.binding import approval as approvals
from appliance.store import agents, certificates, owners
from appliance.store.requests import Request
from appliance.store.transaction import Tx


def is_withdrawn(tx: Tx, row: Request) -> bool:
    """Whether the agent, its owner, a key that approved, or the certificate of an issued request is revoked."""
    agent = agents.by_identifier(tx, row.agent_id)
    if agent is None or agent.state == agents.REVOKED:
        return True
    owner = None if row.owner_id is None else owners.by_identifier(tx, row.owner_id)
    if owner is not None and owner.state == owners.REVOKED:
        return True
    keys = (owners.key(tx, approvals.kid_of(token)) for token in row.approval.split())
    if any(key is not None and key.state == owners.REVOKED for key in keys):
        return True
    serial = (row.result or {}).get("serial")
    issued = None if serial is None else certificates.by_role_and_serial(tx, "agents", int(serial, 16))
    return issued is not None and issued.state == certificates.REVOKED
