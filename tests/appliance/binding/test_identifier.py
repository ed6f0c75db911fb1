"""Identifiers: canonical or refused, never normalised."""

from __future__ import annotations

import json

import pytest

from appliance.binding import identifier
from appliance.binding.errors import BindingError, IdentifierKindWrong, IdentifierMalformed, OriginMismatch
from appliance.binding.identifier import Kind
from tests.appliance.binding.example import AGENT, ORIGIN, OWNER, PROXY, VECTORS

CASES = json.loads((VECTORS / "wit" / "identifier-cases" / "cases.json").read_text())


def _uri(case: dict) -> str:
    return case["id"] if case["id"] is not None else "".join(case["id_join"])


@pytest.mark.req("W-1")
@pytest.mark.parametrize("case", CASES["identifiers"], ids=lambda case: case.get("why", _uri(case)))
def test_published_case_is_read_or_refused_as_its_table_says(case: dict) -> None:
    if case["valid"]:
        assert identifier.read(_uri(case)).uri == _uri(case)
    else:
        with pytest.raises(IdentifierMalformed):
            identifier.read(_uri(case))


@pytest.mark.req("W-1")
def test_percent_encoded_twin_is_refused_and_not_equal() -> None:
    case = CASES["equality_counterexample"]
    assert identifier.read(case["a"]).uri == case["a"]
    with pytest.raises(IdentifierMalformed):
        identifier.read(case["b"])


@pytest.mark.req("W-1")
def test_prefix_policy_matches_whole_segments_of_the_same_origin() -> None:
    case = CASES["prefix_counterexamples"]
    for allowed in case["allow"]:
        assert identifier.is_within(identifier.read(allowed), case["policy"])
    for denied in case["deny"]:
        try:
            found = identifier.read(denied)
        except IdentifierMalformed:
            continue
        assert not identifier.is_within(found, case["policy"])


@pytest.mark.req("W-1")
@pytest.mark.parametrize("policy", CASES["empty_policy_must_fail_closed"])
def test_prefix_policy_without_a_path_covers_nothing(policy: str) -> None:
    assert not identifier.is_within(identifier.read("wimse://trust.example/service/pay"), policy)


@pytest.mark.req("A-6", "W-4")
@pytest.mark.parametrize("case", CASES["issuer_origin_binding"], ids=lambda case: case["subject"])
def test_issuer_answers_for_its_exact_origin_only(case: dict) -> None:
    assert not case["accept"]
    assert identifier.read(case["subject"]).origin != identifier.read_origin(case["issuer_authorised_for"])


@pytest.mark.req("A-6", "W-4")
@pytest.mark.parametrize("origin", ["wimse://campus.example", "spiffe://other.example", "spiffe://campus.example.evil"])
def test_identifier_of_another_origin_is_refused(origin: str) -> None:
    with pytest.raises(OriginMismatch):
        identifier.read_kind(AGENT, Kind.AGENT, origin=origin)


@pytest.mark.req("W-2")
@pytest.mark.parametrize(
    ("uri", "kind"), [(AGENT, Kind.OWNER), (OWNER, Kind.PROXY), (PROXY, Kind.AGENT), (PROXY, Kind.NAS)]
)
def test_identifier_of_another_kind_is_refused(uri: str, kind: Kind) -> None:
    with pytest.raises(IdentifierKindWrong):
        identifier.read_kind(uri, kind)


@pytest.mark.req("W-2")
@pytest.mark.parametrize(
    "name",
    [
        "alice",
        "0b6f0c1e-6a1e-1a8e-9a63-1c0a4c0f2a11",
        "0b6f0c1e-6a1e-4a8e-7a63-1c0a4c0f2a11",
        "0B6F0C1E-6A1E-4A8E-9A63-1C0A4C0F2A11",
        "0b6f0c1e6a1e4a8e9a631c0a4c0f2a11",
        "0b6f0c1e-6a1e-4a8e-9a63-1c0a4c0f2a11/x",
        "0b6f0c1e-6a1e-4a8e-9a63-1c0a4c0f2a11\n",
    ],
)
def test_agent_name_that_is_no_canonical_random_uuid_is_refused(name: str) -> None:
    with pytest.raises(IdentifierMalformed):
        identifier.read_kind(f"{ORIGIN}/agent/{name}", Kind.AGENT)


@pytest.mark.req("W-2")
def test_servers_are_named_freely() -> None:
    assert identifier.make(ORIGIN, Kind.SERVER, "ids-1").uri == f"{ORIGIN}/server/ids-1"
    assert identifier.make(ORIGIN, Kind.RADIUS, "r1").segments == ("radius", "r1")


@pytest.mark.req("W-12")
def test_owner_identifier_of_more_than_120_bytes_is_refused() -> None:
    name = OWNER.rpartition("/")[2]
    longest = 120 - len("spiffe:///owner/") - len(name)
    identifier.read_kind(f"spiffe://{'a' * longest}/owner/{name}", Kind.OWNER)
    with pytest.raises(IdentifierMalformed):
        identifier.read_kind(f"spiffe://{'a' * (longest + 1)}/owner/{name}", Kind.OWNER)


@pytest.mark.req("W-1")
@pytest.mark.parametrize(
    "uri",
    ["", "spiffe", "spiffe:/campus.example/agent/a", "spiffe:///agent/a", "SPIFFE://campus.example/agent/a",
     "spiffe://192.0.2.1/agent/a", f"spiffe://{'a' * 256}/agent/a", "spiffe://campus.example/agent/ä", " " + AGENT,
     AGENT + "\n", "spiffe://campus.example\n/agent/a"],
)  # fmt: skip
def test_other_near_misses_are_refused(uri: str) -> None:
    with pytest.raises(BindingError):
        identifier.read(uri)


@pytest.mark.req("W-1")
def test_scheme_that_is_not_configured_is_refused() -> None:
    with pytest.raises(IdentifierMalformed):
        identifier.read("wimse://campus.example/agent/a", schemes=("spiffe",))
