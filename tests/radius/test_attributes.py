from __future__ import annotations

import pytest

from radius import Decision, to_attributes
from radius.attributes import message
from radius.decide import refuse
from tests.radius.test_decide import REQUEST, ask


def by_name(decision: Decision, **options: bool) -> dict[str, bytes]:
    return {attribute.name: attribute.octets for attribute in to_attributes(decision, **options)}


@pytest.mark.req("A-33")
def test_an_accept_carries_untagged_tunnel_attributes() -> None:
    found = by_name(ask())
    assert found["Tunnel-Type"] == bytes.fromhex("0000000d")
    assert found["Tunnel-Medium-Type"] == bytes.fromhex("00000006")
    assert found["Tunnel-Private-Group-Id"] == b"20"
    assert found["User-Name"] == ask().agent_id.encode()
    assert found["Class"] == b"t1"
    assert [attribute.code for attribute in to_attributes(ask())] == [64, 65, 81, 1, 25]


@pytest.mark.parametrize("vlan", [1, 9, 99, 4094])
def test_no_vlan_id_can_be_read_as_a_tag(vlan: int) -> None:
    assert by_name(ask()._replace(vlan=vlan))["Tunnel-Private-Group-Id"][0] > 0x1F


@pytest.mark.parametrize("vlan", [0, -1, 4095, None])
def test_an_impossible_vlan_is_not_sent(vlan: int | None) -> None:
    assert "Tunnel-Type" not in by_name(ask()._replace(vlan=vlan))


def test_a_reject_names_no_vlan_even_if_it_holds_one() -> None:
    decision = refuse(REQUEST, "tls-unknown-ca")._replace(vlan=20)
    assert by_name(decision).keys() == {"Reply-Message"}
    assert by_name(decision, reply_message=False) == {}


def test_the_message_names_no_owner_agent_or_department() -> None:
    decision = ask()._replace(verdict="reject", vlan=None, reason_code="owner-suspended")
    text = message(decision)
    assert text.startswith("rejected: owner-suspended: ")
    for secret in (decision.agent_id, decision.owner_id, "R&D"):
        assert secret not in text


@pytest.mark.parametrize("verdict", ["accept", "guest"])
def test_whoever_is_let_in_gets_no_message(verdict: str) -> None:
    assert "Reply-Message" not in by_name(ask()._replace(verdict=verdict))


def test_every_value_fits_a_radius_attribute() -> None:
    decision = ask()._replace(txn="ü" * 300)
    assert all(len(attribute.octets) <= 253 for attribute in to_attributes(decision))
    assert by_name(decision)["Class"].decode() == "ü" * 126


def test_a_rules_outcomes_become_attributes_and_a_reject_carries_none_of_them() -> None:
    decision = ask()._replace(vlan="lab-net", role="researcher", filter_id="acl-1", session_timeout=90)
    found = by_name(decision)
    assert (found["Tunnel-Private-Group-Id"], found["Filter-Id"]) == (b"lab-net", b"acl-1")
    assert found["Aruba-User-Role"] == b"researcher"
    assert found["Session-Timeout"] == bytes.fromhex("0000005a")
    assert found["Termination-Action"] == bytes.fromhex("00000001")  # RADIUS-Request: ask again, do not drop
    assert [one.vendor for one in to_attributes(decision) if one.vendor] == [14823]
    assert by_name(decision._replace(verdict="reject", vlan=None)).keys() == {"Reply-Message"}


def test_a_rules_own_reason_is_what_the_user_reads() -> None:
    decision = refuse(REQUEST, "tls-unknown-ca")._replace(reason_code="rule-rejected", note="ask the help desk")
    assert message(decision) == "rejected: rule-rejected: ask the help desk"
