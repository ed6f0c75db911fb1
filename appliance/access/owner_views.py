"""How owners are shown: JSON values for command line, console and API."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from appliance.access.owner_rows import Changed, Difference, OwnerRow
from appliance.store import agents, certificates, owner_clients, owner_gateways, owners
from appliance.store.owners import Key, Owner
from appliance.store.transaction import Tx

Json = Mapping[str, Any]
_CHANGEABLE = ("name", "kind", "department")


def brief(owner: Owner) -> dict[str, Any]:
    """Identifier, ref and what may change."""
    return {
        "identifier": owner.identifier,
        "ref": owner.ref,
        "name": owner.name,
        "kind": owner.kind,
        "department": owner.department,
        "more_departments": list(owner.more_departments),
        "state": owner.state,
        "source": owner.source,
        "source_state": owner.source_state,
        "held": owner.held,
    }


def with_keys(tx: Tx, owner: Owner) -> dict[str, Any]:
    """An owner with its keys and the proxies that may submit for it (None: any)."""
    allowed = owners.allowed_proxies(tx, owner.identifier)
    return {
        **brief(owner),
        "keys": [_key(one) for one in owners.keys(tx, owner.identifier)],
        "client_keys": [{"jkt": one.jkt, "state": one.state} for one in owner_clients.of_owner(tx, owner.identifier)],
        "gateways": [
            {"jkt": one.jkt, "url": one.url, "state": one.state}
            for one in owner_gateways.of_owner(tx, owner.identifier)
        ],
        "proxies": None if allowed is None else sorted(allowed),
    }


def whole(tx: Tx, owner: Owner) -> dict[str, Any]:
    """An owner with everything that was issued in its name (A-113)."""
    return {
        **with_keys(tx, owner),
        "agents": [
            {"identifier": one.identifier, "proxy": one.proxy_id, "state": one.state}
            for one in agents.of_owner(tx, owner.identifier)
        ],
        "credentials": [credential(row) for row in certificates.of(tx, "owner_id", owner.identifier)],
    }


def credential(row: Any) -> dict[str, Any]:
    """A certificate row as a person reads it."""
    return {
        "serial": row.serial,
        "agent": row.agent_id,
        "proxy": row.proxy_id,
        "model": row.model,
        "state": row.state,
        "not_before": _time(row.not_before),
        "not_after": _time(row.not_after),
        "txn": row.txn,
    }


def differences(change: Changed) -> dict[str, list[str]]:
    """What differs: column to [before, after]."""
    pairs = {name: [getattr(change.before, name), getattr(change.after, name)] for name in _CHANGEABLE}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def difference(
    found: Difference, revoked: Collection[str], foreign: Collection[str], *, is_applied: bool
) -> dict[str, Any]:
    """What an import did or would do; rows of revoked owners and of `foreign` ones (other sources) are passed over."""
    return {
        "added": [_row(row) for row in found.added],
        "changed": [{"ref": one.after.ref, **differences(one)} for one in found.changed],
        "unchanged": list(found.unchanged),
        "vanished": [_row(row) for row in found.vanished],
        "revoked": sorted(revoked),
        "of_other_source": sorted(foreign),
        "applied": is_applied,
    }


def _row(row: OwnerRow) -> dict[str, str]:
    return {"ref": row.ref, "name": row.name, "kind": row.kind, "department": row.department}


def _key(key: Key) -> dict[str, Any]:
    return {
        "jkt": key.jkt,
        "protection": key.protection,
        "state": key.state,
        "not_after": None if key.not_after is None else _time(key.not_after),
        "statement_sha256": key.statement_sha256,
        "created_at": _time(key.created_at),
    }


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
