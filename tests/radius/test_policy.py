from __future__ import annotations

from dataclasses import replace

import pytest

from radius import errors, read_policy
from radius.policy import MODELS, OWNER_KINDS, canonical_department
from tests.radius.world import POLICY


def test_a_policy_reads_into_rules_in_order() -> None:
    policy = read_policy(POLICY, revision=7)
    assert policy.revision == 7
    assert policy.vlans == {"research": 20, "people": 30, "guest": 99}
    assert [(rule.name, rule.departments, rule.vlan_id) for rule in policy.rules] == [
        ("research", ("R&D", "Research"), 20),
        ("people", ("HR",), 30),
    ]
    assert (policy.unmapped, policy.stale, policy.guest_vlan_id) == ("guest", "reject", 99)
    assert read_policy(POLICY).sha256 == replace(policy, revision=0).sha256


@pytest.mark.parametrize(
    ("department", "rule"),
    [("R&D", "research"), ("r&d", "research"), (" R&D ", "research"), ("HR", "people"), ("Н" + "R", None),
     ("R&D\x00", None), ("HR;R&D", None), ("", None), ("Research\u200b", None)],
)  # fmt: skip
def test_departments_compare_after_one_canonical_form(department: str, rule: str | None) -> None:
    found = read_policy(POLICY).match((department,), "person", "agent-mediated")
    assert (found.name if found else None) == rule


def test_composed_and_decomposed_letters_are_one_department() -> None:
    assert canonical_department("Bu\u0308ro") == canonical_department("BÜRO")


def test_the_first_rule_in_the_text_wins_for_an_owner_of_two_departments() -> None:
    found = read_policy(POLICY).match(("HR", "R&D"), "person", "")
    assert found is not None
    assert found.name == "research"


def test_owner_kind_and_model_narrow_a_rule() -> None:
    policy = read_policy(
        "version = 1\n[vlans]\na = 1\nguest = 4094\n"
        '[[rule]]\nname = "people"\ndepartment = "X"\nowner_kind = "person"\nmodel = ["standing"]\nvlan = "a"\n'
        '[[rule]]\nname = "rest"\ndepartment = "X"\nvlan = "guest"\n'
    )
    names = {(kind, model): policy.match(("X",), kind, model).name for kind in OWNER_KINDS for model in MODELS}  # type: ignore[union-attr]
    assert names.pop(("person", "standing")) == "people"
    assert set(names.values()) == {"rest"}


HEAD = "version = 1\n[vlans]\na = 10\nguest = 99\n"
RULE = '[[rule]]\nname = "one"\ndepartment = "X"\nvlan = "a"\n'


