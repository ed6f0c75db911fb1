"""Sessions for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.store.sessions import Change, Session


def as_json(session: Session, changes: Sequence[Change] = ()) -> dict[str, Any]:
    """A session for the command line."""
    return {
        "id": session.id,
        "state": session.state,
        "nas": session.nas,
        "nas_address": session.nas_address,
        "port": session.port,
        "mac": session.mac,
        "agent": session.agent_id,
        "owner": session.owner_id,
        "department": session.department,
        "vlan": session.vlan,
        "verdict": session.verdict,
        "granted": session.granted,
        "serial": session.serial,
        "txn": session.txn,
        "acct_session": session.acct_session,
        "policy_revision": session.policy_revision,
        "octets_in": session.octets_in,
        "octets_out": session.octets_out,
        "since": session.began_at.isoformat(timespec="seconds"),
        "last_update": session.updated_at.isoformat(timespec="seconds"),
        "ended": session.ended_at.isoformat(timespec="seconds") if session.ended_at else "",
        "cause": session.cause,
        "changes": [
            {
                "asked": one.created_at.isoformat(timespec="milliseconds"),
                "want": one.want,
                "why": one.why,
                "state": one.state,
                "attempts": one.attempts,
                "result": one.result,
            }
            for one in changes
        ],
    }
