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
from radius.rules import Asked, ssid_of
from radius.ruling import MAC, rule_on

SAFE_TRANSPORTS: Final = ("loopback", "radsec")
_MAC: Final = re.compile(r"([0-9A-Fa-f]{2})[-:.]?" * 5 + r"([0-9A-Fa-f]{2})\Z")


def canonical_mac(text: str) -> str:
    """A MAC address as `02-00-00-00-00-01`, the form of RFC 3580, section 3.20; empty if the text is none."""
    found = _MAC.match(text)
    return "-".join(found.groups()).upper() if found else ""


def decide_bypass(request: AccessRequest, facts: Facts, policy: Policy | None) -> Decision:
    """The decision for a request without EAP that asks by MAC address alone."""
    revision = 0 if policy is None else policy.revision
    if policy is None:
        return refuse(request, "mac-bypass-off", "no policy", revision=revision)
    site, ssid = facts.site, ssid_of(request.called_station)
    asked = Asked(MAC, nas=request.nas, port=request.nas_port, ssid=ssid, site=site)
    ruling = rule_on(asked, facts.now, policy)
    mac = canonical_mac(request.calling_station)
    if ruling.verdict == "reject":
        code, evidence = ruling.code, ruling.evidence
    elif request.transport not in SAFE_TRANSPORTS:
        came = clean_text(request.transport) or "an unknown transport"
        code, evidence = "mac-bypass-unprotected", f"the request came over {came}"
    elif not mac:
        code, evidence = "mac-bypass-no-address", "Calling-Station-Id is not a MAC address"
    elif not facts.snapshot_age_seconds <= facts.stale_after_seconds and policy.stale == "reject":
        code, evidence = "mac-bypass-stale", f"snapshot {facts.snapshot_age_seconds:.0f} s old, site rule reject"
    else:
        code, evidence = "", ""
    if code:
        refused = refuse(request, code, evidence, revision=revision)
        return refused._replace(asked=asked) if code == ruling.code else refused
    steps = [Step(stage, "not-reached", "") for stage in STAGES]
    steps[0] = Step("tls", "not-reached", f"no certificate: MAC address {mac} over {request.transport}")
    steps[3] = Step("policy", "pass", ruling.evidence)
    tls, held, owned, ruled = steps
    return Decision(
        ruling.verdict, ruling.vlan, ruling.vlan_name, ruling.code, "", (tls, held, owned, ruled),
        hint(ruling.code, request, "", ""), revision, request,
        session_timeout=ruling.session_timeout, asked=asked, generation=facts.generation,
    )  # fmt: skip
