"""What would be decided, what was decided, what a draft would change: for certificates, log rows, days of logins."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from cryptography import x509

from appliance.access.decision_rows import as_json, asked_of, decision_of
from appliance.access.service import AccessService
from appliance.clock import Clock
from appliance.errors import NotFound, RequestMalformed
from appliance.store import decisions
from appliance.store.store import Store
from est.chains import aki_of
from radius import AccessRequest, CredentialRef, Decision, explain, read_policy
from radius.impact import Past, Replay, outcome_text
from radius.request import read_owner_id
from radius.ruling import rule_on

MAX_DAYS = 3650
PAGE = 1000


class Explainer:
    """Answers why, without deciding anything at a port."""

    def __init__(self, store: Store, access: AccessService, clock: Clock, *, owner_id_oid: str) -> None:
        self._store = store
        self._access = access
        self._clock = clock
        self._owner_id_oid = owner_id_oid

    def certificate(self, certificate: x509.Certificate, **place: str) -> Decision:
        """What the holder of a certificate would get now; `place` are fields of AccessRequest (nas, nas_port, ...)."""
        aki = aki_of(certificate)
        ref = None if aki is None else CredentialRef(aki.hex(), certificate.serial_number)
        return self._access.simulate(
            AccessRequest(
                credential=ref,
                owner_id_hint=self._owner_hint(certificate),
                san=_san_text(certificate),
                defect="" if ref else "credential-missing",
                **place,
            )
        )

    def serial(self, aki: str, serial: int, **place: str) -> Decision:
        """What the credential of this issuer key (hex) and serial number would get now."""
        return self._access.simulate(AccessRequest(credential=CredentialRef(aki, serial), **place))

    async def row(self, key: int) -> dict[str, Any]:
        """A past decision as it was, and what the policy in force says to the same login. Raises NotFound."""
        await self._access.flush()
        row = await self._store.read(lambda tx: decisions.one(tx, key))
        if row is None:
            raise NotFound("the decision log has no such row; old ones are deleted")
        decision = decision_of(row)
        text = f"{row['time'].isoformat(' ', 'seconds')}  row {key}\n{explain(decision)}"
        now = ""
        policy = self._access.snapshot.policy
        if decision.asked is not None and policy is not None:
            ruling = rule_on(decision.asked, row["time"], policy)
            now = f"{outcome_text(ruling)}: {ruling.evidence}"
            text += f"\nnow   policy revision {policy.revision} would say to the same login: {now}"
        return {**as_json(row), "policy_now": now, "text": text}

    async def impact(self, text: str, days: int) -> dict[str, Any]:
        """What a draft would change in the logins of the last days; raises the policy's refusals, NotFound."""
        draft, current = read_policy(text), self._access.snapshot.policy
        if current is None:
            raise NotFound("no access policy is published yet, so there is nothing to compare with")
        if not 1 <= days <= MAX_DAYS:
            raise RequestMalformed(f"days are 1 to {MAX_DAYS}")
        await self._access.flush()
        since = self._clock.now() - timedelta(days=days)
        replay, unjudged = Replay(current, draft), 0
        after = await self._store.read(lambda tx: decisions.first_since(tx, since))
        while True:
            rows = await self._store.read(lambda tx: decisions.page(tx, after=after, since=since, count=PAGE))  # noqa: B023
            for row in rows:
                asked = asked_of(row)
                if asked is None:
                    unjudged += 1
                else:
                    replay.add(Past(row["time"], asked, row["agent_id"] or "", row["owner_id"] or "", row["mac"] or ""))
            if len(rows) < PAGE:
                break
            after = rows[-1]["id"]
            await asyncio.sleep(0)  # logins are decided in between
        return _report(replay, unjudged, current.revision, days)

    def _owner_hint(self, certificate: x509.Certificate) -> str | None:
        try:
            found = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(self._owner_id_oid))
        except x509.ExtensionNotFound:
            return None
        except ValueError as cause:
            raise RequestMalformed("the certificate's extensions cannot be read") from cause
        value = found.value
        return read_owner_id(value.value) if isinstance(value, x509.UnrecognizedExtension) else None


def _report(replay: Replay, unjudged: int, revision: int, days: int) -> dict[str, Any]:
    transitions = [
        {"from": before, "to": after, "logins": count}
        for (before, after), count in sorted(replay.transitions.items(), key=lambda one: -one[1])
    ]
    return {
        "days": days,
        "compared_with_revision": revision,
        "logins": replay.logins,
        "logins_without_policy": unjudged,
        "logins_changed": replay.changed_logins,
        "agents_changed": replay.changed_agents,
        "is_complete": replay.is_complete,
        "transitions": transitions,
        "changes": [
            {
                "who": one.who,
                "owner": one.owner_id,
                "from": one.before,
                "to": one.after,
                "logins": one.logins,
                "last": one.last.time.isoformat(timespec="seconds"),
                "nas": one.last.asked.nas,
                "why": one.why,
            }
            for one in replay.changes
        ],
    }


def _san_text(certificate: x509.Certificate) -> str | None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    return ", ".join(f"URI:{uri}" for uri in names.get_values_for_type(x509.UniformResourceIdentifier)) or None


def outcome(decision: Decision) -> dict[str, Any]:
    """A decision as JSON: the same object that the log keeps, with its text for people."""
    return {
        "verdict": decision.verdict,
        "vlan": decision.vlan,
        "vlan_name": decision.vlan_name,
        "role": decision.role,
        "filter_id": decision.filter_id,
        "session_timeout": decision.session_timeout,
        "reason_code": decision.reason_code,
        "reason": decision.reason,
        "rule": decision.rule,
        "agent": decision.agent_id,
        "owner": decision.owner_id,
        "department": decision.department,
        "policy_revision": decision.policy_revision,
        "steps": [step._asdict() for step in decision.steps],
        "hint": decision.hint,
        "text": explain(decision),
    }
