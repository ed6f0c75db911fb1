"""decide: may this login pass, into which VLAN, and why. One function for FreeRADIUS, embedded server and simulator.

It is total: whatever the four arguments hold, a Decision comes back. It reads no clock, store or directory. Four stages
are asked in order (tls, credential, owner, policy); the first that says no ends it, and every Decision shows all four.
Defaults (design decision D-9): anything unproven is a reject; an active owner without a department, or with one that no
rule takes, is the policy's `unmapped` answer; a stale snapshot is the policy's `stale` answer and never a department's
VLAN, while facts that already say no still say no. Single-identity credentials and proxies' LDevIDs pass only where a
rule names them, and the CA that issued a certificate must be the one for its kind.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from radius.bypass import decide_bypass
from radius.decision import (
    Credential,
    Decision,
    Facts,
    Outcome,
    OwnerFact,
    Step,
    Verdict,
    departments_of,
    hint,
    names_of,
    refusal,
    refuse,
)
from radius.policy import Policy
from radius.reasons import REASONS
from radius.request import MAC_BYPASS, AccessRequest, clean_text
from radius.rules import Asked, ssid_of
from radius.ruling import Ruling, guest, rule_on

__all__ = ["Credential", "Decision", "Facts", "Outcome", "OwnerFact", "Step", "Verdict", "decide", "refuse"]

AGENTS_ROLE: Final = "agents"
# kind of the row -> (what rules call it, the CA that issues it)
_KINDS: Final = {"dual": ("dual", AGENTS_ROLE), "single": ("single", AGENTS_ROLE), "ldevid": ("proxy", "devices")}
_PROXIES: Final = "/proxy/"


def decide(request: AccessRequest, credential: Credential | None, facts: Facts, policy: Policy | None) -> Decision:
    """The decision for one login; `credential` is the store's row for `request.credential`, None when it has none."""
    if request.method == MAC_BYPASS:
        return decide_bypass(request, facts, policy)
    ref = request.credential
    revision = 0 if policy is None else policy.revision
    if ref is None or request.defect:
        return refuse(request, _known_defect(request.defect), revision=revision)
    version = request.tls_version or "of unknown version"
    passed = [Step("tls", "pass", f"TLS {version}, serial {ref.serial:x}, issuer key {ref.aki}")]
    if credential is None:
        if facts.issuer_role not in ("", AGENTS_ROLE):
            evidence = f"issued by the {clean_text(facts.issuer_role)} CA"
            return refusal(request, passed, "credential-not-agent", evidence, revision)
        return refusal(request, passed, "credential-unknown", "no such row", revision)
    code, evidence = _judge_credential(request, credential, facts, policy)
    if code:
        return refusal(request, passed, code, evidence, revision, credential)
    passed.append(Step("credential", "pass", evidence))
    kind = _KINDS[credential.kind][0]
    owner = facts.owner if kind == "dual" else None
    code, evidence = _judge_owner(credential, owner, kind, policy)
    if code:
        return refusal(request, passed, code, evidence, revision, credential, owner)
    passed.append(Step("owner", "pass", evidence))
    if policy is None:
        return refusal(request, passed, "policy-missing", "no policy", revision, credential, owner)
    asked = Asked(
        kind,
        "" if owner is None else owner.kind,
        () if owner is None else owner.departments,
        "" if kind == "proxy" else facts.agent_class,
        credential.tier,
        credential.model,
        request.nas,
        request.nas_port,
        ssid_of(request.called_station) if policy.looks_at_ssid else "",
        facts.site,
    )
    if facts.snapshot_age_seconds <= facts.stale_after_seconds:  # NaN counts as stale
        ruling = rule_on(asked, facts.now, policy)
    else:
        ruling = _stale(asked, facts, policy)
    if ruling.verdict == "reject":
        return refusal(request, passed, ruling.code, ruling.evidence, revision, credential, owner,
                       rule=ruling.rule, note=ruling.note, asked=asked)  # fmt: skip
    passed.append(Step("policy", "pass", ruling.evidence))
    agent_id, owner_id, txn = names_of(credential)
    tls, held, owned, ruled = passed
    return Decision(
        ruling.verdict,
        ruling.vlan,
        ruling.vlan_name,
        ruling.code,
        ruling.rule,
        (tls, held, owned, ruled),
        hint(ruling.code, request, agent_id, owner_id),
        revision,
        request,
        agent_id,
        owner_id,
        departments_of(owner),
        txn,
        ruling.role,
        ruling.filter_id,
        None if policy.version == 1 else _life(ruling.session_timeout, credential.not_after, facts.now),
        "",
        asked,
        facts.generation,
    )


