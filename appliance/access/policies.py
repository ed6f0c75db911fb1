"""Policy as data: validate, publish, show, explain. Publishing is an administrator's act and audited."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from cryptography import x509

from appliance.access.service import AccessService
from appliance.audit import Actor, AuditEvent, append
from appliance.errors import NotFound, RequestMalformed
from appliance.store import policies
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est.chains import aki_of
from radius import AccessRequest, CredentialRef, Decision, explain, read_policy
from radius.request import read_owner_id


class PolicyService:
    """The access policy's revisions, and what they would decide."""

    def __init__(self, store: Store, access: AccessService, *, owner_id_oid: str) -> None:
        self._store = store
        self._access = access
        self._owner_id_oid = owner_id_oid

    def validate(self, text: str) -> dict[str, Any]:
        """What publish() would read; raises the policy's own refusal, which names the place."""
        policy = read_policy(text)
        return {
            "ok": True,
            "rules": len(policy.rules),
            "vlans": dict(policy.vlans),
            "sha256": sha256(text.encode()).hexdigest(),
        }

    async def publish(self, text: str, comment: str, actor: Actor) -> dict[str, Any]:
        """Put a policy in force as the next revision; the next decision uses it."""
        read_policy(text)
        digest = sha256(text.encode()).hexdigest()

        def store(tx: Tx) -> int:
            revision = policies.publish(tx, text, comment)
            fields = {"sha256": digest, "comment": comment}
            append(tx, AuditEvent("policy-published", actor, object=str(revision), fields=fields))
            return revision

        return {"revision": await self._store.write(store), "sha256": digest}

    async def show(self) -> dict[str, Any]:
        """The revision in force; raises NotFound before the first one."""
        row = await self._store.read(policies.newest)
        if row is None:
            raise NotFound("no access policy is published yet: appliance policy publish FILE")
        return {
            "revision": row.revision,
            "published_at": row.published_at.isoformat(),
            "comment": row.comment,
            "sha256": row.sha256,
            "text": row.text,
        }

    def explain_certificate(self, certificate: x509.Certificate, *, nas: str = "") -> Decision:
        """What the holder of a certificate would get now."""
        aki = aki_of(certificate)
        ref = None if aki is None else CredentialRef(aki.hex(), certificate.serial_number)
        return self._access.simulate(
            AccessRequest(
                nas=nas,
                credential=ref,
                owner_id_hint=self._owner_hint(certificate),
                san=_san_text(certificate),
                defect="" if ref else "credential-missing",
            )
        )

    def explain_serial(self, aki: str, serial: int, *, nas: str = "") -> Decision:
        """What the credential of this issuer key (hex) and serial number would get now."""
        return self._access.simulate(AccessRequest(nas=nas, credential=CredentialRef(aki, serial)))

    def _owner_hint(self, certificate: x509.Certificate) -> str | None:
        try:
            found = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(self._owner_id_oid))
        except x509.ExtensionNotFound:
            return None
        except ValueError as cause:
            raise RequestMalformed("the certificate's extensions cannot be read") from cause
        value = found.value
        return read_owner_id(value.value) if isinstance(value, x509.UnrecognizedExtension) else None


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
