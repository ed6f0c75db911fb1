"""explain: a Decision as text for people; what `appliance policy explain` and the decision log's detail view print."""

from __future__ import annotations

from radius.decision import Decision
from radius.reasons import REASONS

_MARKS = {"pass": "ok", "fail": "NO", "not-reached": "-"}


def explain(decision: Decision) -> str:
    """The verdict, the four stages with their evidence, the reason in words, and what to type next."""
    head: str = decision.verdict
    if decision.vlan is not None:
        head += f"  VLAN {decision.vlan} ({decision.vlan_name})"
    if decision.rule:
        head += f"  by rule {decision.rule}"
    head += f"  role {decision.role}" if decision.role else ""
    head += f"  Filter-Id {decision.filter_id}" if decision.filter_id else ""
    head += f"  asked again within {decision.session_timeout} s" if decision.session_timeout is not None else ""
    head += f"  policy revision {decision.policy_revision}" if decision.policy_revision else ""
    lines = [head]
    lines += [f"  {step.stage:<10}  {_MARKS[step.outcome]:<2}  {step.evidence}".rstrip() for step in decision.steps]
    row = REASONS[decision.reason_code]
    lines.append(f"why   {row.code}: {row.meaning}")
    if decision.verdict != "accept":
        lines.append(f"cause {row.likely_cause}")
    lines.append(f"next  {decision.hint}")
    return "\n".join(lines)
