from __future__ import annotations

from datetime import UTC, datetime

import pytest

from radius import read_policy
from radius.rules import Asked, ssid_of

HEAD = "version = 2\n[vlans]\na = 10\nguest = 99\n[[rule]]\nname = 'one'\nvlan = 'a'\n"
ASKED = Asked(
    "dual", "person", ("R&D", "HR"), "browser", "affirming", "standing", "sw-1", "ge-0/0/17", "campus", "north"
)
NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)  # a Wednesday; 14:00 in Berlin


def takes(condition: str, asked: Asked = ASKED, now: datetime = NOON) -> bool:
    return read_policy(HEAD + condition).match(asked, now) is not None


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("", True),
        ("credential = 'dual'", True),
        ("credential = ['single', 'proxy']", False),
        ("department = 'HR'", True),
        ("department = ['Kitchen', ' hr ']", True),
        ("department = 'Kitchen'", False),
        ("owner_kind = ['device', 'person']", True),
        ("owner_kind = 'device'", False),
        ("agent_class = ['browser', 'robot']", True),
        ("agent_class = 'brows'", False),
        ("tier = 'affirming'", True),
        ("tier = 'warning'", False),
        ("model = 'standing'", True),
        ("model = 'owner-mediated'", False),
        ("nas = 'sw-1'", True),
        ("nas = 'sw-*'", True),
        ("nas = ['sw-2', 'ap-*']", False),
        ("port = 'ge-0/0/*'", True),
        ("port = 'ge-0/0/1'", False),
        ("ssid = 'campus'", True),
        ("ssid = 'Campus'", False),
        ("site = ['north', 'south']", True),
        ("site = 'south'", False),
        ("site = 'north'\nnas = 'sw-*'\ndepartment = 'R&D'\ntier = 'affirming'", True),
        ("site = 'north'\nnas = 'sw-*'\ndepartment = 'R&D'\ntier = 'warning'", False),
    ],
)  # fmt: skip
def test_every_condition_takes_what_it_names_and_nothing_else(condition: str, holds: bool) -> None:
    assert takes(condition) is holds


@pytest.mark.parametrize("condition", ["agent_class = 'x'", "tier = 'warning'", "model = 'standing'", "nas = 'x*'",
                                       "port = 'x'", "ssid = 'x'", "site = 'x'", "owner_kind = 'person'"])  # fmt: skip
def test_what_is_not_known_fits_no_condition(condition: str) -> None:
    assert not takes(condition, Asked())


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """That hour of UTC, `day` days after Monday, 29 June 2026."""
    return datetime(2026, 6, 29 + day, hour, minute, tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "now", "holds"),
    [
        ("days = ['wed']", NOON, True),
        ("days = ['thu']", NOON, False),
        ("from = '14:00'", NOON, True),
        ("from = '14:01'", NOON, False),
        ("to = '14:00'", NOON, False),
        ("to = '14:01'", NOON, True),
        ("from = '22:00', to = '06:00', days = ['mon']", at(0, 20), True),  # Monday 22:00 in Berlin
        ("from = '22:00', to = '06:00', days = ['mon']", at(1, 3, 59), True),  # Tuesday 05:59
        ("from = '22:00', to = '06:00', days = ['mon']", at(1, 4), False),
        ("from = '22:00', to = '06:00', days = ['mon']", at(0, 3), False),  # Monday 05:00 is Sunday's night
        ("from = '22:00', to = '06:00', days = ['sun']", at(0, 3), True),
        ("days = ['tue']", at(0, 22), True),  # Tuesday 00:00 in Berlin, Monday in UTC
    ],
)  # fmt: skip
def test_a_window_is_read_off_the_clocks_of_its_zone(window: str, now: datetime, holds: bool) -> None:
    assert takes(f"time = {{ {window}, zone = 'Europe/Berlin' }}", now=now) is holds


@pytest.mark.parametrize(("now", "holds"), [
    (datetime(2026, 3, 27, 7, 30, tzinfo=UTC), True),  # Friday, 08:30 in winter time
    (datetime(2026, 3, 30, 7, 30, tzinfo=UTC), False),  # Monday after the change: 09:30
    (datetime(2026, 3, 30, 6, 30, tzinfo=UTC), True),
    (datetime(2026, 3, 27, 6, 30, tzinfo=UTC), False),
])  # fmt: skip
def test_a_window_follows_daylight_saving(now: datetime, holds: bool) -> None:
    assert takes("time = { from = '08:00', to = '09:00', zone = 'Europe/Berlin' }", now=now) is holds


@pytest.mark.parametrize("now", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
@pytest.mark.parametrize("zone", ["Pacific/Auckland", "America/Los_Angeles"])
def test_the_ends_of_the_calendar_are_outside_or_inside_but_never_an_error(now: datetime, zone: str) -> None:
    assert takes(f"time = {{ from = '00:01', zone = '{zone}' }}", now=now) in (True, False)


@pytest.mark.parametrize(("called", "ssid"), [
    ("02-00-00-00-00-FF:campus", "campus"), ("02:00:00:00:00:ff:campus", "campus"), ("0200000000ff:a:b", "a:b"),
    ("02-00-00-00-00-FF", ""), ("02-00-00-00-00-FF:", ""), ("campus", ""), ("", ""), ("sw:02-00-00-00-00-FF:x", ""),
])  # fmt: skip
def test_the_ssid_stands_behind_the_access_points_address(called: str, ssid: str) -> None:
    assert ssid_of(called) == ssid
