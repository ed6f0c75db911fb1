"""Bad input at every route of every port: a refusal that is typed and short, no traceback, a process unharmed."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

import psutil
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import composite
from appliance.proxy import agent_api
from appliance.web.routes import ROUTES, Route
from est import csr, ocsp
from tests.campus import UNLIMITED, Answer, Campus, Client
from tests.endtoend import visitors
from tests.endtoend.test_access_matrix import HOOK

pytestmark = pytest.mark.xdist_group("bad-input")  # one campus for the whole module
GROWTH_BYTES = 20_000_000
CALLERS = ("nobody", "self-signed", "idevid", "ldevid")
OUR_FAULT = re.compile(r"Traceback|event=request-failed|BaseException|Task exception")
PARAMETERS = {
    "label": "x",
    "rqh": "A" * 43,
    "id": "A" * 22,
    "request": "MAA=",
    "role": "agents",
    "reason": "malformed",
    "path": "index.md",
    "name": "nothing",
    "s256": "A" * 43,
}


@dataclass(frozen=True)
class Target:
    """A campus under fire, its proxy's Agent API included."""

    campus: Campus
    callers: Mapping[str, Client]
    token: str
    scim_token: str
    process: psutil.Process
    bodies: Mapping[str, bytes]
    read: dict[str, int] = field(default_factory=dict)

    def check_unharmed(self) -> None:
        """Both processes live, answer, and have said nothing that looks like a fault of ours."""
        campus = self.campus
        for started in (campus.process, campus.proxy_process):
            assert started is not None and started.popen.poll() is None
        assert campus.client("console").send("GET", "/readyz").status == 200
        assert campus.client("device").send("GET", "/v1/trust").status == 200
        assert campus.client("agent").send("GET", "/v1/trust").status == 200
        for log in ("appliance", "proxy"):
            lines = campus.log(log).splitlines()
            fresh, self.read[log] = lines[self.read.get(log, 0) :], len(lines)
            found = [line for line in fresh if OUR_FAULT.search(line)]
            assert found == [], found[0][:1000]


