from __future__ import annotations

import pytest

from radius import AccessRequest, CredentialRef, Facts, decide, explain, read_policy, to_attributes
from radius.bypass import canonical_mac
from tests.radius.world import POLICY
from tests.support import NOW

BYPASS = """
version = 2
[vlans]
onboarding = 70
guest = 99
[sites.north.vlans]
onboarding = "onboard"
[mac_bypass]
vlan = "onboarding"
"""
REQUEST = AccessRequest(nas="switch-1", calling_station="02-00-00-00-00-01", method="mac-bypass", transport="loopback")
FACTS = Facts(NOW)


def test_a_device_without_802_1x_gets_the_onboarding_vlan_and_no_name() -> None:
    decision = decide(REQUEST, None, FACTS, read_policy(BYPASS, revision=2))
    assert (decision.verdict, decision.vlan, decision.vlan_name) == ("guest", 70, "onboarding")
    assert (decision.reason_code, decision.agent_id, decision.rule, decision.policy_revision) == (
        "mac-bypass",
        "",
        "",
        2,
    )
    assert "02-00-00-00-00-01 over loopback" in decision.steps[0].evidence
    assert [one.name for one in to_attributes(decision, reply_message=False)] == [
        "Tunnel-Type", "Tunnel-Medium-Type", "Tunnel-Private-Group-Id",
    ]  # fmt: skip
    assert "onboarding" in explain(decision)


def test_the_onboarding_vlan_is_the_sites() -> None:
    decision = decide(REQUEST._replace(transport="radsec"), None, FACTS._replace(site="north"), read_policy(BYPASS))
    assert decision.vlan == "onboard"


@pytest.mark.parametrize(
    ("request_", "policy", "code"),
    [
        (REQUEST, None, "mac-bypass-off"),
        (REQUEST, POLICY, "mac-bypass-off"),
        (REQUEST, BYPASS.partition("[mac_bypass]")[0], "mac-bypass-off"),
        (REQUEST._replace(transport="udp"), BYPASS, "mac-bypass-unprotected"),
        (REQUEST._replace(transport=""), BYPASS, "mac-bypass-unprotected"),
        (REQUEST._replace(transport="RADSEC"), BYPASS, "mac-bypass-unprotected"),
        (REQUEST._replace(calling_station=""), BYPASS, "mac-bypass-no-address"),
        (REQUEST._replace(calling_station="ceo"), BYPASS, "mac-bypass-no-address"),
    ],
)
def test_what_may_not_pass_by_its_address_is_rejected(request_: AccessRequest, policy: str | None, code: str) -> None:
    decision = decide(request_, None, FACTS, None if policy is None else read_policy(policy))
    assert (decision.verdict, decision.vlan, decision.reason_code) == ("reject", None, code)


def test_a_stale_snapshot_follows_the_sites_rule() -> None:
    old = FACTS._replace(snapshot_age_seconds=31.0)
    assert decide(REQUEST, None, old, read_policy(BYPASS)).reason_code == "mac-bypass-stale"
    lenient = read_policy(BYPASS + "[defaults]\nstale = 'guest'\n")
    assert decide(REQUEST, None, old, lenient).vlan == 70  # never another one


def test_a_certificate_in_the_request_changes_nothing() -> None:
    named = REQUEST._replace(credential=CredentialRef("77c1", 7), user_name="spiffe://campus.example/agent/1")
    assert decide(named, None, FACTS, read_policy(BYPASS))[:6] == decide(REQUEST, None, FACTS, read_policy(BYPASS))[:6]


@pytest.mark.parametrize(("text", "mac"), [
    ("02-00-00-00-00-fe", "02-00-00-00-00-FE"), ("02:00:00:00:00:FE", "02-00-00-00-00-FE"),
    ("0200.0000.00fe", "02-00-00-00-00-FE"), ("0200000000FE", "02-00-00-00-00-FE"),
    ("02-00-00-00-00", ""), ("02-00-00-00-00-FE-01", ""), ("02-00-00-00-00-GE", ""), ("", ""),
])  # fmt: skip
def test_addresses_of_every_make_become_one_form(text: str, mac: str) -> None:
    assert canonical_mac(text) == mac
