from __future__ import annotations

from dataclasses import replace

import pytest

from radius import Policy, errors, read_policy
from radius.policy import load_policy
from radius.rules import MODELS, OWNER_KINDS, Asked, Rule, canonical_department
from tests.radius.world import POLICY
from tests.support import NOW


def match(policy: Policy, departments: tuple[str, ...], kind: str = "person", model: str = "standing") -> Rule | None:
    return policy.match(Asked("dual", kind, departments, model=model), NOW)


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
    found = match(read_policy(POLICY), (department,))
    assert (found.name if found else None) == rule


def test_composed_and_decomposed_letters_are_one_department() -> None:
    assert canonical_department("Bu\u0308ro") == canonical_department("BÜRO")


def test_the_first_rule_in_the_text_wins_for_an_owner_of_two_departments() -> None:
    found = match(read_policy(POLICY), ("HR", "R&D"), model="")
    assert found is not None
    assert found.name == "research"


def test_owner_kind_and_model_narrow_a_rule() -> None:
    policy = read_policy(
        "version = 1\n[vlans]\na = 1\nguest = 4094\n"
        '[[rule]]\nname = "people"\ndepartment = "X"\nowner_kind = "person"\nmodel = ["standing"]\nvlan = "a"\n'
        '[[rule]]\nname = "rest"\ndepartment = "X"\nvlan = "guest"\n'
    )
    names = {(kind, model): match(policy, ("X",), kind, model).name for kind in OWNER_KINDS for model in MODELS}  # type: ignore[union-attr]
    assert names.pop(("person", "standing")) == "people"
    assert set(names.values()) == {"rest"}


HEAD = "version = 1\n[vlans]\na = 10\nguest = 99\n"
HEAD2 = HEAD.replace("version = 1", "version = 2")
RULE = '[[rule]]\nname = "one"\ndepartment = "X"\nvlan = "a"\n'


