"""A device without a clock: it takes its time from vouchers, certificates and the registrar, never backwards."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.lower_bound import FILE, LowerBound, read_date
from appliance.proxy.renew import renewal_time
from appliance.proxy.state import ProxyState
from tests.appliance.proxy.campus import Campus, make_world, write_reply

DEAD = datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Stopped:
    """The clock of a machine without a battery: wrong wall time, right intervals."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return DEAD + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


def test_what_was_learned_counts_on_and_never_goes_back(tmp_path: Path) -> None:
    own = Stopped()
    clock = LowerBound(own, ProxyState.open(tmp_path))
    assert clock.now() == DEAD
    clock.learn(NOW)
    own.seconds = 60
    assert clock.now() == NOW + timedelta(seconds=60)
    clock.learn(NOW)
    clock.learn(None)
    assert clock.now() == NOW + timedelta(seconds=60)


def test_a_machine_whose_clock_is_later_is_believed(tmp_path: Path) -> None:
    own = Stopped()
    clock = LowerBound(own, ProxyState.open(tmp_path))
    clock.learn(NOW)
    own.seconds = (NOW - DEAD).total_seconds() + 3600
    assert clock.now() >= own.now()


@pytest.mark.req("B-148")
def test_it_survives_a_restart_and_is_written_once_an_hour_at_most(tmp_path: Path) -> None:
    state = ProxyState.open(tmp_path)
    clock = LowerBound(Stopped(), state)
    for minutes in range(0, 121, 5):
        clock.learn(NOW + timedelta(minutes=minutes))
        kept = datetime.fromisoformat((state.read(FILE) or b"").decode().strip())
        assert kept == NOW + timedelta(minutes=minutes - minutes % 60)
    assert LowerBound(Stopped(), state).now() == NOW + timedelta(hours=2)


@pytest.mark.parametrize("body", [b"", b"yesterday", b"\xff", b"2026-05-01T12:00:00"])
def test_a_bound_that_does_not_read_is_learned_again(tmp_path: Path, body: bytes) -> None:
    state = ProxyState.open(tmp_path)
    state.write(FILE, body)
    assert LowerBound(Stopped(), state).now() == DEAD


@pytest.mark.parametrize("value", ["", "soon", "Fri, 01 May 2026 12:00:00 -0000", "Fri, 99 May 99999 12:00:00 GMT"])
def test_a_date_header_that_does_not_read_says_nothing(value: str) -> None:
    assert read_date(value) is None


def test_a_date_header_is_read() -> None:
    assert read_date("Fri, 01 May 2026 12:00:00 GMT") == NOW


@pytest.mark.req("B-148", "B-323", "B-246")
@pytest.mark.parametrize("with_date", [True, False])
def test_a_device_without_clock_bootstraps_by_its_nonce_and_knows_the_time_afterwards(
    tmp_path: Path, with_date: bool
) -> None:
    world = make_world(tmp_path)
    state = ProxyState.open(tmp_path / "state")

    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            if with_date:
                campus.instead["/.well-known/est/cacerts"] = lambda call, client, proper: write_reply(
                    proper(), {"date": datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")}
                )
            before = datetime.now(UTC)
            own = Stopped()
            clock = LowerBound(own, state)
            settings = world.with_settings(registrar_url=campus.url, trust_clock=False)
            report = await Bootstrap(settings, state, clock, learn=clock.learn).run()
            assert report.outcome == "ok"
            assert b'"created-on"' not in campus.of("requestvoucher")[0].call.body
            # the voucher is from after the question, to the second
            assert before - timedelta(seconds=2) <= clock.now() <= datetime.now(UTC) + timedelta(seconds=1)
            # so the renewal is days away, not decades
            left = renewal_time(state.ldevid_chain()[0], 0.0) - clock.now()
            assert timedelta(days=10) < left < timedelta(days=31)

    asyncio.run(run())


@pytest.mark.req("B-135", "B-148")
def test_what_a_provisional_server_says_about_the_time_is_not_believed(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    state = ProxyState.open(tmp_path / "state")
    learned: list[datetime | None] = []

    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            campus.instead["/.well-known/brski/requestvoucher"] = lambda call, client, proper: write_reply(
                proper(), {"date": "Fri, 01 May 2099 12:00:00 GMT"}
            )
            settings = world.with_settings(registrar_url=campus.url, trust_clock=False)
            await Bootstrap(settings, state, Stopped(), learn=learned.append).run()

    asyncio.run(run())
    assert all(moment is None or moment.year < 2099 for moment in learned)
