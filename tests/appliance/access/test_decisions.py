"""The decision log: what gets a row, how a flood is kept small, how rows are found and explained again."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from appliance.access import decision_log
from appliance.access.decision_log import DecisionLog
from appliance.access.decision_rows import as_json, decision_of, row_of
from appliance.access.explaining import Explainer
from appliance.access.log_reader import DecisionReader
from appliance.access.policies import PolicyService
from appliance.access.repeats import BURST, MAX_KINDS, WINDOW_SECONDS, Repeats
from appliance.errors import NotFound, RequestMalformed, StoreUnavailable, TokenRequired
from appliance.store import decisions
from appliance.web.peer import Peer
from radius import AccessRequest
from radius.decide import refuse
from radius.dropped import Dropped, write_dropped
from radius.errors import HookMalformed
from tests.appliance.access.test_access_service import (
    ADMIN,
    AGENT,
    OID,
    OWNER,
    POLICY,
    access,
    call,
    hook_body,
    login,
    ready,
    set_owner,
    with_port,
)  # fmt: skip
from tests.radius.failures import RECORDED
from tests.radius.test_decide import POLICY_2, ask, with_owner
from tests.stores import open_store
from tests.support import NOW, FixedClock

ORIGIN = "spiffe://campus.example"


def readers(service, store, clock):
    reader = DecisionReader(store, service, clock, origin=ORIGIN, sender="campus1", pen=32473)
    return reader, Explainer(store, service, clock, owner_id_oid=OID)


def failure(code="tls-unknown-ca", mac="02-00-00-00-00-01", nas="sw1", **more):
    request = AccessRequest(nas=nas, calling_station=mac, **more)
    return refuse(request, code, "alert 48")


# ---- rows


@pytest.mark.parametrize(
    "decision",
    [
        ask(),
        ask(policy=POLICY_2),
        ask(facts=with_owner(state="suspended")),
        ask(facts=with_owner(departments=('%{exec:id}"\n\\', "R&D"))),
        failure(),
    ],
)
def test_a_decision_comes_back_from_its_row(decision):
    stored = dict(zip(decisions.COLUMNS, row_of(decision, NOW), strict=True))
    row = {**stored, "id": 1, "time": NOW, "trace": json.loads(stored["trace"])}
    found = decision_of(row)
    request = decision.request
    assert found._replace(request=request, asked=decision.asked) == decision
    assert (found.request.nas, found.request.calling_station) == (request.nas, request.calling_station)
    assert (found.request.credential is None) == (request.credential is None)
    assert found.asked == decision.asked
    assert as_json(row)["trace"]["steps"][0]["stage"] == "tls"


def test_a_mac_address_is_kept_in_one_spelling():
    for spelling in ("02:00:00:00:00:fe", "0200.0000.00FE", "02-00-00-00-00-FE"):
        assert row_of(failure(mac=spelling), NOW)[decisions.COLUMNS.index("mac")] == "02-00-00-00-00-FE"
    assert row_of(failure(mac="printer"), NOW)[decisions.COLUMNS.index("mac")] == "printer"
    assert row_of(failure(mac=""), NOW)[decisions.COLUMNS.index("mac")] is None


# ---- floods


def test_the_first_failure_is_a_row_and_the_others_of_a_minute_are_one_more():
    repeats = Repeats()
    assert repeats.is_news(failure(), 0.0)
    assert [repeats.is_news(failure(), float(second)) for second in range(1, 50)] == [False] * 49
    assert list(repeats.due(WINDOW_SECONDS - 1)) == []
    assert [(one.reason_code, times) for one, times in repeats.due(WINDOW_SECONDS)] == [("tls-unknown-ca", 49)]
    assert list(repeats.due(3 * WINDOW_SECONDS)) == []
    assert repeats.is_news(failure(), 4 * WINDOW_SECONDS, times=3)
    assert not repeats.is_news(failure(), 4 * WINDOW_SECONDS, times=5)
    assert [times for _, times in repeats.due(5 * WINDOW_SECONDS)] == [7]


def test_another_cause_nas_or_device_is_news():
    repeats = Repeats()
    for one in (failure(), failure("eap-timeout"), failure(nas="sw2"), failure(mac="02-00-00-00-00-02")):
        assert repeats.is_news(one, 0.0)


@pytest.mark.slow
def test_a_flood_of_strangers_makes_a_bounded_number_of_rows():
    repeats, rows, counted = Repeats(), 0, 0
    for packet in range(200_000):  # twenty minutes of a new address each time
        now = packet * 0.006
        stranger = failure(
            "nas-unknown", mac="", nas="", nas_address=f"10.{packet >> 16}.{packet >> 8 & 255}.{packet & 255}"
        )
        rows += repeats.is_news(stranger, now)
        if packet % 100 == 0:
            due = list(repeats.due(now))
            rows += len(due)
            counted += sum(times for _, times in due)
    assert rows <= BURST + 20 * (MAX_KINDS + 30)
    rest = sum(times for _, times in repeats.due(1e9, everything=True))
    assert 200_000 - MAX_KINDS * 21 - BURST <= counted + rest <= 200_000
    assert len(repeats._kinds) + len(repeats._rest) == 0


def test_a_flood_at_the_log_costs_few_rows_and_decisions_are_never_held_back(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, clock):
            await ready(service, store)
            for packet in range(5000):
                request = AccessRequest(nas_address=f"192.0.2.{packet % 250}", calling_station=f"x{packet}")
                service.failed(request, refuse(request, "nas-unknown", "a packet"))
            for _ in range(300):
                service.authorize(login(nas="sw1"))
            await service._log.flush()
            rows = await store.read(lambda tx: decisions.newest(tx, limit=10_000))
            assert sum(row["reason"] == "rule-matched" for row in rows) == 300
            assert sum(row["reason"] == "nas-unknown" for row in rows) <= BURST
            clock.advance(61)
            service._log.tell_repeats()
            await service._log.flush()
            (last,) = [row for row in await store.read(lambda tx: decisions.newest(tx, limit=1))]
            assert last["times"] == 5000 - BURST
            assert "of many senders" in last["trace"]["steps"][0]["evidence"]

    asyncio.run(story())


def test_logins_without_a_verified_certificate_are_bounded_too(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await PolicyService(store, service).publish(
                "version = 2\n[vlans]\nonboarding = 70\nguest = 99\n[mac_bypass]\nvlan = 'onboarding'\n", "", ADMIN
            )
            for device in range(1000):
                mac = f"02-00-00-00-{device >> 8:02X}-{device & 255:02X}"
                request = AccessRequest(nas="sw", calling_station=mac, method="mac-bypass", transport="radsec")
                assert service.authorize(request).vlan == 70
            await service._log.flush()
            assert len(await store.read(lambda tx: decisions.newest(tx, limit=10_000))) <= BURST

    asyncio.run(story())


def test_old_rows_and_too_many_rows_go(tmp_path):
    async def story():
        clock = FixedClock()
        store = open_store(f"sqlite:///{tmp_path / 'a.db'}", clock)
        log = DecisionLog(store, clock, keep_days=30, keep_rows=50)
        for _ in range(40):
            log.put(ask())
        await log.flush()
        clock.advance(31 * 86_400)
        for _ in range(80):
            log.put(ask())
        await log.flush()
        await log.prune()
        rows = await store.read(lambda tx: decisions.newest(tx, limit=1000))
        assert [row["id"] for row in rows] == list(range(71, 121))
        store.close()

    asyncio.run(story())


@pytest.mark.parametrize("goes", ["everything", "the newest alone"])
def test_an_id_never_comes_again_whatever_was_pruned(tmp_path, goes):
    async def story():
        clock = FixedClock()
        store = open_store(f"sqlite:///{tmp_path / 'a.db'}", clock)
        log = DecisionLog(store, clock, keep_days=30, keep_rows=50)

        async def decide(count):
            for _ in range(count):
                log.put(ask())
            await log.flush()

        async def ids():
            return [row["id"] for row in await store.read(lambda tx: decisions.newest(tx, limit=100))]

        if goes == "the newest alone":  # the clock was set back in between
            clock.advance(20 * 86_400)
            await decide(3)
            clock.advance(-20 * 86_400)
            await decide(3)
        else:
            await decide(6)
        clock.advance(31 * 86_400)
        for _ in range(2):
            await log.prune()
        kept = await ids()
        assert kept == ([1, 2, 3] if goes == "the newest alone" else [])
        assert await store.read(decisions.last) == 6
        store.close()

        store = open_store(f"sqlite:///{tmp_path / 'a.db'}", clock)
        log = DecisionLog(store, clock, keep_days=30, keep_rows=50)
        await decide(3)
        await decide(2)
        assert await ids() == [*kept, 7, 8, 9, 10, 11]
        behind = await store.read(lambda tx: decisions.page(tx, after=6, since=NOW - timedelta(days=9), count=9))
        assert [row["id"] for row in behind] == [7, 8, 9, 10, 11]
        store.close()

    asyncio.run(story())


# ---- what FreeRADIUS tells


def told(said, **attributes):
    body = hook_body() | {"Module-Failure-Message": {"type": "string", "value": said}}
    body |= {"Tmp-String-0": {"type": "string", "value": ["sw1"]}, "EAP-Type": {"type": "string", "value": ["TLS"]}}
    return body | attributes


@pytest.mark.parametrize(("name", "code"), [
    ("expired", "tls-certificate-expired"), ("stranger", "tls-unknown-ca"),
    ("supplicant with another root", "tls-refused-by-supplicant"), ("PEAP", "eap-method-refused"),
])  # fmt: skip
def test_what_freeradius_tells_of_a_failure_becomes_a_row(tmp_path, name, code):
    async def story():
        async with access(tmp_path) as (service, store, _):
            routes = await with_port(service, store)
            reply = routes.fail(call(told(RECORDED[name])), Peer(), {})
            assert (reply.status, reply.body) == (204, b"")
            await service.flush()
            (row,) = await store.read(lambda tx: decisions.newest(tx, limit=9))
            assert (row["verdict"], row["reason"], row["nas"], row["serial"]) == ("reject", code, "sw1", "beef")
            assert row["trace"]["user_name"] == "%{exec:touch /tmp/x}"

    asyncio.run(story())


@pytest.mark.parametrize("token", ["", "wrong"])
def test_failures_are_taken_from_radius_servers_alone(tmp_path, token):
    async def story():
        async with access(tmp_path) as (service, store, _):
            routes = await with_port(service, store)
            with pytest.raises(TokenRequired):
                routes.fail(call(told(RECORDED["expired"]), token), Peer(), {})
            with pytest.raises(HookMalformed):
                routes.fail(call({"a": 1}), Peer(), {})
            await service.flush()
            assert await store.read(lambda tx: decisions.newest(tx, limit=9)) == []

    asyncio.run(story())


def test_dropped_packets_that_a_supervisor_elsewhere_counted_become_rows_with_their_number(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, clock):
            routes = await with_port(service, store)
            wrong, many = (
                Dropped("radius-secret-wrong", "sw1", "192.0.2.1"),
                Dropped("nas-unknown", "", "192.0.2.9", True),
            )
            for _ in range(2):
                reply = routes.fail(call(json.loads(write_dropped({wrong: 5, many: 1000}))), Peer(), {})
                assert (reply.status, reply.body) == (204, b"")
            clock.advance(61)
            service._log.tell_repeats()
            await service.flush()
            rows = await store.read(lambda tx: decisions.newest(tx, limit=9))
            assert sorted((row["reason"], row["nas"], row["times"] or 1) for row in rows) == [
                ("nas-unknown", "", 1), ("nas-unknown", "", 1999),
                ("radius-secret-wrong", "sw1", 1), ("radius-secret-wrong", "sw1", 9),
            ]  # fmt: skip
            assert all(row["verdict"] == "reject" for row in rows)
            with pytest.raises(TokenRequired):
                routes.fail(call(json.loads(write_dropped({wrong: 1})), "wrong"), Peer(), {})

    asyncio.run(story())


def test_lines_of_freeradius_about_dropped_packets_become_rows(tmp_path):
    async def story():
        from tests.radius.failures import LOG_LINES

        async with access(tmp_path) as (service, store, _):
            for line in (*LOG_LINES.values(), "Info: Ready to process requests"):
                service.said_by_freeradius(line)
            await service.flush()
            rows = await store.read(lambda tx: decisions.newest(tx, limit=9))
            assert [(row["reason"], row["nas"]) for row in rows] == [
                ("nas-unknown", "127.0.0.1"),
                ("radius-secret-wrong", "switch-1"),
            ]

    asyncio.run(story())


# ---- finding and explaining


@asynccontextmanager
async def filled(tmp_path):
    async with access(tmp_path, stale_seconds=1e9) as (service, store, clock):
        await ready(service, store)
        service.authorize(login(nas="sw1", calling_station="02-00-00-00-00-01"))
        clock.advance(3600)
        service.authorize(login(nas="sw2", calling_station="02:00:00:00:00:02"))
        await store.write(lambda tx: set_owner(tx, "HR"))
        service.authorize(login(nas="sw1"))
        service.failed(login(nas="sw1"), failure("eap-timeout", mac="02-00-00-00-00-09"))
        yield service, store, clock


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, [1, 2, 3, 4]),
        ({"limit": 2}, [3, 4]),
        ({"limit": 2, "before": 3}, [1, 2]),
        ({"after": 2}, [3, 4]),
        ({"agent": AGENT}, [1, 2, 3]),
        ({"agent": AGENT.rpartition("/")[2]}, [1, 2, 3]),
        ({"mac": "0200.0000.0002"}, [2]),
        ({"nas": "sw1"}, [1, 3, 4]),
        ({"verdict": "reject"}, [4]),
        ({"reason": "rule-matched", "nas": "sw1"}, [1, 3]),
        ({"since": "30m"}, [2, 3, 4]),
        ({"until": "30m"}, [1]),
        ({"agent": AGENT, "mac": "02-00-00-00-00-01"}, [1]),
        ({"agent": "nobody"}, []),
    ],
)
def test_rows_are_found_by_what_is_known_of_them(tmp_path, filters, ids):
    async def story():
        async with filled(tmp_path) as (service, store, clock):
            reader, _ = readers(service, store, clock)
            assert [row["id"] for row in (await reader.search(**filters))["rows"]] == ids

    asyncio.run(story())


@pytest.mark.parametrize("filters", [{"limit": 0}, {"limit": 10_001}, {"verdict": "yes"}, {"reason": "x"},
                                     {"since": "yesterday"}, {"before": -1}])  # fmt: skip
def test_a_search_that_cannot_be_meant_is_refused(tmp_path, filters):
    async def story():
        async with filled(tmp_path) as (service, store, clock):
            with pytest.raises(RequestMalformed):
                await readers(service, store, clock)[0].search(**filters)
            with pytest.raises(NotFound):
                await readers(service, store, clock)[0].search(owner="nobody")

    asyncio.run(story())


def test_a_search_without_an_index_walks_a_bounded_part_and_says_where_it_stopped(tmp_path, monkeypatch):
    async def story():
        monkeypatch.setattr(decisions, "WALK", 2)
        async with filled(tmp_path) as (service, store, clock):
            reader, _ = readers(service, store, clock)
            first = await reader.search(verdict="accept")
            assert ([row["id"] for row in first["rows"]], first["next"]) == ([3], 3)
            second = await reader.search(verdict="accept", before=first["next"])
            assert ([row["id"] for row in second["rows"]], second["next"]) == ([1, 2], None)

    asyncio.run(story())


def test_a_past_row_is_explained_with_what_the_policy_says_now(tmp_path):
    async def story():
        async with filled(tmp_path) as (service, store, clock):
            _, explainer = readers(service, store, clock)
            await PolicyService(store, service).publish(POLICY.replace("rnd = 20", "rnd = 21"), "", ADMIN)
            found = await explainer.row(1)
            assert (found["vlan"], found["rule"]) == ("20", "research")
            assert "accept  VLAN 20 (rnd)  by rule research  policy revision 1" in found["text"]
            assert found["policy_now"] == "accept VLAN 21 (rnd): rule research: VLAN rnd (21)"
            assert (await explainer.row(4))["policy_now"] == ""
            with pytest.raises(NotFound):
                await explainer.row(99)

    asyncio.run(story())


def test_a_draft_is_replayed_against_the_logins_of_the_last_days(tmp_path):
    async def story():
        async with filled(tmp_path) as (service, store, clock):
            _, explainer = readers(service, store, clock)
            draft = POLICY.replace("version = 1", "version = 2").replace('vlan = "rnd"', 'vlan = "rnd"\nnas = "sw2"')
            found = await explainer.impact(draft, 7)
            assert (found["logins"], found["logins_changed"], found["agents_changed"]) == (3, 1, 1)
            assert found["logins_without_policy"] == 1
            (change,) = found["changes"]
            assert (change["who"], change["owner"], change["nas"]) == (AGENT, OWNER, "sw1")
            assert (change["from"], change["to"]) == ("accept VLAN 20 (rnd)", "guest VLAN 99 (guest)")
            assert change["why"].startswith("now rule research: VLAN rnd (20); then no rule matches")
            clock.advance(86_400 * 2)
            assert (await explainer.impact(draft, 1))["logins"] == 0
            with pytest.raises(RequestMalformed):
                await explainer.impact(draft, 0)

    asyncio.run(story())


def test_the_log_is_exported_page_by_page_in_order(tmp_path, monkeypatch):
    async def story():
        from appliance.access import log_reader

        monkeypatch.setattr(log_reader, "EXPORT_PAGE", 3)
        async with filled(tmp_path) as (service, store, clock):
            reader, _ = readers(service, store, clock)
            first = await reader.export("jsonl", 0, "")
            assert [json.loads(line)["id"] for line in first["lines"]] == [1, 2, 3]
            second = await reader.export("syslog", first["next"], "")
            assert len(second["lines"]) == 1
            assert second["next"] is None
            assert [json.loads(one)["id"] for one in (await reader.export("jsonl", 0, "30m"))["lines"]] == [2, 3, 4]
            with pytest.raises(RequestMalformed):
                await reader.export("xml", 0, "")

    asyncio.run(story())


def test_time_passes_in_windows_of_the_policy(tmp_path):
    async def story():
        async with access(tmp_path, stale_seconds=1e9) as (service, store, clock):
            await ready(service, store)
            hour = clock.now() + timedelta(minutes=30)
            window = f"time = {{ from = '{hour:%H:%M}', to = '{hour + timedelta(hours=1):%H:%M}', zone = 'UTC' }}\n"
            text = POLICY.replace("version = 1", "version = 2").replace('vlan = "rnd"\n', f'vlan = "rnd"\n{window}')
            await PolicyService(store, service).publish(text, "", ADMIN)
            assert service.authorize(login()).verdict == "guest"
            clock.advance(31 * 60)
            assert service.authorize(login()).vlan == 20

    asyncio.run(story())


def test_a_row_that_cannot_be_written_takes_no_other_with_it(tmp_path, monkeypatch, caplog) -> None:
    add = decisions.add

    def broken(tx, rows):
        if any("sw3" in row for row in rows):
            raise ValueError("cannot be written")
        add(tx, rows)

    monkeypatch.setattr(decisions, "add", broken)

    async def story() -> None:
        store = open_store(f"sqlite:///{tmp_path / 'a.db'}", FixedClock())
        log = DecisionLog(store, FixedClock(), keep_days=1, keep_rows=1000)
        for at in range(7):
            log._queue.append(row_of(failure(nas=f"sw{at}"), NOW))
        await log.flush()
        assert not log._queue
        found = await store.read(lambda tx: decisions.newest(tx, limit=100))
        assert {row["nas"] for row in found} == {"sw0", "sw1", "sw2", "sw4", "sw5", "sw6"}
        store.close()

    asyncio.run(story())
    assert caplog.text.count("event=decision-not-written") == 1


@pytest.mark.parametrize("is_mended", [True, False])
def test_a_mistake_of_ours_that_passes_takes_no_row_away_and_ends_nothing(
    tmp_path, monkeypatch, caplog, is_mended
) -> None:
    monkeypatch.setattr("appliance.keeping.AGAIN_SECONDS", 0.0 if is_mended else 60.0)
    add, met = decisions.add, []

    def mistaken(tx, rows):
        met.append(len(rows))
        if is_mended and len(met) > 2:
            return add(tx, rows)
        raise TypeError("a bug")

    async def story() -> None:
        async with access(tmp_path) as (service, store, _):
            monkeypatch.setattr(decisions, "add", mistaken)
            for at in range(3):
                service._log.put(failure(nas=f"sw{at}"))
            with pytest.raises(TypeError):  # a reader hears that it would not see everything
                await service.flush()
            if not is_mended:
                await service.stop()
                assert "event=decision-log-not-written" in caplog.text
                return
            async with asyncio.timeout(60):  # by the task that met the mistake
                while len(found := await store.read(lambda tx: decisions.newest(tx, limit=100))) < 3:
                    await asyncio.sleep(0.02)
            assert [row["nas"] for row in found] == ["sw0", "sw1", "sw2"]

    asyncio.run(story())


def test_rows_that_somebody_else_is_writing_are_in_the_log_when_a_reader_has_flushed_it(tmp_path, monkeypatch) -> None:
    async def story() -> None:
        store = open_store(f"sqlite:///{tmp_path / 'a.db'}", FixedClock())
        log = DecisionLog(store, FixedClock(), keep_days=1, keep_rows=1000)
        write, begun, may_go = store.write, asyncio.Event(), asyncio.Event()

        async def slow(do, **how):
            begun.set()
            await may_go.wait()
            return await write(do, **how)

        monkeypatch.setattr(store, "write", slow)
        log._queue.append(row_of(failure(), NOW))
        first = asyncio.create_task(log.flush())
        await begun.wait()
        first.cancel()  # its caller has gone; the rows are on their way all the same
        reader = asyncio.create_task(log.flush())
        await asyncio.sleep(0.05)
        assert not reader.done()
        may_go.set()
        await reader
        assert len(await store.read(lambda tx: decisions.newest(tx, limit=100))) == 1
        store.close()

    asyncio.run(story())


def test_what_was_decided_while_the_store_was_away_stays_and_the_oldest_go(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(decision_log, "MAX_QUEUED", 5)

    async def story() -> None:
        store = open_store(f"sqlite:///{tmp_path / 'a.db'}", FixedClock())
        log = DecisionLog(store, FixedClock(), keep_days=1, keep_rows=1000)
        write = store.write

        async def away(do, **how):
            for at in (5, 6):
                log._queue.append(row_of(failure(nas=f"sw{at}"), NOW))
            raise StoreUnavailable("for a moment")

        for at in range(5):
            log._queue.append(row_of(failure(nas=f"sw{at}"), NOW))
        monkeypatch.setattr(store, "write", away)
        with pytest.raises(StoreUnavailable):
            await log.flush()
        monkeypatch.setattr(store, "write", write)
        await log.flush()
        found = await store.read(lambda tx: decisions.newest(tx, limit=100))
        assert [row["nas"] for row in found] == ["sw2", "sw3", "sw4", "sw5", "sw6"]
        store.close()

    asyncio.run(story())