def _known_defect(defect: str) -> str:
    row = REASONS.get(defect or "credential-missing")
    return row.code if row is not None and row.stage == "tls" else "credential-unreadable"


def _judge_credential(
    request: AccessRequest, credential: Credential, facts: Facts, policy: Policy | None
) -> tuple[str, str]:
    """(reason code or empty, evidence)."""
    kind, role = _KINDS.get(credential.kind, ("", ""))
    if not kind:
        return "credential-not-agent", f"kind {clean_text(credential.kind)}"
    if credential.issuer_role != role:
        return "credential-not-agent", f"issued by the {clean_text(credential.issuer_role)} CA"
    if kind == "proxy":
        if policy is None or not policy.takes(kind):
            return "credential-not-agent", "a proxy's LDevID, and no rule takes proxies"
        if _PROXIES not in credential.agent_id:
            return "credential-not-agent", f"{clean_text(credential.agent_id)} is not a proxy's identifier"
    if credential.state != "issued":
        code = {"pending": "credential-pending", "revoked": "credential-revoked"}.get(
            credential.state, "credential-unknown"
        )
        return code, f"state {clean_text(credential.state)}"
    if facts.now < credential.not_before:
        return "credential-not-yet-valid", f"valid from {_seconds(credential.not_before)}"
    if facts.now > credential.not_after:
        return "credential-expired", f"valid until {_seconds(credential.not_after)}"
    ref = request.credential
    if ref is None or ref.serial != credential.serial:
        return "credential-mismatch", "serial number of the row differs"
    if request.owner_id_hint is not None and request.owner_id_hint != credential.owner_id:
        return "credential-mismatch", f"owner in the certificate is {clean_text(request.owner_id_hint)}"
    if request.san is not None and request.san != f"URI:{credential.agent_id}":
        return "credential-mismatch", f"name in the certificate is {clean_text(request.san)}"
    if kind == "proxy":
        code = {"revoked": "credential-revoked", "suspended": "proxy-suspended"}.get(facts.agent_state, "")
        if code:
            return code, f"proxy {credential.agent_id} is {facts.agent_state}"
    elif facts.agent_state != "registered":
        code = {"revoked": "agent-revoked", "suspended": "agent-suspended"}.get(
            facts.agent_state, "agent-not-registered"
        )
        return code, f"agent {credential.agent_id} is {clean_text(facts.agent_state)}"
    what = "LDevID" if kind == "proxy" else f"{credential.kind} credential"
    return "", f"{what} of {credential.agent_id}, valid until {_seconds(credential.not_after)}"


def _judge_owner(credential: Credential, owner: OwnerFact | None, kind: str, policy: Policy | None) -> tuple[str, str]:
    """(reason code or empty, evidence). A single-identity credential never stands for "any owner"."""
    if kind == "proxy":
        return "", "a proxy has no owner"
    if kind != "dual" or not credential.owner_id:
        if kind == "single" and policy is not None and policy.takes(kind):
            return "", "no owner: single-identity credential"
        return "owner-absent", "single-identity credential"
    if owner is None or owner.identifier != credential.owner_id:
        return "owner-unknown", f"owner {credential.owner_id} is not in the snapshot"
    if owner.state != "active":
        code = {"suspended": "owner-suspended", "revoked": "owner-revoked"}.get(owner.state, "owner-not-active")
        return code, f"owner {owner.identifier} is {clean_text(owner.state)}"
    return "", f"{owner.identifier}, {owner.kind}, active, department {departments_of(owner) or '(none)'}"


def _stale(asked: Asked, facts: Facts, policy: Policy) -> Ruling:
    """The site's rule for a snapshot that is too old: never a rule's VLAN, and without an owner nothing."""
    age, limit = facts.snapshot_age_seconds, facts.stale_after_seconds
    text = f"snapshot {age:.0f} s old, limit {limit:.0f} s, site rule {policy.stale}"
    if policy.stale == "reject" or asked.credential != "dual":
        return Ruling("reject", None, "", "snapshot-stale", text)
    return guest(asked.site, "snapshot-stale", text, policy)


def _life(wanted: int | None, not_after: datetime, now: datetime) -> int:
    """Seconds until the port must ask again: never past the end of the certificate."""
    left = max(1, min(int((not_after - now).total_seconds()), 0xFFFF_FFFF))
    return left if wanted is None else min(wanted, left)


def _seconds(time: datetime) -> str:
    return f"{time.isoformat(' ', 'seconds')[:19]}Z"