@pytest.mark.parametrize(
    ("text", "error", "where"),
    [
        ("", errors.PolicyVersionUnknown, "version"),
        ("version = 2", errors.PolicyVersionUnknown, "version"),
        ("version = true", errors.PolicyVersionUnknown, "version"),
        ("version = '1'", errors.PolicyVersionUnknown, "version"),
        ("version = ", errors.PolicyMalformed, "text"),
        ("version = 1\nversion = 1", errors.PolicyMalformed, "text"),
        ("x = " + "[" * 5000, errors.PolicyMalformed, "text"),
        ("x = " + "9" * 5000, errors.PolicyMalformed, "text"),
        ("#" + "x" * 1_048_576, errors.PolicyMalformed, "text"),
        ("version = 1", errors.VlanUnknown, "defaults.guest_vlan"),
        ("version = 1\nvlans = 3", errors.PolicyMalformed, "vlans"),
        ("version = 1\n[vlans]\nguest = 0", errors.VlanOutOfRange, "vlans.guest"),
        ("version = 1\n[vlans]\nguest = 4095", errors.VlanOutOfRange, "vlans.guest"),
        ("version = 1\n[vlans]\nguest = -1", errors.VlanOutOfRange, "vlans.guest"),
        ("version = 1\n[vlans]\nguest = '99'", errors.PolicyValueInvalid, "vlans.guest"),
        ("version = 1\n[vlans]\nguest = true", errors.PolicyValueInvalid, "vlans.guest"),
        ("version = 1\n[vlans]\n\"a\\nb\" = 3", errors.PolicyValueInvalid, "vlans.a?b"),
        (HEAD + "[default]", errors.PolicyKeyUnknown, "default"),
        (HEAD + "[defaults]\nunmaped = 'guest'", errors.PolicyKeyUnknown, "defaults.unmaped"),
        (HEAD + "[defaults]\nunmapped = 'accept'", errors.PolicyValueInvalid, "defaults.unmapped"),
        (HEAD + "[defaults]\nstale = 1", errors.PolicyValueInvalid, "defaults.stale"),
        (HEAD + "[defaults]\nguest_vlan = 'b'", errors.VlanUnknown, "defaults.guest_vlan"),
        (HEAD + "[rule]\nname = 'x'", errors.PolicyMalformed, "rule"),
        (HEAD + "[[rule]]", errors.PolicyValueInvalid, "rule[1].name"),
        (HEAD + RULE.replace('"one"', '"a%{b}"'), errors.PolicyValueInvalid, "rule[1].name"),
        (HEAD + RULE.replace('"X"', "[]"), errors.PolicyValueInvalid, "rule[1].department"),
        (HEAD + RULE.replace('"X"', '""'), errors.PolicyValueInvalid, "rule[1].department"),
        (HEAD + RULE.replace('"X"', '["X", 3]'), errors.PolicyValueInvalid, "rule[1].department[2]"),
        (HEAD + RULE.replace('"X"', '"a\\u0000b"'), errors.PolicyValueInvalid, "rule[1].department"),
        (HEAD + RULE.replace('"X"', '["X", "x "]'), errors.RuleDuplicate, "rule[1].department"),
        (HEAD + RULE.replace('"a"', '"b"'), errors.VlanUnknown, "rule[1].vlan"),
        (HEAD + RULE.replace('"a"', "10"), errors.PolicyValueInvalid, "rule[1].vlan"),
        (HEAD + RULE + "departement = 'x'", errors.PolicyKeyUnknown, "rule[1].departement"),
        (HEAD + RULE + "owner_kind = 'robot'", errors.PolicyValueInvalid, "rule[1].owner_kind"),
        (HEAD + RULE + "model = 'quick'", errors.PolicyValueInvalid, "rule[1].model"),
        (HEAD + RULE + RULE.replace('"X"', '"Y"'), errors.RuleDuplicate, "rule[2].name"),
        (HEAD + RULE + RULE.replace('"one"', '"two"'), errors.RuleUnreachable, "rule[2]"),
        (HEAD + RULE + RULE.replace('"one"', '"two"') + "owner_kind = 'person'", errors.RuleUnreachable, "rule[2]"),
    ],
)  # fmt: skip
def test_a_bad_policy_is_refused_with_its_place(text: str, error: type[errors.PolicyError], where: str) -> None:
    with pytest.raises(error) as caught:
        read_policy(text)
    assert type(caught.value) is error
    assert caught.value.fields["where"] == where
    assert where in caught.value.detail or where in ("text", "rule", "version")


def test_a_rule_taken_by_several_earlier_ones_together_is_unreachable() -> None:
    parts = [RULE.replace("one", f"r{number}") + f"owner_kind = '{kind}'\n" for number, kind in enumerate(OWNER_KINDS)]
    with pytest.raises(errors.RuleUnreachable) as caught:
        read_policy(HEAD + "".join(parts) + RULE)
    assert caught.value.fields["shadowed_by"] == ["r0", "r1", "r2"]
    assert len(read_policy(HEAD + "".join(parts[:2]) + RULE).rules) == 3


def test_an_unknown_key_names_its_neighbour() -> None:
    with pytest.raises(errors.PolicyKeyUnknown, match="did you mean department"):
        read_policy(HEAD + RULE + "departement = 'x'")


def test_a_large_policy_is_read_quickly() -> None:
    rules = "".join(f'[[rule]]\nname = "r{n}"\ndepartment = "D{n}"\nvlan = "a"\n' for n in range(2000))
    assert read_policy(HEAD + rules).match(("d1999",), "person", "standing") is not None
