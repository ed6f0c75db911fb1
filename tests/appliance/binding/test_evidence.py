"""Evidence: bound to nonce, key and request; every claim changed and signed again by the proxy has its own refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta

import pytest

from appliance.binding import evidence, jws, request
from appliance.binding.errors import BindingError, Malformed, SignatureInvalid
from tests.appliance.binding.example import (
    AT,
    EXAMPLE,
    KEYS,
    OTHER_OWNER,
    OTHER_PROXY,
    OWNER,
    PROXY,
    VECTORS,
    flips,
    part,
    resign,
    signer,
)

TOKEN = EXAMPLE["evidence_eat"]
NOW = EXAMPLE["now"]
REQUEST = request.unseal(EXAMPLE["agent_request"])
SUBMODULE = part(TOKEN, 1)["submods"]["agent"]


def _check(token: str = TOKEN, **facts: object) -> evidence.Evidence:
    found = evidence.unseal(token, KEYS["proxy"])
    evidence.check(found, REQUEST, **{"proxy_id": PROXY, "now": AT, **facts})
    return found


def _reason(token: str = TOKEN, **facts: object) -> str:
    with pytest.raises(BindingError) as refusal:
        _check(token, **facts)
    return refusal.value.reason


def _agent(**changes: object) -> dict[str, object]:
    return {"submods": {"agent": {**SUBMODULE, **changes}}}


@pytest.mark.req("A-15", "A-22", "A-23")
def test_the_published_evidence_passes_at_its_clock() -> None:
    found = _check()
    assert found.iss == PROXY and found.rqh == REQUEST.rqh and found.jkt == REQUEST.jkt
    assert found.agent["swname"] == "notes-agent" and found.agent["owner_id"] == OWNER
    assert found.ueid is not None and len(found.ueid) == 17


@pytest.mark.req("A-20", "A-22", "A-23", "A-103", "A-105")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": OTHER_PROXY}, "evidence-wrong-proxy"),
        ({"iss": OWNER}, "identifier-kind-wrong"),
        ({"iat": NOW + 70, "exp": NOW + 300}, "evidence-not-yet-valid"),
        ({"iat": NOW - 300, "exp": NOW - 60}, "evidence-expired"),
        ({"iat": NOW - 400, "exp": NOW - 200}, "evidence-too-old"),
        ({"iat": NOW - 400, "exp": NOW + 300}, "evidence-too-old"),
        ({"exp": NOW + 301}, "evidence-window-too-long"),
        ({"iat": None}, "claim-malformed"),
        ({"eat_nonce": "B" * 43}, "evidence-nonce-mismatch"),
        ({"eat_nonce": [EXAMPLE["nonce"]]}, "claim-malformed"),
        ({"eat_profile": "urn:ietf:eat:profile:ai-agent:2"}, "evidence-profile-unknown"),
        ({"ueid": "AA"}, "claim-malformed"),
        ({"ueid": "AAA\n"}, "claim-malformed"),
        ({"ueid": ""}, "claim-malformed"),
        ({"ueid": 7}, "claim-malformed"),
        ({"ueid": "CQqqqqqqqqqqqqqqqqqqqqo"}, "claim-malformed"),
        ({"dbgstat": "perhaps"}, "claim-malformed"),
        ({"rqh": jws.s256("another request")}, "evidence-for-other-request"),
        ({"submods": {}}, "claim-missing"),
        ({"submods": {"agent": SUBMODULE, "other": SUBMODULE}}, "claim-unknown"),
        (_agent(cnf={"jkt": EXAMPLE["jkt"]["proxy"]}), "evidence-for-other-key"),
        (_agent(owner_id=OTHER_OWNER), "evidence-for-other-owner"),
        (_agent(swname=7), "claim-malformed"),
        (_agent(swversion="2.3.1"), "claim-malformed"),
        (_agent(ai_model_id=""), "claim-malformed"),
        (_agent(ai_model_hash={"alg": "md5", "hash": "AAAA"}), "claim-malformed"),
        (_agent(ai_model_hash={"alg": "sha-256", "hash": "AAAA"}), "claim-malformed"),
        (_agent(capabilities=["x"] * 65), "claim-malformed"),
        (_agent(uid=-1), "claim-malformed"),
        (_agent(uid="0"), "claim-malformed"),
        (_agent(mood="good"), "claim-unknown"),
        ({"vlan": 20}, "claim-unknown"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_each_claim_changed_and_signed_again_has_its_own_refusal(changes: Mapping[str, object], reason: str) -> None:
    assert _reason(resign(TOKEN, "proxy", changes)) == reason


@pytest.mark.req("A-103")
@pytest.mark.slow
def test_every_flipped_bit_is_signature_invalid_or_malformed() -> None:
    for damaged in flips(TOKEN):
        with pytest.raises((SignatureInvalid, Malformed)):
            evidence.unseal(damaged, KEYS["proxy"])


@pytest.mark.req("A-96")
def test_owner_or_agent_cannot_forge_evidence() -> None:
    for name in ("owner", "agent", "stranger"):
        with pytest.raises(SignatureInvalid):
            _check(resign(TOKEN, name))
    with pytest.raises(BindingError) as refusal:
        _check(resign(TOKEN, "proxy", header={"kid": EXAMPLE["jkt"]["agent"]}))
    assert refusal.value.reason == "key-id-mismatch"


@pytest.mark.req("A-105")
def test_evidence_ages_by_its_iat_whatever_its_exp_says() -> None:
    token = resign(TOKEN, "proxy", {"iat": NOW, "exp": NOW + 300})
    _check(token, now=AT + timedelta(seconds=300))
    assert _reason(token, now=AT + timedelta(seconds=356)) == "evidence-too-old"


def test_sealing_writes_what_unsealing_reads() -> None:
    found = _check()
    again = evidence.seal(
        signer("proxy"), iss=found.iss, iat=found.iat, exp=found.exp, nonce=found.nonce, rqh=found.rqh, jkt=found.jkt,
        ueid=found.ueid, dbgstat=found.dbgstat, agent=found.agent,
    )  # fmt: skip
    assert part(again, 1) == part(TOKEN, 1) and part(again, 0) == part(TOKEN, 0)


@pytest.mark.req("A-20", "A-23")
def test_measured_facts_travel_typed() -> None:
    digest = {"alg": "sha-256", "hash": jws.s256(b"x")}
    facts = {"executable": "/usr/bin/agent", "executable_digest": digest, "uid": 1000, "gid": 1000, "pid": 77}
    facts["cgroup"] = "/user.slice"
    found = _check(resign(TOKEN, "proxy", _agent(**facts)))
    assert {name: found.agent[name] for name in facts} == facts


def test_cmw_record_is_the_published_one_both_ways() -> None:
    assert evidence.read_cmw(EXAMPLE["evidence_cmw"]) == TOKEN
    assert evidence.write_cmw(TOKEN) == EXAMPLE["evidence_cmw"]


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record[:2],
        lambda record: [*record, 1],
        lambda record: [record[0], record[1], 8],
        lambda record: [record[0], record[1], True],
        lambda record: [record[0], record[1], "4"],
        lambda record: ["application/eat+cwt", *record[1:]],
        lambda record: [record[0], record[1] + "=", 4],
        lambda record: [record[0], "_w", 4],
        lambda record: {"evidence": record},
        lambda record: None,
        lambda record: "text",
    ],
)
def test_other_cmw_records_are_malformed(change) -> None:
    with pytest.raises(Malformed):
        evidence.read_cmw(change(EXAMPLE["evidence_cmw"]))


@pytest.mark.parametrize(
    "path", sorted((VECTORS / "wit" / "rats-examples").glob("c*.json")), ids=lambda path: path.name
)
def test_published_cmw_of_other_messages_is_malformed(path) -> None:
    with pytest.raises(Malformed):
        evidence.read_cmw(json.loads(path.read_text()))
