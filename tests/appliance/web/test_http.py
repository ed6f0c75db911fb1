"""HTTP on the wire: framing, limits, deadlines, refusals."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import psutil
import pytest

from appliance.web.http import serialise
from appliance.web.limits import Bucket, Limits
from appliance.web.server import Timing
from est.exchange import Reply
from tests.appliance.web.front import Client, Seen, get, listening, post
from tests.support import FixedClock, stretched

QUICK = Timing(header_seconds=0.4, keepalive_seconds=0.6, handshake_seconds=0.5, stall_seconds=0.6)


@pytest.mark.req("B-148")
def test_every_answer_says_what_time_it_is() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            begun = datetime.now(UTC)
            for request in (post("/echo", b"x"), get("/nowhere")):
                answer = await client.ask(request)
                told = parsedate_to_datetime(answer.headers["date"])
                assert begun - timedelta(seconds=1) <= told <= datetime.now(UTC)
            await client.close()

    asyncio.run(run())


@pytest.mark.req("E-12")
def test_requests_on_a_kept_connection_are_answered_in_order() -> None:
    async def run() -> None:
        seen = Seen()
        async with listening(seen=seen) as (listener, port):
            client = await Client.connect(port)
            for number in range(5):
                answer = await client.ask(post("/echo", b"%d" % number, "Content-Type: Application/X; a=b"))
                assert (answer.status, answer.body) == (200, b"%d" % number)
                assert answer.headers["x-seen"] == "application/x"
                assert answer.headers["content-length"] == "1"
                assert "transfer-encoding" not in answer.headers and "connection" not in answer.headers
            assert listener.connections == 1
            await client.close()
        assert len({peer.connection_id for peer in seen.peers}) == 1
        assert seen.calls[0].headers["x-request-id"] != seen.calls[1].headers["x-request-id"]

    asyncio.run(run())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            await client.send(b"".join(post("/echo", b"%d" % number) for number in range(8)))
            assert [(await client.read()).body for _ in range(8)] == [b"%d" % number for number in range(8)]

    asyncio.run(run())


def test_a_flood_of_pipelined_requests_is_cut() -> None:
    async def run() -> None:
        async with listening() as (listener, port):
            client = await Client.connect(port)
            await client.send(get("/slow") + get("/who") * 2000)
            await client.close()
            async with asyncio.timeout(60):
                while listener.connections:
                    await asyncio.sleep(0.02)

    asyncio.run(run())


@pytest.mark.slow
def test_bodies_behind_a_slow_request_are_read_no_further_than_a_limit() -> None:
    async def run() -> None:
        async with listening() as (listener, port):
            client = await Client.connect(port)
            bodies = [bytes((at,)) * 60_000 for at in range(12)]
            await client.send(get("/patient"))
            sending = asyncio.create_task(client.send(b"".join(post("/echo", body) for body in bodies)))
            async with asyncio.timeout(60):
                while not any(one._held for one in listener._connections):
                    await asyncio.sleep(0.01)
            (connection,) = listener._connections
            assert connection.transport is not None and not connection.transport.is_reading()
            assert sum(len(request.body) for request in connection._waiting) <= 2 * 65_536
            assert (await client.read()).status == 503
            assert [(await client.read()).body for _ in bodies] == bodies
            await sending
            assert connection.transport.is_reading()

    asyncio.run(run())


@pytest.mark.slow
def test_a_header_without_end_behind_a_slow_request_is_cut() -> None:
    async def run() -> None:
        async with listening() as (listener, port):
            client = await Client.connect(port)
            await client.send(get("/patient") + b"GET /who HTTP/1.1\r\nHost: x\r\nA: ")
            for _ in range(20):
                await client.send(b"b" * 1024)
                await asyncio.sleep(0.01)
            answer = await client.read()
            assert (answer.status, answer.headers["connection"]) == (503, "close")
            assert await client.is_closed()

    asyncio.run(run())


def test_an_answer_to_bytes_behind_a_whole_body_is_not_lost_to_a_reset() -> None:
    async def run() -> None:
        async with listening() as (listener, port):
            client = await Client.connect(port)
            head, body = post("/echo", b"ab").split(b"\r\n\r\n")
            await client.send(head + b"\r\n\r\n")
            async with asyncio.timeout(60):
                while not any(one.busy for one in listener._connections):
                    await asyncio.sleep(0.01)
            answer = await client.ask(body + b"\x00\x01")
            assert (answer.status, answer.headers["connection"]) == (400, "close")
            assert await client.is_closed()
            (connection,) = listener._connections
            await client.send(b"more")
            async with asyncio.timeout(60):
                while connection._discarded < 4:
                    await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_body_may_come_in_drips_and_in_chunks() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            for byte in post("/echo", b"abc"):
                await client.send(bytes((byte,)))
            assert (await client.read()).body == b"abc"
            await client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
            await asyncio.sleep(0.05)
            answer = await client.ask(b"1\r\nc\r\n0\r\n\r\n")
            assert answer.body == b"abc" and "transfer-encoding" not in answer.headers

    asyncio.run(run())


def test_head_is_get_without_the_body() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            answer = await client.ask(get("/who", method="HEAD"), head=True)
            assert (answer.status, answer.headers["content-length"]) == (200, "1")
            assert (await client.ask(get("/who"))).status == 200

    asyncio.run(run())


def test_paths_have_parameters() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            assert (await client.ask(get("/things/a.b.txt"))).body == b"{'name': 'a.b'}"
            assert (await client.ask(get("/docs/a/b"))).body == b"{'path': 'a/b'}"
            for path in ("/things/a/b.txt", "/things/.txt", "/docs", "/who/", "//who", "/things/%2e%2e.txtx"):
                assert (await client.ask(get(path))).status == 404, path
            assert (await client.ask(get("/who?a=b"))).status == 200

    asyncio.run(run())


@pytest.mark.req("E-11")
def test_an_unknown_method_is_405_with_allow() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            answer = await client.ask(get("/echo"))
            assert (answer.status, answer.headers["allow"]) == (405, "POST")
            answer = await client.ask(post("/who", b""))
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
            for method in ("DELETE", "OPTIONS", "PUT", "PATCH", "TRACE"):
                assert (await client.ask(get("/who", method=method))).status == 405

    asyncio.run(run())


@pytest.mark.req("E-138")
def test_refusals_are_problem_json_here_and_plain_text_under_well_known() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            answer = await client.ask(get("/refused"))
            problem = json.loads(answer.body)
            assert answer.headers["content-type"] == "application/problem+json"
            assert (answer.status, problem["reason"], problem["type"]) == (404, "not-found", "/problems/not-found")
            assert (problem["detail"], problem["name"], problem["status"]) == ("no such thing", "x", 404)
            assert problem["request_id"] == answer.headers["x-request-id"]
            answer = await client.ask(get("/.well-known/est/fullcmc"))
            assert answer.status == 404 and answer.headers["content-type"].startswith("text/plain")
            assert answer.body.count(b"\n") == 1 and b"route-unknown" in answer.body

    asyncio.run(run())


def test_our_own_fault_is_500_without_detail_and_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            for path in ("/broken", "/split"):
                answer = await client.ask(get(path))
                assert answer.status == 500
                assert b"1234" not in answer.body and b"evil" not in answer.body and "x-evil" not in answer.headers
                assert json.loads(answer.body)["request_id"] in caplog.text
            assert (await client.ask(get("/who"))).status == 200

    asyncio.run(run())
    assert "the secret is 1234" in caplog.text and "Traceback" in caplog.text


def test_an_endpoint_that_overruns_its_deadline_is_cut_with_503() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            begun = time.monotonic()
            answer = await client.ask(get("/slow"))
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert time.monotonic() - begun < 25  # it would have slept for 30
            assert (await client.ask(get("/who"))).status == 200

    asyncio.run(run())


@pytest.mark.req("B-223")
def test_an_answer_may_close_the_connection() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            answer = await client.ask(get("/bye"))
            assert (answer.status, answer.headers["connection"]) == (401, "close")
            assert await client.is_closed()
            client = await Client.connect(port)
            assert (await client.ask(get("/who", "Connection: close"))).headers["connection"] == "close"
            assert await client.is_closed()
            client = await Client.connect(port)
            assert (await client.ask(b"GET /who HTTP/1.0\r\n\r\n")).headers["connection"] == "close"
            assert await client.is_closed()

    asyncio.run(run())


@pytest.mark.req("E-201")
@pytest.mark.parametrize("size", [65_537, 1_000_000])
def test_an_announced_oversize_body_is_413_before_it_is_sent(size: int) -> None:
    async def run() -> None:
        seen = Seen()
        async with listening(seen=seen) as (_, port):
            client = await Client.connect(port)
            answer = await client.ask(f"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
            assert answer.status == 413 and answer.headers["connection"] == "close"
            client = await Client.connect(port)
            answer = await client.ask(post("/echo", bytes(size)))
            assert answer.status == 413
            if "connection" in answer.headers:
                assert await client.is_closed()
            else:  # all of it was there already and was thrown away
                assert (await client.ask(get("/who", "Connection: close"))).status == 200
        assert not [call for call in seen.calls if call.method == "POST"]

    asyncio.run(run())


def test_a_body_of_unknown_length_is_cut_at_the_limit() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            await client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            try:
                for _ in range(200):
                    await client.send(b"1000\r\n" + bytes(4096) + b"\r\n")
            except ConnectionError:
                pass
            assert (await client.read()).status == 413

    asyncio.run(run())


def test_the_largest_body_allowed_is_read() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            assert len((await client.ask(post("/echo", bytes(65_536)))).body) == 65_536

    asyncio.run(run())


MALFORMED = {
    "rubbish": b"\x00\x01\x02 rubbish\r\n\r\n",
    "tls on a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "no version": b"GET /who\r\n\r\n",
    "no version but a host": b"GET /who\r\nHost: x\r\n\r\n",
    "version 2": b"GET /who HTTP/2.0\r\nHost: x\r\n\r\n",
    "version 3": b"GET /who HTTP/3.0\r\nHost: x\r\n\r\n",
    "unknown method": b"BREW /who HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"GET /who HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /who HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "two lengths": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two equal lengths": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "length and chunks": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "length with a sign": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na",
    "length in hex": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\na",
    "huge length": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n",
    "bad chunk": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n",
    "trailer with a host": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: y\r\n\r\n",
    "other coding": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "space before colon": b"GET /who HTTP/1.1\r\nHost : x\r\n\r\n",
    "folded header": b"GET /who HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "nul in header": b"GET /who HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
    "bare line feed": b"GET /who HTTP/1.1\nHost: x\n\n",
    "long line": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long header": b"GET /who HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n",
    "many headers": b"GET /who HTTP/1.1\r\nHost: x\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(20_000)) + b"\r\n",
    "absolute target": b"GET http://other/who HTTP/1.1\r\nHost: x\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "connect": b"CONNECT other:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "expect": b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
    "upgrade": b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "upgrade to http 2": b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "http 2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "compressed": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\na",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_http_is_refused_in_our_own_words(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        seen = Seen()
        async with listening(seen=seen) as (_, port):
            client = await Client.connect(port)
            answer = await client.ask(MALFORMED[name])
            assert 400 <= answer.status < 500, answer
            assert b"aiohttp" not in answer.body.lower() and "server" not in answer.headers
            assert b"<html" not in answer.body
            assert answer.headers["content-type"].split(";")[0] in ("application/problem+json", "text/plain")
            if answer.status not in (404, 405, 415):
                assert await client.is_closed()
            assert (await (await Client.connect(port)).ask(get("/who"))).status == 200
        assert len(seen.calls) == 1

    caplog.set_level(logging.INFO)
    asyncio.run(run())
    assert "Traceback" not in caplog.text


def test_random_bytes_never_harm_the_server(caplog: pytest.LogCaptureFixture) -> None:
    dice = random.Random(1)
    good = post("/hasty", b"hello", "Content-Type: text/plain", "A: b")

    def mutant() -> bytes:
        data = bytearray(good)
        for _ in range(dice.randint(1, 6)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        return bytes(data)

    async def one(port: int) -> None:
        client = await Client.connect(port)
        try:
            await client.send(mutant())
            client.writer.write_eof()
            raw = await asyncio.wait_for(client.reader.read(), 60)
            assert not raw or raw.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), raw
        except ConnectionError:
            pass
        finally:
            await client.close()

    async def run() -> None:
        async with listening() as (listener, port):
            for _ in range(20):
                await asyncio.gather(*(one(port) for _ in range(20)))
            async with asyncio.timeout(60):
                while listener.connections:
                    await asyncio.sleep(0.02)

    asyncio.run(run())
    assert "Traceback" not in caplog.text


@pytest.mark.req("E-17")
def test_header_blocks_of_answers_are_short() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            client = await Client.connect(port)
            for data in (get("/who"), get("/refused"), get("/nothing"), get("/echo"), get("/broken")):
                assert (await client.ask(data)).head_bytes < 1024

    asyncio.run(run())


@pytest.mark.req("E-202")
def test_a_dripped_header_is_cut_at_its_deadline() -> None:
    async def run() -> None:
        async with listening(timing=QUICK) as (listener, port):
            client = await Client.connect(port)
            begun = time.monotonic()
            try:
                for byte in get("/who", "A: " + "b" * 1000):
                    await client.send(bytes((byte,)))
                    await asyncio.sleep(0.05)
            except ConnectionError:
                pass
            assert time.monotonic() - begun < 45  # 50 s of drips
            async with asyncio.timeout(60):
                while listener.connections:
                    await asyncio.sleep(0.02)

    asyncio.run(run())


@pytest.mark.req("E-202")
def test_a_silent_or_idle_connection_is_closed() -> None:
    async def run() -> None:
        never = 3600.0
        slow = Timing(header_seconds=never, keepalive_seconds=never, handshake_seconds=never, stall_seconds=never)
        timing = replace(slow, header_seconds=0.4, keepalive_seconds=0.6)
        async with listening(timing=timing) as (listener, port):
            silent, idle = await Client.connect(port), await Client.connect(port)
            assert (await idle.ask(get("/who"))).status == 200
            assert await silent.is_closed()
            assert await idle.is_closed()
            assert listener.connections == 0

    asyncio.run(run())


def test_a_header_begun_in_time_gets_408() -> None:
    async def run() -> None:
        async with listening(timing=QUICK) as (_, port):
            client = await Client.connect(port)
            assert (await client.ask(b"GET /who HTTP/1.1\r\nHost:")).status == 408
            assert await client.is_closed()

    asyncio.run(run())


def test_a_header_begun_with_the_request_before_it_gets_408_too() -> None:
    async def run() -> None:
        async with listening(timing=replace(QUICK, keepalive_seconds=3600.0)) as (_, port):
            client = await Client.connect(port)
            assert (await client.ask(get("/refused") + b"GET /who HTTP/1.1\r\nHost:")).status == 404
            assert (await client.read()).status == 408
            assert await client.is_closed()

    asyncio.run(run())


def test_a_dripped_body_is_cut_at_the_routes_deadline() -> None:
    async def run() -> None:
        seen = Seen()
        async with listening(timing=QUICK, seen=seen) as (_, port):
            client = await Client.connect(port)
            assert (await client.ask(b"POST /hasty HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab")).status == 408
            assert await client.is_closed()
        assert not seen.calls

    asyncio.run(run())


def test_a_client_that_never_reads_its_answer_is_cut() -> None:
    async def run() -> None:
        async with listening(timing=QUICK) as (listener, port):
            client = await Client.connect(port)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(get("/big"))
            async with asyncio.timeout(60):
                while listener.connections:
                    await asyncio.sleep(0.05)
            await client.close()

    asyncio.run(run())


@pytest.mark.req("E-202")
def test_connections_are_capped_per_address_and_in_total() -> None:
    async def run() -> None:
        for timing in (Timing(max_connections_per_address=3), Timing(max_connections=3)):
            async with listening(timing=timing) as (listener, port):
                clients = [await Client.connect(port) for _ in range(3)]
                for client in clients:
                    assert (await client.ask(get("/who"))).status == 200
                assert await (await Client.connect(port)).is_closed()
                assert listener.connections == 3
                await clients.pop().close()
                async with asyncio.timeout(60):
                    while listener.connections == 3:
                        await asyncio.sleep(0.01)
                assert (await (await Client.connect(port)).ask(get("/who"))).status == 200

    asyncio.run(run())


def test_stalled_strangers_do_not_slow_others_down() -> None:
    async def run() -> None:
        async with listening(timing=Timing(max_connections_per_address=400)) as (_, port):
            strangers = [await Client.connect(port) for _ in range(200)]
            for client in strangers:
                await client.send(b"POST /echo HTTP/1.1\r\n")
            good = await Client.connect(port)
            begun = time.monotonic()
            for _ in range(50):
                assert (await good.ask(get("/who"))).status == 200
            assert time.monotonic() - begun < stretched(8)  # a stalled header block may take 5 s, and there are 200
            for client in strangers:
                await client.close()

    asyncio.run(run())


@pytest.mark.req("E-203")
def test_a_stranger_is_limited_and_told_when_to_come_back() -> None:
    async def run() -> None:
        clock = FixedClock()
        limits = Limits(clock, Bucket(5, 3), Bucket(50, 200))
        async with listening(limits=limits) as (_, port):
            client = await Client.connect(port)
            statuses = [(await client.ask(get("/limited"))).status for _ in range(4)]
            assert statuses == [200, 200, 200, 429]
            assert int((await client.ask(get("/limited"))).headers["retry-after"]) >= 1
            assert (await client.ask(get("/who"))).status == 200
            clock.advance(1)
            assert (await client.ask(get("/limited"))).status == 200

    asyncio.run(run())


def test_a_request_under_way_is_finished_at_the_end_and_new_ones_are_not_taken() -> None:
    async def run() -> None:
        async with listening() as (listener, port):
            idle, busy = await Client.connect(port), await Client.connect(port)
            assert (await idle.ask(get("/who"))).status == 200
            await busy.send(get("/patient"))
            while len(listener._connections) < 2 or not any(one._task for one in listener._connections):
                await asyncio.sleep(0.01)
            closing = asyncio.create_task(listener.close(60))
            assert await idle.is_closed()
            assert (await busy.read()).status == 503  # its own deadline, not ours
            await asyncio.wait_for(closing, 60)
            with pytest.raises(ConnectionError):
                await Client.connect(port)

    asyncio.run(run())


def test_nothing_is_left_behind_by_a_thousand_connections() -> None:
    async def run() -> None:
        async with listening(timing=Timing(max_connections_per_address=2000)) as (listener, port):

            async def one() -> None:
                client = await Client.connect(port)
                await client.ask(get("/who"))
                await client.close()

            process = psutil.Process(os.getpid())
            await asyncio.gather(*(one() for _ in range(100)))
            before = process.num_fds()
            for _ in range(9):
                await asyncio.gather(*(one() for _ in range(100)))
            async with asyncio.timeout(60):
                while listener.connections:
                    await asyncio.sleep(0.02)
            assert process.num_fds() <= before + 5

    asyncio.run(run())


def test_an_answer_is_these_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_790_000_000.5)
    dated = b"Date: Mon, 21 Sep 2026 14:13:20 GMT\r\nX-Request-Id: 1f\r\n\r\n"
    reply = Reply(200, "application/json", {"retry-after": "5", "date": "never"}, b"{}")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nRetry-After: 5\r\n"
    assert serialise(reply, "1f", head_only=False, keep_alive=True) == head + dated + b"{}"
    assert serialise(reply, "1f", head_only=True, keep_alive=False) == head + b"Connection: close\r\n" + dated
    assert serialise(Reply(204), "1f", head_only=False, keep_alive=True) == b"HTTP/1.1 204 No Content\r\n" + dated


@pytest.mark.parametrize("broken", ["a\nb", "a\rb", "a\r\nSet-Cookie: b"])
def test_a_line_break_in_a_header_is_never_sent(broken: str) -> None:
    for reply in (Reply(200, "", {"x": broken}), Reply(200, "", {broken: "x"}), Reply(200, broken)):
        with pytest.raises(ValueError, match="line break"):
            serialise(reply, "1f", head_only=False, keep_alive=True)
