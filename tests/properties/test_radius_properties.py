"""radius: decide is total and never widens; framing and packets meet any bytes with nothing but our refusals."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radius import (
    REASONS,
    AccessRequest,
    Credential,
    CredentialRef,
    Facts,
    OwnerFact,
    Policy,
    decide,
    errors,
    explain,
    packets,
    read_policy,
    to_attributes,
)
from radius.eap_tls import Conversation, Eap, Fragmenter, Reassembler, read_eap, write_eap
from radius.errors import EapMalformed, EapOutOfTurn, EapTooLarge, HookMalformed, PacketInvalid
from radius.hook import read_hook, write_answer
from radius.reasons import STAGES
from tests.radius.test_packets import GOOD, request_octets
from tests.radius.world import OWNER_ID_OID, POLICY, SECRET
from tests.support import examples

text = st.text(max_size=20)
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
ids = st.sampled_from(["", "spiffe://campus.example/owner/1", "spiffe://campus.example/owner/2"]) | text
PROXY = "spiffe://campus.example/proxy/1"
agents = st.sampled_from(["spiffe://campus.example/agent/1", PROXY]) | text
refs = st.builds(CredentialRef, st.sampled_from(["77c1", ""]), st.integers(0, 3))
requests = st.builds(
    AccessRequest, nas=text, nas_address=text, nas_port=text, calling_station=text, called_station=text, user_name=text,
    session=text, tls_version=st.sampled_from(["", "1.2", "1.3"]), credential=st.none() | refs,
    method=st.sampled_from(["eap-tls"] * 7 + ["mac-bypass", ""]),
    transport=st.sampled_from(["", "udp", "radsec"]) | text,
    owner_id_hint=st.none() | ids, san=st.none() | agents.map(lambda name: f"URI:{name}") | text,
    defect=st.just("") | st.sampled_from(sorted(REASONS)) | text,
)  # fmt: skip
credentials = st.builds(
    Credential, kind=st.sampled_from(["dual", "single", "ldevid", ""]), agent_id=agents, owner_id=st.none() | ids,
    serial=st.integers(0, 3), issuer_role=st.sampled_from(["agents", "devices", "infrastructure", ""]),
    state=st.sampled_from(["issued", "pending", "revoked", ""]), not_before=times, not_after=times,
    model=st.sampled_from(["agent-mediated", "standing", ""]), txn=text, tier=st.sampled_from(["affirming", "", "x"]),
)  # fmt: skip
owners = st.builds(
    OwnerFact, identifier=ids, state=st.sampled_from(["active", "suspended", "revoked", ""]),
    departments=st.lists(st.sampled_from(["R&D", "HR", "", " "]) | text, max_size=3).map(tuple),
    kind=st.sampled_from(["person", "device", "policy", ""]),
)  # fmt: skip
facts = st.builds(
    Facts, now=times, owner=st.none() | owners, agent_state=st.sampled_from(["registered", "reserved", "revoked", ""]),
    snapshot_age_seconds=st.floats(), stale_after_seconds=st.floats(), agent_class=text, site=st.just("north") | text,
)  # fmt: skip
EVERYTHING = """
version = 2
[vlans]
a = 10
onboarding = "onboard"
guest = 99
[sites.north.vlans]
guest = 199
[defaults]
stale = "guest"
[mac_bypass]
vlan = "onboarding"
[[rule]]
name = "office hours"
department = "R&D"
time = { days = ["mon", "sat"], from = "22:00", to = "08:00", zone = "Asia/Kathmandu" }
vlan = "a"
role = "r"
session_timeout = 60
[[rule]]
name = "no"
department = ["HR"]
tier = "warning"
reject = "not like this"
[[rule]]
name = "others"
credential = ["single", "proxy"]
nas = "a*"
vlan = "a"
"""
policies = st.sampled_from(
    [
        None,
        read_policy(POLICY, revision=1),
        read_policy(POLICY + "[defaults]\nunmapped = 'reject'\nstale = 'guest'", revision=2),
        read_policy(EVERYTHING, revision=3),
    ]
)


@pytest.mark.req("A-33")
@examples(500)
@given(requests, st.none() | credentials, facts, policies)
def test_decide_is_total_and_every_yes_has_all_its_proofs(
    request: AccessRequest, credential: Credential | None, known: Facts, policy: Policy | None
) -> None:
    decision = decide(request, credential, known, policy)
    assert decision.reason_code in REASONS
    assert tuple(step.stage for step in decision.steps) == STAGES
    assert all(step.evidence.isprintable() for step in decision.steps)
    assert (decision.vlan is None) == (decision.verdict == "reject")
    assert explain(decision)
    assert json.loads(write_answer(decision))
    names = {attribute.code for attribute in to_attributes(decision)}
    assert bool({64, 65, 81} & names) == (decision.verdict != "reject")
    if decision.verdict == "reject":
        assert [step.outcome for step in decision.steps].count("fail") == 1
        return
    assert policy is not None
    assert decision.vlan == policy.vlan_at(known.site, decision.vlan_name)
    if request.method == "mac-bypass":
        assert policy.mac_bypass is not None
        assert (decision.verdict, decision.vlan_name) == ("guest", policy.mac_bypass.vlan)
        assert request.transport in ("loopback", "radsec")
        return
    assert credential is not None
    assert request.credential is not None
    assert not request.defect
    assert request.credential.serial == credential.serial
    assert credential.state == "issued"
    assert credential.not_before <= known.now <= credential.not_after
    if decision.session_timeout is not None:
        assert 1 <= decision.session_timeout <= max(1, (credential.not_after - known.now).total_seconds())
    if credential.kind == "ldevid":
        assert (credential.issuer_role, credential.agent_id) == ("devices", PROXY)
        assert decision.rule == "others"
        return
    assert credential.issuer_role == "agents"
    assert known.agent_state == "registered"
    if credential.kind == "single":
        assert decision.rule == "others"
        return
    assert credential.kind == "dual"
    assert known.owner is not None
    assert (known.owner.state, known.owner.identifier) == ("active", credential.owner_id)
    if decision.verdict == "accept":
        assert decision.rule in {rule.name for rule in policy.rules}
        assert known.snapshot_age_seconds <= known.stale_after_seconds
    else:
        assert decision.vlan_name == policy.guest_vlan


good_times = st.just(datetime(2026, 1, 1, tzinfo=UTC))


@examples(300)
@given(requests, credentials, facts)
def test_the_outer_identity_and_the_nas_never_change_an_answer(
    request: AccessRequest, credential: Credential, known: Facts
) -> None:
    policy = read_policy(POLICY)
    other = request._replace(user_name="ceo", nas="x", nas_port="y", calling_station="z", session="s")
    one, two = decide(request, credential, known, policy), decide(other, credential, known, policy)
    assert one[:6] == two[:6]


@examples(300)
@given(
    st.text(max_size=400)
    | st.lists(st.sampled_from(POLICY.splitlines() + ["", "[x]", "= 3"]), max_size=20).map("\n".join)
)
def test_any_text_is_a_policy_or_a_refusal_with_its_place(source: str) -> None:
    try:
        read_policy(source)
    except errors.PolicyError as refusal:
        assert refusal.fields["where"]
        assert refusal.detail


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=10,
)


@examples(300)
@given(json_values | st.dictionaries(text, st.fixed_dictionaries({"type": text, "value": json_values}), max_size=4))
def test_any_json_is_a_request_or_malformed(document: object) -> None:
    try:
        request = read_hook(document, owner_id_oid=OWNER_ID_OID)
    except HookMalformed:
        return
    assert request.credential is None
    assert request.defect


@examples(400)
@given(st.binary(max_size=200))
def test_any_octets_are_an_eap_packet_or_malformed(octets: bytes) -> None:
    try:
        assert write_eap(read_eap(octets)) == octets
    except EapMalformed:
        pass


@examples(200)
@given(st.binary(min_size=1, max_size=5000), st.integers(1, 1500))
def test_fragments_join_to_what_was_cut(message: bytes, size: int) -> None:
    cut, join = Fragmenter(message, size), Reassembler()
    whole = None
    while not cut.is_done:
        assert whole is None
        whole = join.add(cut.take())
    assert whole == message


@examples(400)
@given(
    st.lists(st.tuples(st.sampled_from(["send", "data", "raw"]), st.binary(max_size=40), st.booleans()), max_size=30)
)
def test_a_conversation_meets_any_packets_with_its_own_refusals(acts: list[tuple[str, bytes, bool]]) -> None:
    conversation = Conversation(fragment_bytes=200)
    conversation.receive(write_eap(Eap(2, 1, 1, b"x")))
    sent = conversation.start()
    for kind, data, right in acts:
        identifier = read_eap(sent).identifier if right else 99
        try:
            if kind == "send" and data:
                sent = conversation.send(data * 20)
            elif kind == "data":
                received = conversation.receive(write_eap(Eap(2, identifier, 13, data)))
                sent = getattr(received, "packet", sent)
            else:
                conversation.receive(data)
        except (EapMalformed, EapOutOfTurn, EapTooLarge):
            pass


@examples(500)
@given(st.binary(max_size=300) | st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)).map(
    lambda change: GOOD[: change[0]] + bytes([GOOD[change[0]] ^ change[1]]) + GOOD[change[0] + 1 :]))  # fmt: skip
def test_any_datagram_that_is_not_authentic_is_dropped(octets: bytes) -> None:
    with pytest.raises(PacketInvalid):
        packets.read_request(octets, SECRET)


@examples(300)
@given(st.lists(st.tuples(st.integers(1, 255).filter(lambda code: code != 80), st.binary(max_size=253)), max_size=12))
def test_any_attributes_of_a_known_nas_are_read_and_answered(attributes: list[tuple[int, bytes]]) -> None:
    octets = request_octets(*[bytes([code, len(value) + 2]) + value for code, value in attributes])
    packet = packets.read_request(octets, SECRET)
    packets.read_access_request(packet, nas="n", nas_address="a")
    packets.eap_of(packet)
    if len(octets) < 3500:
        packets.write_reply(packet, 3, eap=b"\x04\x01\x00\x04")


def test_life_ends_exactly_at_not_after() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    held = Credential("dual", "a", "o", 1, "agents", "issued", now, now)
    known = Facts(now, OwnerFact("o", "active"))
    request = AccessRequest(credential=CredentialRef("77", 1))
    policy = read_policy(POLICY)
    assert decide(request, held, known, policy).verdict == "guest"
    assert decide(request, held, known._replace(now=now + timedelta(microseconds=1)), policy).verdict == "reject"
