"""Whether an issued request still counts: WITs stand on no list, so whoever hands one out asks here (A-110)."""

from __future__ import annotations

from collections.abc import Set

from appliance.binding import approval as approvals
from appliance.store import agents, certificates, owners, proxies
from appliance.store.requests import Request
from appliance.store.transaction import Tx

_ENDED = frozenset({"revoked"})
_HELD = frozenset({"revoked", "suspended"})


def is_withdrawn(tx: Tx, row: Request) -> bool:
    """Whether the agent, an owner or key that approved, or the certificate of an issued request is revoked."""
    return _is_any(tx, row, _ENDED)


def is_held_back(tx: Tx, row: Request) -> bool:
    """The same, also while agent, an approver or its key is suspended, or the proxy is not in force."""
    proxy = proxies.by_identifier(tx, row.proxy_id)
    return proxy is None or not proxy.is_active or _is_any(tx, row, _HELD)


def _is_any(tx: Tx, row: Request, states: Set[str]) -> bool:
    agent = agents.by_identifier(tx, row.agent_id)
    if agent is None or agent.state in states:
        return True
    owner = None if row.owner_id is None else owners.by_identifier(tx, row.owner_id)
    if owner is not None and owner.state in states:
        return True
    keys = (owners.key(tx, approvals.kid_of(token)) for token in row.approval.split())
    for key in keys:
        approver = None if key is None else owners.by_identifier(tx, key.owner_id)
        if key is not None and (key.state in states or approver is None or approver.state in states):
            return True
    serial = (row.result or {}).get("serial")
    issued = None if serial is None else certificates.by_role_and_serial(tx, "agents", int(serial, 16))
    return issued is not None and issued.state == certificates.REVOKED
