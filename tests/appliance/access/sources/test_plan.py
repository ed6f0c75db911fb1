from __future__ import annotations

import itertools

import pytest

from appliance.access.sources.plan import CONFLICTS, Person, make_plan
from appliance.store.owners import ABSENT, DISABLED, LDAP, LOCAL, PRESENT, REVOKED, Owner
from tests.support import NOW

_ids = itertools.count()


def owner(ref: str, key: str = "", *, source: str = LDAP, said: str = PRESENT, state: str = "active") -> Owner:
    id_ = f"id{next(_ids)}"
    return Owner(
        id_, f"spiffe://x/owner/{id_}", ref, ref, "person", "R&D", state, NOW, NOW,
        source=source, source_key=key, source_state=said,
    )  # fmt: skip


def person(ref: str, key: str, *, departments: tuple[str, ...] = ("R&D",), is_enabled: bool = True) -> Person:
    return Person(key, (ref,) if ref else (), (ref,), departments, is_enabled)


def test_an_owner_is_found_by_key_whatever_its_name() -> None:
    plan = make_plan(LDAP, [person("new", "k1")], [owner("old", "k1")])
    assert [(one.kind, one.before.ref, one.ref) for one in plan.changes] == [("changed", "old", "new")]
    assert not plan.added and not plan.conflicts


@pytest.mark.parametrize(
    ("people", "owners", "kind"),
    [
        ([person("a", "k2")], [owner("a", "k1")], "ref-of-other-person"),
        ([person("A", "k2")], [owner("a", "k1")], "ref-of-other-person"),
        ([person("a", "k1")], [owner("a", source=LOCAL)], "ref-of-other-source"),
        ([person("a", "k1")], [owner("a", source="scim")], "ref-of-other-source"),
        ([person("b", "k1"), person("b", "k2")], [owner("a", "k1"), owner("b", "k2")], "ref-taken"),
        ([person("a", "k1"), person("b", "k1")], [owner("a", "k1")], "key-twice"),
        ([person("a", "")], [], "key-missing"),
        ([person("", "k1")], [], "no-ref"),
        ([person("a", "k1"), person("A", "k2")], [], "ref-of-other-source"),
    ],
)
def test_what_does_not_fit_is_a_conflict_of_a_known_kind_and_takes_nobodys_place(
    people: list[Person], owners: list[Owner], kind: str
) -> None:
    plan = make_plan(LDAP, people, owners)
    assert [one.kind for one in plan.conflicts] == [kind]
    assert kind in CONFLICTS
    assert all(one.ref == one.before.ref for one in plan.changes)
    assert not plan.rekeyed


def test_two_who_swap_their_names_wait_for_each_other() -> None:
    plan = make_plan(LDAP, [person("b", "k1"), person("a", "k2")], [owner("a", "k1"), owner("b", "k2")])
    assert [one.kind for one in plan.conflicts] == ["ref-taken", "ref-taken"]
    assert [one.ref for one in plan.changes] == ["a", "b"], "their names for people change all the same"


def test_an_adopted_owner_is_found_by_its_ref_once_and_gets_the_key() -> None:
    adopted = owner("a", "", said=ABSENT, state="suspended")
    plan = make_plan(LDAP, [person("a", "k9")], [adopted])
    assert plan.rekeyed == {adopted.identifier: "k9"}
    assert [one.kind for one in plan.changes] == ["returned"]


def test_disabled_vanished_and_returned_are_told_apart() -> None:
    known = [
        owner("a", "k1"), owner("b", "k2"), owner("c", "k3", said=DISABLED, state="suspended"),
        owner("d", "k4", said=ABSENT, state="suspended"), owner("e", "k5", state=REVOKED),
        owner("f", "k6", said=ABSENT, state="suspended"),
    ]  # fmt: skip
    said = [person("a", "k1", is_enabled=False), person("c", "k3"), person("d", "k4"), person("e", "k5")]
    plan = make_plan(LDAP, said, known)
    assert {one.before.ref: one.kind for one in plan.changes} == {
        "a": "suspended",
        "b": "vanished",
        "c": "returned",
        "d": "returned",
    }
    assert (plan.registered, plan.unchanged) == (3, 1)


def test_a_revoked_owner_never_comes_back_and_keeps_its_name() -> None:
    same = make_plan(LDAP, [person("a", "k1")], [owner("a", "k1", state=REVOKED)])
    assert same.is_empty and not same.conflicts
    for revoked in (owner("a", "k2", state=REVOKED), owner("A", source=LOCAL, state=REVOKED)):
        plan = make_plan(LDAP, [person("a", "k1")], [revoked])
        assert plan.is_empty
        assert [one.kind for one in plan.conflicts] == ["ref-of-revoked"]


def test_the_order_of_several_values_is_no_change() -> None:
    one = owner("a", "k1")
    known = Owner(
        one.id, one.identifier, "a", "a", "person", "R&D", "active", NOW, NOW,
        ("HR",), source=LDAP, source_key="k1",
    )  # fmt: skip
    said = Person("k1", ("alias", "a"), ("Other", "a"), ("HR", "R&D"), is_enabled=True)
    assert make_plan(LDAP, [said], [known]).is_empty


def people_of(count: int, *, moved: int = 0) -> list[Person]:
    return [person(f"u{at}", f"k{at}", departments=("HR" if at < moved else "R&D",)) for at in range(count)]


def owners_of(count: int) -> list[Owner]:
    return [owner(f"u{at}", f"k{at}") for at in range(count)]


@pytest.mark.parametrize(
    ("registered", "read", "moved", "is_large"),
    [
        (100, 100, 10, False),
        (100, 100, 11, True),
        (100, 90, 0, False),
        (100, 89, 0, True),
        (100, 0, 0, True),
        (1, 0, 0, True),
        (5, 5, 1, False),
        (5, 5, 2, True),
        (0, 500, 0, False),
        (100, 200, 0, False),
        (100, 201, 0, True),
        (2, 12, 0, False),
        (2, 13, 0, True),
    ],
)
def test_a_tenth_is_the_limit_and_one_change_is_always_free(
    registered: int, read: int, moved: int, is_large: bool
) -> None:
    assert make_plan(LDAP, people_of(read, moved=moved), owners_of(registered)).is_large is is_large
