"""MAC authentication bypass: a device that cannot speak 802.1X yet gets the onboarding VLAN, or nothing.

A MAC address proves nothing, so it never opens another VLAN, and no list of addresses is kept. It is off unless the
policy has [mac_bypass]. An Accept without EAP need not carry a Message-Authenticator (FreeRADIUS 3.2.1 sends none), so
that it can be forged on the way (CVE-2024-3596): only requests that came over loopback or RadSec are answered.
"""

from __future__ import annotations

import re
from typing import Final

from radius.decision import Decision, Facts, Step, hint, refuse
from radius.policy import Policy
from radius.reasons import STAGES
from radius.request import AccessRequest, clean_text

SAFE_TRANSPORTS: Final = ("loopback", "radsec")
_MAC: Final = re.compile(r"([0-9A-Fa-f]{2})[-:.]?" * 5 + r"([0-9A-Fa-f]{2})\Z")


def canonical_mac(text: str) -> str:
    """A MAC address as `02-00-00-00-00-01`, the form of RFC 3580, section 3.20; empty if the text is none."""
    found = _MAC.match(text)
    return "-".join(found.groups()).upper() if found else ""


def decide_bypass(request: AccessRequest, facts: Facts, policy: Policy | None) -> Decision:
    """The decision for a request without EAP that asks by MAC address alone."""
    revision = 0 if policy is None else policy.revision
    bypass = None if policy is None else policy.mac_bypass
    if policy is None or bypass is None:
        return refuse(request, "mac-bypass-off", "the policy has no [mac_bypass]", revision=revision)
    if request.transport not in SAFE_TRANSPORTS:
        came = clean_text(request.transport) or "an unknown transport"
        return refuse(request, "mac-bypass-unprotected", f"the request came over {came}", revision=revision)
    mac = canonical_mac(request.calling_station)
    if not mac:
        return refuse(request, "mac-bypass-no-address", "Calling-Station-Id is not a MAC address", revision=revision)
    if not facts.snapshot_age_seconds <= facts.stale_after_seconds and policy.stale == "reject":
        age = facts.snapshot_age_seconds
        return refuse(request, "mac-bypass-stale", f"snapshot {age:.0f} s old, site rule reject", revision=revision)
    vlan = policy.vlan_at(facts.site, bypass.vlan)
    steps = [Step(stage, "not-reached", "") for stage in STAGES]
    steps[0] = Step("tls", "not-reached", f"no certificate: MAC address {mac} over {request.transport}")
    steps[3] = Step("policy", "pass", f"mac_bypass: VLAN {bypass.vlan} ({vlan})")
    tls, held, owned, ruled = steps
    code = "mac-bypass"
    return Decision(
        "guest", vlan, bypass.vlan, code, "", (tls, held, owned, ruled), hint(code, request, "", ""), revision, request,
        session_timeout=bypass.session_timeout,
    )  # fmt: skip
