"""decide: may this login pass, into which VLAN, and why. One function for FreeRADIUS, embedded server and simulator.

It is total: whatever the four arguments hold, a Decision comes back. It reads no clock, store or directory. Four stages
are asked in order (tls, credential, owner, policy); the first that says no ends it, and every Decision shows all four.
Defaults (design decision D-9): anything unproven is a reject; an active owner without a department, or with one that no
rule takes, is the policy's `unmapped` answer; a stale snapshot is the policy's `stale` answer and never a department's
VLAN, while facts that already say no still say no.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple

from radius.policy import Policy, Rule
from radius.reasons import REASONS, STAGES, Stage, next_command
from radius.request import AccessRequest, clean_text

Verdict = Literal["accept", "guest", "reject"]
Outcome = Literal["pass", "fail", "not-reached"]
AGENTS_ROLE: Final = "agents"


@dataclass(frozen=True, slots=True)
class Credential:
    """What the store says about the certificate that the request names.

    `kind` is `dual`, `single`, `ldevid` or another profile; `issuer_role` the CA that issued it; `state` is `issued`,
    `pending` or `revoked`; `model` the issuance model; `txn` the transaction that issued it.
    """

    kind: str
    agent_id: str
    owner_id: str | None
    serial: int
    issuer_role: str
    state: str
    not_before: datetime
    not_after: datetime
    model: str = ""
    txn: str = ""


@dataclass(frozen=True, slots=True)
class OwnerFact:
    """What the directory says about an owner now: `state` is `active`, `suspended` or `revoked`."""

    identifier: str
    state: str
    departments: tuple[str, ...] = ()
    kind: str = "person"


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything else a decision rests on; `now` and the credential's times are aware, ages are in seconds.

    `issuer_role` is that of the CA whose key the login names, empty for a key that is none of ours.
    """

    now: datetime
    owner: OwnerFact | None = None
    agent_state: str = "registered"
    issuer_role: str = ""
    snapshot_age_seconds: float = 0.0
    stale_after_seconds: float = 30.0


class Step(NamedTuple):
    """One stage of a decision: what came out, and the facts it rests on in one line."""

    stage: Stage
    outcome: Outcome
    evidence: str


class Decision(NamedTuple):
    """The answer to a login with its reason chain; log, reply message, CLI and API all print this object.

    `vlan` is None exactly when `verdict` is `reject`. `rule` is the policy rule's name or empty. `steps` holds the four
    stages in order. `hint` is the command an administrator types next. A named tuple: one is made per login.
    """

    verdict: Verdict
    vlan: int | None
    vlan_name: str
    reason_code: str
    rule: str
    steps: tuple[Step, Step, Step, Step]
    hint: str
    policy_revision: int
    request: AccessRequest
    agent_id: str = ""
    owner_id: str = ""
    department: str = ""
    txn: str = ""

    @property
    def reason(self) -> str:
        """The catalogue's sentence for the reason code."""
        return REASONS[self.reason_code].meaning


_NOT_REACHED: Final[dict[Stage, Step]] = {stage: Step(stage, "not-reached", "") for stage in STAGES}


def decide(request: AccessRequest, credential: Credential | None, facts: Facts, policy: Policy | None) -> Decision:
    """The decision for one login; `credential` is the store's row for `request.credential`, None when it has none."""
    ref = request.credential
    revision = 0 if policy is None else policy.revision
    if ref is None or request.defect:
        return refuse(request, _known_defect(request.defect), revision=revision)
    version = request.tls_version or "of unknown version"
    passed = [Step("tls", "pass", f"TLS {version}, serial {ref.serial:x}, issuer key {ref.aki}")]
    if credential is None:
        if facts.issuer_role not in ("", AGENTS_ROLE):
            evidence = f"issued by the {clean_text(facts.issuer_role)} CA"
            return _no(request, passed, "credential-not-agent", evidence, revision)
        return _no(request, passed, "credential-unknown", "no such row", revision)
    code, evidence = _judge_credential(request, credential, facts)
    if code:
        return _no(request, passed, code, evidence, revision, credential)
    passed.append(Step("credential", "pass", evidence))
    owner = facts.owner
    code, evidence = _judge_owner(credential, owner)
    if code or owner is None:
        return _no(request, passed, code or "owner-unknown", evidence, revision, credential, owner)
    passed.append(Step("owner", "pass", evidence))
    if policy is None:
        return _no(request, passed, "policy-missing", "no policy", revision, credential, owner)
    if not facts.snapshot_age_seconds <= facts.stale_after_seconds:  # so that NaN counts as stale
        age, limit = facts.snapshot_age_seconds, facts.stale_after_seconds
        text = f"snapshot {age:.0f} s old, limit {limit:.0f} s, site rule {policy.stale}"
        if policy.stale == "reject":
            return _no(request, passed, "snapshot-stale", text, revision, credential, owner)
        return _yes(request, passed, "snapshot-stale", text, policy, None, credential, owner)
    rule = policy.match(owner.departments, owner.kind, credential.model)
    if rule is not None:
        text = f"rule {rule.name}: VLAN {rule.vlan} ({rule.vlan_id})"
        return _yes(request, passed, "rule-matched", text, policy, rule, credential, owner)
    has_department = any(department.strip() for department in owner.departments)
    code = "department-unmapped" if has_department else "department-missing"
    text = f"no rule matches, site rule {policy.unmapped}"
    if policy.unmapped == "reject":
        return _no(request, passed, code, text, revision, credential, owner)
    return _yes(request, passed, code, text, policy, None, credential, owner)


