"""What is allowed in a policy and yet probably a mistake: one line each, for whoever is about to publish it."""

from __future__ import annotations

from collections.abc import Collection

from radius.policy import Policy
from radius.rules import canonical_department


def warnings_of(
    policy: Policy,
    *,
    departments: Collection[str] | None = None,
    nas: Collection[str] | None = None,
    sites: Collection[str] | None = None,
) -> list[str]:
    """Warnings about a policy; the collections are what exists today, None where nobody knows."""
    found = [f"rule {name}: too many conditions before it to say whether it can match" for name in policy.unchecked]
    used = {policy.guest_vlan, *(rule.vlan for rule in policy.rules)}
    used |= {policy.mac_bypass.vlan} if policy.mac_bypass is not None else set()
    found += [f"VLAN {name} is used by no rule" for name in policy.vlans if name not in used]
    for rule in policy.rules:
        others = [one for one in rule.credentials if one != "dual"]
        if others and (rule.departments or rule.owner_kinds):
            found.append(
                f"rule {rule.name}: {' and '.join(others)} credentials have no owner, so its department or owner kind "
                "leaves them out"
            )
    if departments is not None:
        known = {canonical_department(one) for one in departments}
        for rule in policy.rules:
            found += [
                f"rule {rule.name}: no owner is in department {one!r}"
                for one in rule.departments
                if canonical_department(one) not in known
            ]
    if nas is not None:
        for rule in policy.rules:
            found += [f"rule {rule.name}: there is no NAS {one!r}" for one in rule.nas if not _is_among(one, nas)]
    if sites is not None:
        found += [f"sites.{one}: no NAS is at this site" for one in policy.sites if one not in sites]
        for rule in policy.rules:
            found += [f"rule {rule.name}: no NAS is at site {one!r}" for one in rule.sites if one not in sites]
    return found


def _is_among(pattern: str, names: Collection[str]) -> bool:
    return pattern in names or (pattern.endswith("*") and any(one.startswith(pattern[:-1]) for one in names))
