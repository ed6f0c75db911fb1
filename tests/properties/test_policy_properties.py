"""Rules: the compiled match is the plain reading of the text, and no rule that can match is called unreachable."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st

from radius import errors, read_policy
from radius.policy import Policy, load_policy
from radius.reach import find_unreachable
from radius.rules import DAYS, MODELS, OWNER_KINDS, TIERS, Asked, Rule, canonical_department
from tests.support import examples

DEPARTMENTS = ["R&D", "HR", "Büro"]
NAMES = ["sw-1", "sw-12", "sw-2", "ap-1"]
PATTERNS = [*NAMES[:3], "sw-*", "sw-1*", "s*"]
ZONES = ["UTC", "Europe/Berlin", "America/St_Johns"]
MONDAY = datetime(2026, 3, 23, tzinfo=UTC)  # daylight saving begins in Europe at the end of this week


def some(values: list[str] | tuple[str, ...], most: int = 2) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)


windows = st.fixed_dictionaries(
    {"zone": st.sampled_from(ZONES)},
    optional={
        "days": some(DAYS, 4),
        "from": st.sampled_from(["00:00", "08:00", "20:30"]),
        "to": st.sampled_from(["06:00", "12:00", "24:00"]),
    },
)
conditions = st.fixed_dictionaries(
    {},
    optional={
        "credential": some(["dual", "single", "proxy"], 3),
        "department": some(DEPARTMENTS),
        "owner_kind": some(OWNER_KINDS, 3),
        "agent_class": some(["robot", "screen"]),
        "tier": some(TIERS),
        "model": some(MODELS),
        "nas": some(PATTERNS, 3),
        "port": some(PATTERNS),
        "ssid": some(["campus", "guests"]),
        "site": some(["north", "south"]),
        "time": windows,
    },
)
# rules of few conditions shadow each other often
few = st.dictionaries(
    st.sampled_from(["credential", "department", "owner_kind", "nas", "time", "site"]), st.none(), max_size=3
)
rules = st.lists(
    st.tuples(conditions, few).map(lambda pair: {key: pair[0][key] for key in pair[1] if key in pair[0]}) | conditions,
    min_size=1,
    max_size=6,
)
asked = st.builds(
    lambda credential, kind, departments, *rest: Asked(
        credential, kind if credential == "dual" else "", departments if credential == "dual" else (), *rest
    ),
    st.sampled_from(["dual", "dual", "single", "proxy"]),
    st.sampled_from(OWNER_KINDS),
    st.lists(st.sampled_from([*DEPARTMENTS, "büro ", "Kitchen", ""]), max_size=3).map(tuple),
    st.sampled_from(["robot", "screen", ""]),
    st.sampled_from([*TIERS, ""]),
    st.sampled_from([*MODELS, ""]),
    st.sampled_from([*NAMES, ""]),
    st.sampled_from([*NAMES, ""]),
    st.sampled_from(["campus", ""]),
    st.sampled_from(["north", "south", ""]),
)
times = st.integers(0, 14 * 24 * 4).map(lambda quarters: MONDAY + timedelta(minutes=15 * quarters))


def text_of(found: list[dict[str, object]]) -> str:
    lines = ["version = 2", "[vlans]", "a = 10", "guest = 99"]
    for at, rule in enumerate(found):
        lines += ["[[rule]]", f"name = 'r{at}'", "vlan = 'a'"]
        lines += [f"{key} = {_toml(value)}" for key, value in rule.items()]
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"'


def plainly(source: list[dict[str, object]], login: Asked, now: datetime) -> str | None:
    """The ordered rules as an administrator reads them, without any of the code under test."""
    for at, rule in enumerate(source):
        if all(_holds(name, value, login, now) for name, value in {"credential": ["dual"], **rule}.items()):
            return f"r{at}"
    return None


def _holds(name: str, value: object, login: Asked, now: datetime) -> bool:
    if name == "time":
        assert isinstance(value, dict)
        local = now.astimezone(ZoneInfo(value["zone"]))
        days = value.get("days", DAYS)
        clock, start, end = local.strftime("%H:%M"), value.get("from", "00:00"), value.get("to", "24:00")
        if start < end:
            return DAYS[local.weekday()] in days and start <= clock < end
        yesterday = DAYS[(local.weekday() + 6) % 7]
        return (DAYS[local.weekday()] in days and clock >= start) or (yesterday in days and clock < end)
    assert isinstance(value, list)
    if name == "department":
        return any(mine.strip().lower() == wanted.lower() for mine in login.departments for wanted in value)
    found = str(getattr(login, name))
    return any(found == one or (one.endswith("*") and found.startswith(one[:-1])) for one in value)


def load(source: list[dict[str, object]]) -> Policy:
    try:
        return load_policy(text_of(source))
    except errors.PolicyValueInvalid:  # a window of no length
        assume(False)
        raise


@examples(400, HealthCheck.filter_too_much)
@given(rules, st.lists(st.tuples(asked, times), min_size=1, max_size=12))
def test_match_is_the_first_rule_as_an_administrator_reads_them(
    source: list[dict[str, object]], logins: list[tuple[Asked, datetime]]
) -> None:
    policy = load(source)
    for login, now in logins:
        found = policy.match(login, now)
        assert (found.name if found else None) == plainly(source, login, now)


@examples(400, HealthCheck.filter_too_much)
@given(rules, st.lists(st.tuples(asked, times), min_size=1, max_size=40))
def test_no_login_is_ever_taken_by_a_rule_that_is_called_unreachable(
    source: list[dict[str, object]], logins: list[tuple[Asked, datetime]]
) -> None:
    policy = load(source)
    found = find_unreachable(policy.rules).unreachable
    if found is None:
        return
    without = load_policy(text_of([rule for at, rule in enumerate(source) if at != found.rule.order]))
    for login, now in [*logins, *((_inside(found.rule, login), now) for login, now in logins)]:
        taken = policy.match(login, now)
        assert taken is None or taken.name != found.rule.name
        assert (taken is None) == (without.match(login, now) is None)


def _inside(rule: Rule, login: Asked) -> Asked:
    """The login moved into the conditions of a rule, so that the search is not in vain."""
    wanted = {
        name: rule.values(name)[0].replace("*", "9")
        for name in ("agent_class", "tier", "model", "nas", "port", "ssid", "site")
        if rule.values(name)
    }
    dual = {
        "departments": rule.departments[:1] or login.departments,
        "owner_kind": (rule.owner_kinds or OWNER_KINDS)[0],
    }
    rest = dual if rule.credentials[0] == "dual" else {"departments": (), "owner_kind": ""}
    return login._replace(credential=rule.credentials[0], **wanted, **rest)  # type: ignore[arg-type]


SHAPES = st.dictionaries(st.sampled_from(["department", "owner_kind", "nas", "site"]), st.integers(0, 5), max_size=3)


@examples(150, HealthCheck.filter_too_much)
@given(st.lists(SHAPES, min_size=2, max_size=6))
def test_of_rules_without_windows_every_unreachable_one_is_found(shapes: list[dict[str, int]]) -> None:
    """Against all logins there can be: the check is not only sound but complete where it says so."""
    choices = {
        "department": [["R&D"], ["HR"], ["R&D", "HR"]],
        "owner_kind": [["person"], ["device", "policy"], ["person", "device"]],
        "nas": [["sw-1"], ["sw-*"], ["sw-1*", "ap-1"]],
        "site": [["north"], ["south"], ["north", "south"]],
    }
    source = [{key: choices[key][at % 3] for key, at in shape.items()} for shape in shapes]
    everything = [
        Asked("dual", kind, departments, nas=nas, site=site)
        for kind, departments, nas, site in product(
            OWNER_KINDS,
            [(), ("R&D",), ("HR",), ("Kitchen",)],
            ["sw-1", "sw-19", "sw-2", "ap-1", ""],
            ["north", "south", ""],
        )
    ]
    used = {plainly(source, login, MONDAY) for login in everything}
    found = find_unreachable(load(source).rules)
    never = [f"r{at}" for at in range(len(source)) if f"r{at}" not in used]
    assert (found.unreachable.rule.name if found.unreachable else None) == (never[0] if never else None)
    assert found.unchecked == ()


def test_a_rule_that_three_others_take_together_is_found_with_their_names() -> None:
    source: list[dict[str, object]] = [
        {"department": ["R&D"], "nas": ["sw-*"]},
        {"department": ["R&D"], "time": {"zone": "UTC", "days": ["mon", "tue"]}, "owner_kind": ["person"]},
        {"department": ["R&D"], "time": {"zone": "UTC", "days": ["wed", "thu", "fri", "sat", "sun"]}},
        {"department": ["R&D"], "time": {"zone": "UTC"}, "owner_kind": ["device", "policy"]},
        {"department": ["R&D"], "owner_kind": ["person"]},
    ]
    found = find_unreachable(load(source).rules).unreachable
    assert found is not None
    assert (found.rule.name, found.shadowed_by) == ("r4", ("r0", "r1", "r2"))
    abroad = [replace(rule, window=None) if rule.name == "r3" else rule for rule in load(source).rules]
    assert find_unreachable(abroad).unreachable is not None
    source[2]["time"] = {"zone": "Europe/Berlin", "days": ["wed", "thu", "fri", "sat", "sun"]}
    assert find_unreachable(load(source).rules).unreachable is None  # windows of two zones are never held to cover


def test_the_work_is_bounded_and_what_was_not_looked_at_is_named() -> None:
    conditions = ("nas", "port", "ssid", "site", "agent_class")
    source: list[dict[str, object]] = [
        {name: [f"{name}-{at}-{other}" for other in range(3)] for name in conditions} for at in range(400)
    ]
    source.append({})
    found = find_unreachable(load(source).rules)
    assert found.unreachable is None
    assert found.unchecked == ("r400",)


def test_department_names_are_compared_in_one_form() -> None:
    assert canonical_department("BÜRO ") == canonical_department("Büro")
    text = text_of([{"department": ["Büro"]}, {"department": ["BU\u0308RO"]}])
    try:
        read_policy(text)
    except errors.RuleUnreachable as refusal:
        assert refusal.fields["shadowed_by"] == ["r0"]
    else:
        raise AssertionError("two spellings of one department")