@pytest.fixture(scope="module")
def target(template: Campus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("fire")
    campus = template.copy(folder / "campus")
    campus.start(*UNLIMITED, "est.serverkeygen=plain")
    campus.start_proxy()
    files = visitors.certificates(campus, folder / "visitors")
    campus.ask("radius.render", folder=str(folder / "raddb"))
    rendered = "\n".join(path.read_text() for path in (folder / "raddb").rglob("*") if path.is_file())
    (token,) = set(re.findall(r"[Bb]earer ([A-Za-z0-9_-]{20,})", rendered))
    assert campus.process is not None
    callers = visitors.clients(campus, {name: files[name] for name in CALLERS})
    certificate = campus.ldevid.public_bytes(Encoding.DER)
    asked = csr.build(subject=campus.ldevid.subject, key=visitors.spare_key())
    ordinary = {
        "empty": b"",
        "random bytes": Random(1).randbytes(1000),
        "random base64": base64.encodebytes(Random(2).randbytes(1000)),
        "a certificate": certificate,
        "a certificate in base64": base64.encodebytes(certificate),
        "a request of its own, DER": asked,
        "a request in base64, with more": base64.encodebytes(asked + b"\0"),
        "a CMS of another kind": base64.encodebytes(bytes.fromhex("300b06092a864886f70d010702")),
        "indefinite length": b"\x30\x80" * 500,
        "twice the same key": b'{"jkt": "a", "jkt": "b", "purpose": "issue"}',
        "a deep array": b"[" * 10_000 + b"]" * 10_000,
        "deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        "deep and open": b"[" * 10_000,
        "NaN": b'{"jkt": NaN}',
        "Infinity": b'{"status": true, "version": -Infinity}',
        "a huge number": b'{"version": ' + b"9" * 5000 + b"}",
        "a huge exponent": b'{"version": 1e999999}',
        "UTF-16": '{"jkt": "a"}'.encode("utf-16"),
        "a lone surrogate": b'{"jkt": "\\ud800", "purpose": "issue"}',
        "NUL inside": b'{"jkt": "a\\u0000b", "purpose": "issue"}',
        "an array": b"[]",
        "null": b"null",
        "a string": b'"x"',
        "wrong types": b'{"request": 1, "approvals": {}, "csr": [], "jkt": {}, "version": "one", "status": 3}',
        "empty object": b"{}",
        "a JWS of nothing": b'{"request": "..", "approvals": ["a.b.c"], "evidence": "e30.e30."}',
        "alg none": b'{"request": "eyJhbGciOiJub25lIiwidHlwIjoiYWdlbnQtcmVxdWVzdCtqd3QifQ.e30.", "approvals": []}',
    }  # fmt: skip
    scim_token = campus.ask("directory.new_token", name="tests")["token"]
    yield Target(campus, callers, token, scim_token, psutil.Process(campus.process.popen.pid), ordinary)
    for client in callers.values():
        client.close()
    campus.close()


def path_of(route: Route) -> str:
    return re.sub(r"\{(\w+)\*?\}", lambda found: PARAMETERS[found[1]], route.path)


def name_of(route: Route) -> str:
    return f"{route.listener} {route.method} {route.path}"


def media_types_of(route: Route) -> tuple[str, ...]:
    """What gets past the door, so that the body itself is looked at."""
    by_endpoint = {
        "est.simpleenroll": "application/pkcs10",
        "est.simplereenroll": "application/pkcs10",
        "est.serverkeygen": "application/pkcs10",
        "registrar.request_voucher": "application/voucher-cms+json",
        "identity.enroll": composite.MEDIA_TYPE,
    }
    own = by_endpoint.get(route.endpoint, "application/json")
    return tuple({own, "application/json"})


def senders(target: Target, route: Route) -> Iterator[tuple[str, Client, dict[str, str]]]:
    campus = target.campus
    match route.listener:
        case "device":
            for name in CALLERS:
                yield name, target.callers[name], {}
        case "decision" if route.who == "token":
            yield "with token", campus.client("decision"), {"Authorization": f"Bearer {target.token}"}
            yield "without token", campus.client("decision"), {}
        case "console" if route.who == "token":
            yield "with token", campus.client("console"), {"Authorization": f"Bearer {target.scim_token}"}
            yield "without token", campus.client("console"), {}
        case other:
            yield "anybody", campus.client(other), {}


def patiently(client: Client, *arguments: object, **more: object) -> Answer:
    """Sends; waits where the rate of the caller's key is used up, for that is another test's matter."""
    for _ in range(30):
        answer = client.send(*arguments, **more)  # type: ignore[arg-type]
        if answer.status != 429:
            return answer
        time.sleep(float(answer.headers.get("retry-after", "1")))
    raise AssertionError("429 for ever")


def complaint(answer: Answer, allowed: range | tuple[int, ...] = range(400, 500)) -> str:
    """What is wrong with a refusal, "" if nothing."""
    text = answer.body.decode("utf-8", "replace")
    if answer.headers.get("content-type") == ocsp.RESPONSE_TYPE:  # OCSP says in its own words what is wrong (RFC 6960)
        is_error = answer.status == 200 and answer.body in (ocsp.MALFORMED, ocsp.UNAUTHORIZED)
        return "" if is_error else f"status {answer.status}: an OCSP response that is no error"
    if answer.status not in allowed:
        return f"status {answer.status}: {text[:200]}"
    if "Traceback" in text or 'File "' in text:
        return f"a traceback: {text[:200]}"
    if answer.status == 204:
        return ""
    if answer.headers.get("content-length") != str(len(answer.body)):
        return f"content-length {answer.headers.get('content-length')} for {len(answer.body)} bytes"
    if len(answer.body) > 2000:
        return "a refusal of more than 2000 bytes"
    if answer.status >= 400 and answer.headers.get("content-type", "").startswith("application/problem+json"):
        document = json.loads(answer.body)
        if not {"reason", "title", "status"} <= set(document) or document["status"] != answer.status:
            return f"a problem without its members: {document}"
    return ""


EVERY = (*ROUTES, *agent_api.ROUTES)


@pytest.mark.lab
@pytest.mark.req("E-140", "T-23")
@pytest.mark.parametrize("route", [one for one in EVERY if one.max_body], ids=name_of)
def test_bad_bodies_get_typed_refusals(target: Target, route: Route) -> None:
    """4xx, but where the route takes everything an administrator or a switch can say in JSON (empty arguments)."""
    wrong = []
    bodies = {
        **target.bodies,
        "one byte too many": b"a" * (route.max_body + 1),
        "64 KiB and one": b"a" * 65_537,
        "a large JSON string": b'{"jkt": "' + b"a" * min(route.max_body - 20, 200_000) + b'"}',
    }
    for who, client, headers in senders(target, route):
        for what, body in bodies.items():
            for media_type in media_types_of(route):
                answer = patiently(client, route.method, path_of(route), body, media_type, headers)
                allowed: range | tuple[int, ...] = range(400, 500)
                if route.endpoint == "access.decide" and who == "with token" and what in ("empty object",):
                    allowed = (200, *range(400, 500))  # nothing known of the login: a Reject
                if route.endpoint == "console.operation" and len(body) < 100_000:
                    allowed = (404, 400)
                if said := complaint(answer, allowed):
                    wrong.append((who, what, media_type, said))
    assert wrong == []
    target.check_unharmed()


@pytest.mark.lab
@pytest.mark.req("E-140")
@pytest.mark.parametrize("route", EVERY, ids=name_of)
def test_wrong_media_types_and_methods_get_typed_refusals(target: Target, route: Route) -> None:
    wrong = []
    who, client, headers = list(senders(target, route))[-1]
    others = {one.method for one in EVERY if one.listener == route.listener and one.path == route.path}
    for method in sorted({"GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "POST", "get"} - others):
        answer = patiently(client, method, path_of(route), headers=headers)
        if said := complaint(answer):
            wrong.append((method, said))
        if answer.status == 405 and route.method not in answer.headers.get("allow", ""):
            wrong.append((method, f"Allow: {answer.headers.get('allow')}"))
    if route.max_body:
        for media_type in (
            "", "text/html", "application/xml", "*/*", "application/json/x", "multipart/form-data; boundary=x",
            "application/json; charset=utf-16", "a" * 300,
        ):  # fmt: skip
            answer = patiently(client, route.method, path_of(route), b"<x/>", media_type, headers)
            if said := complaint(answer):
                wrong.append((media_type, said))
        for encoding in ("gzip", "br", "identity, gzip"):
            answer = patiently(
                client, route.method, path_of(route), b"\x1f\x8b\x08", media_types_of(route)[0],
                {**headers, "Content-Encoding": encoding},
            )  # fmt: skip
            if said := complaint(answer):
                wrong.append((encoding, said))
    else:
        answer = patiently(client, route.method, path_of(route), b"body" * 10, headers=headers)
        if said := complaint(answer):
            wrong.append(("a body", said))
    assert wrong == []


@pytest.mark.lab
@pytest.mark.parametrize("route", [one for one in EVERY if "{" in one.path], ids=name_of)
def test_strange_parameters_in_paths_get_typed_refusals(target: Target, route: Route) -> None:
    strange = (
        "..", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%2f..%2fappliance.toml", "a" * 3000, "%00", "%ff%fe",
        "'%20OR%201=1--", "${x}", "{{7*7}}", "..;", "passphrase", "../../keys/root.key",
    )  # fmt: skip
    wrong = []
    who, client, headers = list(senders(target, route))[-1]
    for value in strange:
        path = re.sub(r"\{\w+\*?\}", lambda _: value, route.path)
        body = b"{}" if route.max_body else b""
        answer = patiently(client, route.method, path, body, media_types_of(route)[0] if body else "", headers)
        if said := complaint(answer):
            wrong.append((value[:40], said))
        for secret in (b"PRIVATE KEY", target.campus.passphrase, b"root:", b"[domain]"):
            assert secret not in answer.body
    assert wrong == []


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1")


CHUNKED = "Transfer-Encoding: chunked"


def post(*lines: str, body: bytes = b"{}") -> bytes:
    return head("POST", "{path}", *lines) + body


SHAPES: Mapping[str, bytes] = {
    "length and chunks": post("Content-Length: 4", CHUNKED, body=b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
    "chunks and length": post(CHUNKED, "Content-Length: 4", body=b"0\r\n\r\n"),
    "two lengths": post("Content-Length: 2", "Content-Length: 3", body=b"{}}"),
    "two equal lengths": post("Content-Length: 2", "Content-Length: 2"),
    "a list of lengths": post("Content-Length: 2, 2"),
    "a signed length": post("Content-Length: +2"),
    "a negative length": post("Content-Length: -2"),
    "a length in hex": post("Content-Length: 0x2"),
    "a length that is not one": post("Content-Length: two"),
    "an endless length": post("Content-Length: " + "9" * 40),
    "an unknown coding": post("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "two codings": post("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "coding twice": post(CHUNKED, "Transfer-Encoding: identity", body=b"0\r\n\r\n"),
    "a space before the colon": post("Content-Length : 2"),
    "a folded header": post("X-A: b\r\n c", "Content-Length: 2"),
    "a bare line feed": b"POST {path} HTTP/1.1\nHost: x\nContent-Length: 2\n\n{}",
    "a bare carriage return": post("X-A: b\rContent-Length: 9", "Content-Length: 2"),
    "a NUL in a header": post("X-A: \0", "Content-Length: 2"),
    "no host": b"POST {path} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    "two hosts": post("Host: y", "Content-Length: 2"),
    "Expect": post("Expect: 100-continue", "Content-Length: 2"),
    "another expectation": post("Expect: tea", "Content-Length: 2"),
    "Upgrade to a WebSocket": head(
        "GET", "{path}", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ),
    "Upgrade to HTTP/2": post("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "Content-Length: 2"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n",
    "an absolute target": b"GET http://evil.example{path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "20,000 headers": head("GET", "{path}", *(f"X-{number}: y" for number in range(20_000))),
    "one header of 1 MB": head("GET", "{path}", "X-A: " + "a" * 1_000_000),
    "a target of 100 kB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET {path}\r\n",
    "HTTP/9.9": b"GET {path} HTTP/9.9\r\nHost: x\r\n\r\n",
    "no HTTP at all": b"\x00\x01\x02\x03" * 100 + b"\r\n\r\n",
    "a chunk of a bad size": post(CHUNKED, body=b"zz\r\n{}\r\n0\r\n\r\n"),
    "a chunk of an endless size": post(CHUNKED, body=b"f" * 40 + b"\r\n"),
    "chunk extensions": post(CHUNKED, body=b"2;" + b"a" * 20_000 + b"\r\n{}\r\n0\r\n\r\n"),
    "trailers": post(CHUNKED, body=b"2\r\n{}\r\n0\r\nAuthorization: Bearer x\r\nContent-Length: 3\r\n\r\n"),
}  # fmt: skip
LISTENERS = ("device", "decision", "console", "pki", "admin", "agent")
PATHS = {
    "device": "/v1/agents/nonce", "decision": "/v1/decide", "console": "/healthz", "pki": "/ca/root.cer",
    "admin": "/v1/operations/owners.list", "agent": "/v1/nonce",
}  # fmt: skip


def answers_in(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Every answer in what came back, each cut by its own Content-Length; raises AssertionError for anything else."""
    found = []
    while data:
        block, blank, rest = data.partition(b"\r\n\r\n")
        assert blank, f"no whole answer: {data[:200]!r}"
        first, *lines = block.decode("latin-1").split("\r\n")
        matched = re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", first)
        assert matched, first
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert "transfer-encoding" not in headers
        assert "content-length" in headers or matched[1] in ("204", "304"), block
        length = int(headers.get("content-length", "0"))
        found.append((int(matched[1]), headers, rest[:length]))
        assert len(rest) >= length
        data = rest[length:]
    return found


@pytest.mark.lab
@pytest.mark.req("T-23")
@pytest.mark.parametrize("listener", LISTENERS)
def test_shapes_that_smuggle_are_refused_and_the_connection_ends(target: Target, listener: str) -> None:
    wrong = []
    path, client = PATHS[listener].encode(), target.campus.client(listener)
    # what follows must never be taken for a request of its own
    follow = head("GET", "/smuggled-request-that-nobody-made")
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda shape: client.exchange(shape.replace(b"{path}", path) + follow), SHAPES.values())
    for what, got in zip(SHAPES, answers, strict=True):
        try:
            found = answers_in(got)
        except AssertionError as broken:
            wrong.append((what, str(broken)))
            continue
        statuses = [status for status, _, _ in found]
        if not found and what not in ("no HTTP at all",):
            wrong.append((what, "no answer"))
        if any(status >= 500 for status in statuses) or (statuses and not 400 <= statuses[0] < 500):
            # a whole, unambiguous request with chunks is one like any other
            if not (what in ("trailers", "two equal lengths") and statuses[0] < 500):
                wrong.append((what, str(statuses)))
    assert wrong == []
    target.check_unharmed()


@pytest.mark.lab
@pytest.mark.parametrize("listener", LISTENERS)
def test_pipelined_floods_and_early_ends_do_no_harm(target: Target, listener: str) -> None:
    client = target.campus.client(listener)
    flood = head("GET", PATHS[listener]) * 2000
    found = answers_in(client.exchange(flood)[:200_000].rpartition(b"HTTP/1.1 ")[0])
    assert all(status < 500 for status, _, _ in found)
    for cut in (1, 5, 20, 60):
        with client.raw() as opened:
            opened.sendall(head("POST", PATHS[listener], "Content-Length: 5")[:cut])
    with client.raw() as opened:
        opened.sendall(head("POST", PATHS[listener], "Content-Type: application/json", "Content-Length: 500") + b"{")
    target.check_unharmed()


@pytest.mark.lab
def test_plain_text_at_a_tls_port_and_tls_at_a_plain_one(target: Target) -> None:
    for listener in ("device", "decision", "console"):
        client = Client(target.campus.listeners[listener], None)
        got = client.exchange(head("GET", PATHS[listener]))
        assert b"HTTP/1.1 2" not in got
        for junk in (
            b"",
            b"\x16\x03\x01\xff\xff" + b"\0" * 70_000,
            Random(3).randbytes(5000),
            b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        ):
            client.exchange(junk)
    target.campus.client("pki").exchange(b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(240))
    target.check_unharmed()


@pytest.mark.slow
@pytest.mark.lab
def test_memory_stays_where_it_was(target: Target) -> None:
    """The second thousand of bad requests costs nothing that the first did not."""

    def storm() -> None:
        for route in [one for one in ROUTES if one.method == "POST" and one.listener == "device"]:
            big = b"[" * (route.max_body + 1)
            for body in (big, b"[" * 10_000, Random(4).randbytes(60_000)):
                for name in ("nobody", "idevid", "ldevid"):
                    for _ in range(4):
                        target.callers[name].send("POST", path_of(route), body, media_types_of(route)[0])
        for shape in SHAPES.values():
            target.campus.client("device").exchange(shape.replace(b"{path}", b"/v1/agents/nonce"))

    storm()
    before = target.process.memory_info().rss, target.process.num_fds()
    storm()
    after = target.process.memory_info().rss, target.process.num_fds()
    assert after[0] - before[0] < GROWTH_BYTES
    assert after[1] - before[1] < 10
    target.check_unharmed()


@pytest.mark.lab
def test_connections_that_end_in_the_middle_of_a_large_body_are_let_go(target: Target) -> None:
    """Reading is paused then, and a connection that nobody reads is one whose end nobody notices."""
    before = target.process.num_fds()
    for _ in range(40):
        client = target.campus.as_proxy()
        for size in (200_000, 300_000):
            client.send("POST", "/v1/agents/enroll", b"a" * size, composite.MEDIA_TYPE)
        client.close()
        with target.campus.as_proxy().raw() as opened:
            opened.sendall(head("POST", "/v1/agents/enroll", "Content-Length: 250000") + b"a" * 200_000)
    deadline = time.monotonic() + 60  # the deadline of a request is 10 s
    while target.process.num_fds() > before + 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert target.process.num_fds() <= before + 3


@pytest.mark.lab
def test_hostile_words_do_not_break_a_log_line(target: Target) -> None:
    """Names and values end up in the log on one line each, without anything that a terminal obeys."""
    client = target.campus.client("console")
    client.exchange(b"GET /%0aevent=ready%1b[31m\x1b[2J HTTP/1.1\r\nHost: x\r\n\r\n")
    client.exchange(head("GET", "/problems/\x7f\x9b31m"))
    body = json.dumps({**HOOK, "User-Name": {"type": "string", "value": ["x\nevent=ready \x1b[31m"]}}).encode()
    target.campus.client("decision").send(
        "POST", "/v1/decide", body, "application/json", {"Authorization": f"Bearer {target.token}"}
    )
    for name in ("appliance", "proxy"):
        text = target.campus.log(name)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
        lines = [line for line in text.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT|\{", line)]
        assert lines == []


def test_every_route_is_among_those_under_fire() -> None:
    assert {one.listener for one in EVERY} == set(LISTENERS)
    assert {path for one in EVERY for path in re.findall(r"\{(\w+)", one.path)} <= set(PARAMETERS)
