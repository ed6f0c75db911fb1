"""What a draft policy would do to the sessions that are open now: who would be moved or taken off on its publication.

Each is decided twice with the facts of now, by the policy in force and by the draft, with the function that decides at
the port. What changes without the draft (a suspended owner whose switch does not answer) is not the draft's doing.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from appliance.access import session_table
from appliance.access.service import AccessService
from appliance.access.sessions import KNOWS_TOO_LITTLE, SessionService, wanted
from appliance.store.sessions import Session
from radius import Decision, read_policy
from radius.nas_profiles import Want

MAX_LISTED: Final = 1000
_AT_ONCE: Final = 10


class OpenSessions:
    """Judges live sessions by a draft, and changes nothing."""

    def __init__(self, access: AccessService, sessions: SessionService) -> None:
        self._access = access
        self._sessions = sessions

    async def impact(self, text: str) -> dict[str, Any]:
        """What a draft would change in them; raises the policy's refusals."""
        draft = read_policy(text)
        count = changed = not_judged = 0
        listed: list[dict[str, Any]] = []
        async for session in self._sessions.live():
            count += 1
            if not count % _AT_ONCE:
                await asyncio.sleep(0)  # logins are decided in between
            login = session_table.read_login(session.request)
            now, then = self._access.simulate(login), self._access.simulate(login, draft)
            if session.verdict == "unknown" or then.reason_code in KNOWS_TOO_LITTLE:
                not_judged += 1
                continue
            order = wanted(session, then)
            if order is None or _outcome(now) == _outcome(then):
                continue
            changed += 1
            if len(listed) < MAX_LISTED:
                listed.append(_change(session, then, order[0]))
        return {
            "sessions": count,
            "sessions_changed": changed,
            "sessions_not_judged": not_judged,
            "session_changes": sorted(listed, key=lambda one: (one["nas"], one["port"], one["mac"])),
        }


def _outcome(decision: Decision) -> tuple[str, str]:
    return decision.verdict, session_table.granted(decision)


def _change(session: Session, then: Decision, want: Want) -> dict[str, Any]:
    return {
        "session": session.id,
        "nas": session.nas or session.nas_address,
        "port": session.port,
        "mac": session.mac,
        "agent": session.agent_id,
        "owner": session.owner_id,
        "vlan_now": session.vlan,
        "vlan_then": "" if then.verdict == "reject" or then.vlan is None else str(then.vlan),
        "granted_now": session.granted,
        "granted_then": session_table.granted(then),
        "asks": want,
        "reason": then.reason_code,
        "why": then.steps[-1].evidence or then.reason,
    }
