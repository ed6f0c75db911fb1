"""What the policy says about one login, given everything that a rule may look at.

decide() asks this last; replaying past logins against a draft (radius.impact) asks it alone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from radius.decision import Verdict
from radius.policy import Policy
from radius.rules import Asked

MAC: Final = "mac"  # Asked.credential of a port that asks by MAC address; no rule can name it


class Ruling(NamedTuple):
    """The policy stage's answer; `vlan` is None exactly when `verdict` is reject."""

    verdict: Verdict
    vlan: int | str | None
    vlan_name: str
    code: str
    evidence: str
    rule: str = ""
    role: str = ""
    filter_id: str = ""
    session_timeout: int | None = None
    note: str = ""


def rule_on(asked: Asked, now: datetime, policy: Policy) -> Ruling:
    """The first rule that takes the login, else the policy's `unmapped` answer; without an owner, else a reject."""
    if asked.credential == MAC:
        return _bypass(asked.site, policy)
    rule = policy.match(asked, now)
    if rule is None:
        return _unmapped(asked, policy)
    if rule.reject:
        return Ruling("reject", None, "", "rule-rejected", f"rule {rule.name}: {rule.reject}", rule.name,
                      note=rule.reject)  # fmt: skip
    vlan = policy.vlan_at(asked.site, rule.vlan)
    verdict: Verdict = "guest" if rule.vlan == policy.guest_vlan else "accept"
    return Ruling(
        verdict, vlan, rule.vlan, "rule-matched", f"rule {rule.name}: VLAN {rule.vlan} ({vlan})", rule.name,
        rule.role, rule.filter_id, rule.session_timeout,
    )  # fmt: skip


def _unmapped(asked: Asked, policy: Policy) -> Ruling:
    if asked.credential != "dual":
        return Ruling("reject", None, "", "credential-unmapped", f"no rule takes this {asked.credential} credential")
    has_department = any(department.strip() for department in asked.departments)
    code = "department-unmapped" if has_department else "department-missing"
    evidence = f"no rule matches, site rule {policy.unmapped}"
    if policy.unmapped == "reject":
        return Ruling("reject", None, "", code, evidence)
    return guest(asked.site, code, evidence, policy)


def _bypass(site: str, policy: Policy) -> Ruling:
    bypass = policy.mac_bypass
    if bypass is None:
        return Ruling("reject", None, "", "mac-bypass-off", "the policy has no [mac_bypass]")
    vlan = policy.vlan_at(site, bypass.vlan)
    return Ruling("guest", vlan, bypass.vlan, "mac-bypass", f"mac_bypass: VLAN {bypass.vlan} ({vlan})",
                  session_timeout=bypass.session_timeout)  # fmt: skip


def guest(site: str, code: str, evidence: str, policy: Policy) -> Ruling:
    """The guest VLAN, for the reason given."""
    return Ruling("guest", policy.vlan_at(site, policy.guest_vlan), policy.guest_vlan, code, evidence)