def refuse(request: AccessRequest, code: str, detail: str = "", *, revision: int = 0) -> Decision:
    """The reject for a login that failed before the credential could be looked up (a `tls` reason code)."""
    return _no(request, [], code, detail or REASONS[code].meaning, revision)


def _known_defect(defect: str) -> str:
    row = REASONS.get(defect or "credential-missing")
    return row.code if row is not None and row.stage == "tls" else "credential-unreadable"


def _judge_credential(request: AccessRequest, credential: Credential, facts: Facts) -> tuple[str, str]:
    """(reason code or empty, evidence)."""
    if credential.kind not in ("dual", "single"):
        return "credential-not-agent", f"kind {clean_text(credential.kind)}"
    if credential.issuer_role != AGENTS_ROLE:
        return "credential-not-agent", f"issued by the {clean_text(credential.issuer_role)} CA"
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
    if facts.agent_state != "registered":
        code = "agent-revoked" if facts.agent_state == "revoked" else "agent-not-registered"
        return code, f"agent {credential.agent_id} is {clean_text(facts.agent_state)}"
    return (
        "",
        f"{credential.kind} credential of {credential.agent_id}, valid until {_seconds(credential.not_after)}",
    )


def _judge_owner(credential: Credential, owner: OwnerFact | None) -> tuple[str, str]:
    """(reason code or empty, evidence). A single-identity credential never stands for "any owner"."""
    if credential.kind != "dual" or not credential.owner_id:
        return "owner-absent", "single-identity credential"
    if owner is None or owner.identifier != credential.owner_id:
        return "owner-unknown", f"owner {credential.owner_id} is not in the snapshot"
    if owner.state != "active":
        code = {"suspended": "owner-suspended", "revoked": "owner-revoked"}.get(owner.state, "owner-not-active")
        return code, f"owner {owner.identifier} is {clean_text(owner.state)}"
    return "", f"{owner.identifier}, {owner.kind}, active, department {_department(owner) or '(none)'}"


def _seconds(time: datetime) -> str:
    return f"{time.isoformat(' ', 'seconds')[:19]}Z"


def _department(owner: OwnerFact | None) -> str:
    if owner is None or not owner.departments:
        return ""
    return clean_text(owner.departments[0] if len(owner.departments) == 1 else ", ".join(owner.departments))


def _no(
    request: AccessRequest,
    passed: list[Step],
    code: str,
    evidence: str,
    revision: int,
    credential: Credential | None = None,
    owner: OwnerFact | None = None,
) -> Decision:
    at = len(passed)
    steps = [*passed, Step(STAGES[at], "fail", evidence), *(_NOT_REACHED[stage] for stage in STAGES[at + 1 :])]
    return _decision("reject", None, "", code, "", steps, revision, request, credential, owner)


def _yes(
    request: AccessRequest,
    passed: list[Step],
    code: str,
    evidence: str,
    policy: Policy,
    rule: Rule | None,
    credential: Credential,
    owner: OwnerFact,
) -> Decision:
    vlan_name = policy.guest_vlan if rule is None else rule.vlan
    verdict: Verdict = "guest" if vlan_name == policy.guest_vlan else "accept"
    steps = [*passed, Step("policy", "pass", evidence)]
    name = "" if rule is None else rule.name
    return _decision(
        verdict, policy.vlans[vlan_name], vlan_name, code, name, steps, policy.revision, request, credential, owner
    )


def _decision(
    verdict: Verdict,
    vlan: int | None,
    vlan_name: str,
    code: str,
    rule: str,
    steps: list[Step],
    revision: int,
    request: AccessRequest,
    credential: Credential | None,
    owner: OwnerFact | None,
) -> Decision:
    agent_id = "" if credential is None else credential.agent_id
    owner_id = "" if credential is None else credential.owner_id or ""
    serial = "" if request.credential is None else f"{request.credential.serial:x}"
    tls, held, owned, ruled = steps
    return Decision(
        verdict,
        vlan,
        vlan_name,
        code,
        rule,
        (tls, held, owned, ruled),
        next_command(code, agent=agent_id, owner=owner_id, serial=serial, nas=request.nas),
        revision,
        request,
        agent_id,
        owner_id,
        _department(owner),
        "" if credential is None else credential.txn,
    )
