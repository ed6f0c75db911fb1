"""Policy as data: validate, publish, list, show, compare, roll back; publishing is an administrator's audited act."""

from __future__ import annotations

import difflib
from hashlib import sha256
from typing import Any

from appliance.access.service import AccessService
from appliance.audit import Actor, AuditEvent, append
from appliance.errors import NotFound, RequestMalformed
from appliance.store import nas, policies
from appliance.store.policies import PolicyRow
from appliance.store.store import Store
from appliance.store.transaction import Tx
from radius import Policy, load_policy, read_policy
from radius.policy_warnings import warnings_of

MAX_LISTED = 1000
MAX_COMMENT = 500


class PolicyService:
    """The access policy's revisions."""

    def __init__(self, store: Store, access: AccessService) -> None:
        self._store = store
        self._access = access

    async def validate(self, text: str) -> dict[str, Any]:
        """What publish() would read, with warnings; raises the policy's own refusal, which names the place."""
        policy = read_policy(text)
        return {
            "ok": True,
            "version": policy.version,
            "rules": len(policy.rules),
            "vlans": dict(policy.vlans),
            "sha256": sha256(text.encode()).hexdigest(),
            "warnings": await self._warnings(policy),
        }

    async def publish(self, text: str, comment: str, actor: Actor) -> dict[str, Any]:
        """Put a policy in force as the next revision; the next decision uses it."""
        policy = read_policy(text)
        revision = await self._publish(text, comment, actor, {})
        return {"revision": revision, "sha256": policy.sha256, "warnings": await self._warnings(policy)}

    async def rollback(self, revision: int, comment: str, actor: Actor) -> dict[str, Any]:
        """Put the text of an earlier revision in force again, as the next one. Raises NotFound."""
        row = await self._store.read(lambda tx: _find(tx, revision))
        policy = load_policy(row.text)  # it was published: a release that checks more must not forbid the way back
        why = comment or f"rollback to revision {revision}"
        fresh = await self._publish(row.text, why, actor, {"rollback_to": revision})
        return {"revision": fresh, "same_as": revision, "sha256": policy.sha256}

    async def show(self, revision: int = 0) -> dict[str, Any]:
        """A revision, 0 for the one in force; raises NotFound."""
        row = await self._store.read(lambda tx: _find(tx, revision))
        return {**_brief(row), "text": row.text}

    async def list_(self, limit: int = 100) -> list[dict[str, Any]]:
        """The revisions, newest first."""
        if not 1 <= limit <= MAX_LISTED:
            raise RequestMalformed(f"a list has 1 to {MAX_LISTED} revisions")
        return [_brief(row) for row in await self._store.read(lambda tx: policies.every(tx, limit=limit))]

    async def diff(self, first: int, second: int) -> dict[str, Any]:
        """What changed from one revision to another, as a unified diff; 0 is the one in force. Raises NotFound."""
        one, two = await self._store.read(lambda tx: (_find(tx, first), _find(tx, second)))
        lines = difflib.unified_diff(
            one.text.splitlines(),
            two.text.splitlines(),
            f"revision {one.revision}",
            f"revision {two.revision}",
            lineterm="",
        )
        return {"from": one.revision, "to": two.revision, "diff": "\n".join(lines)}

    async def _publish(self, text: str, comment: str, actor: Actor, fields: dict[str, Any]) -> int:
        if len(comment) > MAX_COMMENT or not comment.isprintable():
            raise RequestMalformed(f"a comment is at most {MAX_COMMENT} printable characters")
        digest = sha256(text.encode()).hexdigest()

        def store(tx: Tx) -> int:
            revision = policies.publish(tx, text, comment)
            told = {"sha256": digest, "comment": comment, **fields}
            append(tx, AuditEvent("policy-published", actor, object=str(revision), fields=told))
            return revision

        return await self._store.write(store)

    async def _warnings(self, policy: Policy) -> list[str]:
        rows = await self._store.read(nas.every)
        departments = {one for owner in self._access.snapshot.owners.values() for one in owner.departments}
        return warnings_of(
            policy,
            departments=departments,
            nas={row.name for row in rows},
            sites={row.site for row in rows if row.site},
        )


def _find(tx: Tx, revision: int) -> PolicyRow:
    row = policies.by_revision(tx, revision) if revision else policies.newest(tx)
    if row is None and revision:
        raise NotFound(f"there is no revision {revision} of the access policy")
    if row is None:
        raise NotFound("no access policy is published yet: appliance policy publish FILE")
    return row


def _brief(row: PolicyRow) -> dict[str, Any]:
    return {
        "revision": row.revision,
        "published_at": row.published_at.isoformat(),
        "comment": row.comment,
        "sha256": row.sha256,
    }