@pytest.mark.parametrize(
    ("text", "error", "where"),
    [
        ("", errors.PolicyVersionUnknown, "version"),
        ("version = 3", errors.PolicyVersionUnknown, "version"),
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
        (HEAD + "[mac_bypass]\nvlan = 'a'", errors.PolicyKeyUnknown, "mac_bypass"),
        (HEAD + RULE.replace('department = "X"\n', ""), errors.PolicyValueInvalid, "rule[1].department"),
        (HEAD + RULE + "credential = 'proxy'", errors.PolicyKeyUnknown, "rule[1].credential"),
        (HEAD2 + "[mac_bypass]", errors.PolicyValueInvalid, "mac_bypass.vlan"),
        (HEAD2 + "[mac_bypass]\nvlan = 'b'", errors.VlanUnknown, "mac_bypass.vlan"),
        (HEAD2 + "[mac_bypass]\nvlan = 'a'\nsession_timeout = 1", errors.PolicyValueInvalid,
         "mac_bypass.session_timeout"),
        (HEAD2 + "[sites.x]\nvlan = 1", errors.PolicyKeyUnknown, "sites.x.vlan"),
        (HEAD2 + "[sites.x.vlans]\nb = 1", errors.VlanUnknown, "sites.x.vlans.b"),
        (HEAD2 + "[sites.x.vlans]\na = 4095", errors.VlanOutOfRange, "sites.x.vlans.a"),
        (HEAD2 + "[sites.'a%{b}'.vlans]\na = 1", errors.PolicyValueInvalid, "sites.a%{b}"),
        (HEAD2.replace("10", "'20'"), errors.PolicyValueInvalid, "vlans.a"),
        (HEAD2.replace("10", "'%{x}'"), errors.PolicyValueInvalid, "vlans.a"),
        (HEAD2 + "[[rule]]\nname = 'x'", errors.PolicyValueInvalid, "rule[1]"),
        (HEAD2 + RULE + "reject = 'no'", errors.PolicyValueInvalid, "rule[1].vlan"),
        (HEAD2 + "[[rule]]\nname = 'x'\nreject = 'no'\nrole = 'y'", errors.PolicyValueInvalid, "rule[1].role"),
        (HEAD2 + "[[rule]]\nname = 'x'\nreject = ''", errors.PolicyValueInvalid, "rule[1].reject"),
        (HEAD2 + RULE + "credential = 'wit'", errors.PolicyValueInvalid, "rule[1].credential"),
        (HEAD2 + RULE + "credential = 'proxy'", errors.RuleUnreachable, "rule[1]"),
        (HEAD2 + RULE + "tier = 'none'", errors.PolicyValueInvalid, "rule[1].tier"),
        (HEAD2 + RULE + "nas = '*'", errors.PolicyValueInvalid, "rule[1].nas"),
        (HEAD2 + RULE + "port = 'a*b'", errors.PolicyValueInvalid, "rule[1].port"),
        (HEAD2 + RULE + "ssid = ['x', 'x']", errors.RuleDuplicate, "rule[1].ssid"),
        (HEAD2 + RULE + "role = '%{exec:id}'", errors.PolicyValueInvalid, "rule[1].role"),
        (HEAD2 + RULE + "filter_id = '\"; DROP'", errors.PolicyValueInvalid, "rule[1].filter_id"),
        (HEAD2 + RULE + "session_timeout = 29", errors.PolicyValueInvalid, "rule[1].session_timeout"),
        (HEAD2 + RULE + "session_timeout = true", errors.PolicyValueInvalid, "rule[1].session_timeout"),
        (HEAD2 + RULE + "time = {}", errors.PolicyValueInvalid, "rule[1].time.zone"),
        (HEAD2 + RULE + "time = { zone = 'Europe/Atlantis' }", errors.PolicyValueInvalid, "rule[1].time.zone"),
        (HEAD2 + RULE + "time = { zone = '../../etc/passwd' }", errors.PolicyValueInvalid, "rule[1].time.zone"),
        (HEAD2 + RULE + "time = { zone = 'Europe' }", errors.PolicyValueInvalid, "rule[1].time.zone"),
        (HEAD2 + RULE + "time = { zone = 'UTC', from = '24:00' }", errors.PolicyValueInvalid, "rule[1].time.from"),
        (HEAD2 + RULE + "time = { zone = 'UTC', to = '7:30' }", errors.PolicyValueInvalid, "rule[1].time.to"),
        (HEAD2 + RULE + "time = { zone = 'UTC', from = '07:00', to = '07:00' }", errors.PolicyValueInvalid,
         "rule[1].time"),
        (HEAD2 + RULE + "time = { zone = 'UTC', days = ['monday'] }", errors.PolicyValueInvalid, "rule[1].time.days"),
        (HEAD2 + RULE + "time = { zone = 'UTC', hours = 3 }", errors.PolicyKeyUnknown, "rule[1].time.hours"),
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
    assert match(read_policy(HEAD + rules), ("d1999",)) is not None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (HEAD + RULE + RULE.replace('"one"', '"two"').replace('"a"', '"b"'), 12),
        (HEAD + RULE + "\n# a remark\n" + RULE.replace('"one"', '"two"'), 11),
        (HEAD.replace("10", "4095"), 3),
        (HEAD2 + '[sites."north"]\n[sites.north.vlans]\nguest = 1\na = 4095', 8),
        (HEAD + "[defaults]\nstale = 'guest'\nunmapped = 'no'", 7),
        (HEAD + RULE + 'time = "always"', 9),
        (HEAD2 + "[[ rule ]] # spaced\nname = 'x'", 5),
    ],
)  # fmt: skip
def test_a_refusal_names_the_line(text: str, line: int) -> None:
    with pytest.raises(errors.PolicyError) as caught:
        read_policy(text)
    assert caught.value.fields["line"] == line
    assert caught.value.detail.startswith(f"line {line}: ")


def test_what_was_published_is_read_without_the_search_for_unreachable_rules() -> None:
    text = HEAD + RULE + RULE.replace('"one"', '"two"')
    with pytest.raises(errors.RuleUnreachable):
        read_policy(text)
    assert [rule.name for rule in load_policy(text, revision=4).rules] == ["one", "two"]


def test_a_vlan_has_a_number_or_a_name_at_each_site() -> None:
    policy = read_policy(
        HEAD2.replace("10", '"lab-net"') + RULE + "[sites.north.vlans]\na = 120\n[sites.south.vlans]\nguest = 999\n"
    )
    assert policy.vlan_at("", "a") == policy.vlan_at("south", "a") == policy.vlan_at("unknown", "a") == "lab-net"
    assert policy.vlan_at("north", "a") == 120
    assert (policy.vlan_at("south", "guest"), policy.guest_vlan_id) == (999, 99)


def test_a_version_1_text_means_what_it_meant() -> None:
    policy = read_policy(POLICY)
    assert (policy.version, policy.mac_bypass, dict(policy.sites)) == (1, None, {})
    assert [policy.takes(kind) for kind in ("dual", "single", "proxy")] == [True, False, False]
    assert [(rule.credentials, rule.session_timeout, rule.window) for rule in policy.rules] == [
        (("dual",), None, None)
    ] * 2
