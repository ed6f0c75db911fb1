from __future__ import annotations

from datetime import timedelta

from radius import read_policy
from radius.impact import MAX_CHANGES, Past, Replay
from radius.rules import Asked
from tests.support import NOW

HEAD = "version = 2\n[vlans]\nlab = 20\npeople = 30\nonboarding = 70\nguest = 99\n"
LAB = "[[rule]]\nname = 'lab'\ndepartment = 'R&D'\nvlan = 'lab'\n"
PEOPLE = "[[rule]]\nname = 'people'\ndepartment = 'HR'\nvlan = 'people'\n"
NIGHT = (
    "[[rule]]\nname = 'night'\ndepartment = 'R&D'\nreject = 'no'\n"
    "time = { from = '20:00', to = '06:00', zone = 'UTC' }\n"
)
CURRENT = read_policy(HEAD + "[mac_bypass]\nvlan = 'onboarding'\n" + LAB + PEOPLE)
DRAFT = read_policy(HEAD + NIGHT + LAB + PEOPLE + "role = 'staff'\n")


def past(department: str, who: str, hour: int = 12) -> Past:
    return Past(
        NOW.replace(hour=hour), Asked("dual", "person", (department,)), who, f"owner of {who}", "02-00-00-00-00-01"
    )


def test_only_what_the_draft_changes_is_listed_with_its_reason() -> None:
    replay = Replay(CURRENT, DRAFT)
    logins = [past("R&D", "a"), past("R&D", "a", 22), past("R&D", "a", 23), past("HR", "b"), past("Kitchen", "c")]
    assert [replay.add(one) for one in logins] == [False, True, True, True, False]
    assert (replay.logins, replay.changed_logins, replay.changed_agents, replay.is_complete) == (5, 3, 2, True)
    first, second = replay.changes
    assert (first.who, first.before, first.after, first.logins) == ("a", "accept VLAN 20 (lab)", "reject", 2)
    assert first.why == "now rule lab: VLAN lab (20); then rule night: no"
    assert first.last == logins[2]
    assert second.after == "accept VLAN 30 (people), role staff"
    assert replay.transitions[first.before, "reject"] == 2


def test_a_draft_without_mac_bypass_shuts_those_out_who_came_by_it() -> None:
    replay = Replay(CURRENT, DRAFT)
    assert replay.add(Past(NOW, Asked("mac", nas="sw"), mac="02-00-00-00-00-07"))
    assert [(one.who, one.before, one.after) for one in replay.changes] == [
        ("02-00-00-00-00-07", "guest VLAN 70 (onboarding)", "reject")
    ]


def test_a_policy_against_itself_changes_nothing() -> None:
    replay = Replay(CURRENT, CURRENT)
    assert not any(replay.add(past(department, "x", hour)) for department in ("R&D", "HR", "") for hour in range(24))


def test_memory_is_bounded_and_says_so() -> None:
    replay = Replay(CURRENT, DRAFT)
    for at in range(3 * MAX_CHANGES):
        replay.add(past("HR", f"agent {at}")._replace(time=NOW + timedelta(seconds=at)))
    assert (replay.changed_logins, replay.changed_agents) == (3 * MAX_CHANGES, 3 * MAX_CHANGES)
    assert (len(replay.changes), replay.is_complete) == (MAX_CHANGES, False)
