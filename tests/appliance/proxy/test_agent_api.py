"""The Agent API: callers by the kernel's word, bytes passed on unchanged, evidence beside them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from appliance.binding import composite, evidence, jws
from appliance.binding import request as agent_request
from appliance.clock import SystemClock
from appliance.proxy.agent_api import ROUTES, AgentApi, Attester
from appliance.proxy.callers import CallerBook
from appliance.proxy.errors import IdentityServerAway
from appliance.proxy.evidence import Device
from appliance.proxy.state import ProxyState
from appliance.web.app import App, build_app
from appliance.web.limits import Bucket, Limits
from appliance.web.peer import Peer
from est import KeySigner, csr, profiles
from est.exchange import Call, Reply
from tests.support import FixedClock, key

ME = Peer(uid=os.getuid(), pid=os.getpid())
PROXY = "spiffe://campus.example/proxy/0b3f6a34-1f0e-4f0e-9d5c-6a8c1c6b7a11"
AGENT = "spiffe://campus.example/agent/1b3f6a34-1f0e-4f0e-9d5c-6a8c1c6b7a11"
OWNER = "spiffe://campus.example/owner/2b3f6a34-1f0e-4f0e-9d5c-6a8c1c6b7a11"
SERVER = "https://ids.campus.example/v1"
NONCE = "bm9uY2Utbm9uY2Utbm9uY2Utbm9uY2U"
JSON = "application/json"
ISSUED = Reply(201, JSON, {"location": "/v1/agents/x", "set-cookie": "a=b"}, b'{"certificate": "..."}')


class Server:
    """An identity server that answers what a test puts in, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Call] = []
        self.answers: dict[str, Reply | Callable[[Call], Reply]] = {}
        self.away = False

    async def send(self, call: Call) -> Reply:
        self.asked.append(call)
        if self.away:
            raise IdentityServerAway("away", retry_after_seconds=5)
        answer = self.answers.get(call.path, Reply(404, "application/problem+json", body=b"{}"))
        return answer(call) if callable(answer) else answer


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def state(tmp_path: Path) -> ProxyState:
    return ProxyState.open(tmp_path / "state")


def make_api(server: Server, state: ProxyState, *, allow_root: bool = True, limits: Limits | None = None) -> App:
    device = Device(PROXY, b"\x01" + b"u" * 32, "Acme", "device")
    signer = KeySigner(key("ldevid"))
    api = AgentApi(
        server, lambda: Attester(device, signer), CallerBook(state, FixedClock()), SystemClock(), allow_root=allow_root
    )
    return build_app("agent", api.endpoints(), routes=ROUTES, limits=limits)


def ask(app: App, method: str, path: str, body: object = b"", *, peer: Peer = ME, media_type: str = JSON) -> Reply:
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(app.handle(Call(method, path, media_type if octets else "", body=octets), peer))


def nonce_body(**changes: object) -> dict[str, object]:
    return {"jkt": jws.jkt(key("agent").public_key()), "purpose": "issue"} | changes


def csr_der() -> bytes:
    return csr.build(subject=profiles.name("agent"), key=key("agent"))


def request_token(**changes: object) -> tuple[str, bytes]:
    der = csr_der()
    now = int(datetime.now(UTC).timestamp())
    token = agent_request.seal(
        KeySigner(key("agent")), sub=AGENT, aud=SERVER, iat=now, exp=now + 600, jti="j" * 22, nonce=NONCE,
        profiles=("x509", "wit"), ttl=3600, owner=OWNER, csr_der=der, **changes,
    )  # fmt: skip
    return token, der


def enroll_body() -> tuple[bytes, str]:
    token, der = request_token()
    body = composite.write(composite.Composite(token, der, ("header.payload.signature",)))
    return body, token


def reason(reply: Reply) -> str:
    assert reply.media_type == "application/problem+json"
    return json.loads(reply.body)["reason"]


# -- nonce ---------------------------------------------------------------------------------------------------------


def test_a_nonce_is_fetched_for_the_caller(server: Server, state: ProxyState) -> None:
    answer = {"nonce": NONCE, "sub": AGENT, "server_id": SERVER, "expires_in": 86400}
    server.answers["/v1/agents/nonce"] = Reply(200, JSON, body=json.dumps(answer).encode())
    app = make_api(server, state)
    for body in (nonce_body(), nonce_body(sub=AGENT), nonce_body(purpose="renew", sub=AGENT)):
        reply = ask(app, "POST", "/v1/nonce", body)
        assert (reply.status, json.loads(reply.body)) == (200, answer)
        assert json.loads(server.asked[-1].body) == body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"jkt": "a", "jkt": "b", "purpose": "issue"}',
        b"[" * 10_000,
        b"\xff\xfe",
        nonce_body(jkt="short"),
        nonce_body(jkt=7),
        nonce_body(jkt="x" * 42 + "="),
        nonce_body(purpose="anything"),
        nonce_body(purpose=None),
        nonce_body(extra=1),
        nonce_body(sub=OWNER),
        nonce_body(sub="spiffe://campus.example/agent/not-a-uuid"),
        nonce_body(sub=None),
        {"jkt": "x" * 43},
        {"purpose": "issue"},
    ],
)
def test_a_nonce_call_of_another_shape_is_refused_here(server: Server, state: ProxyState, body: object) -> None:
    reply = ask(make_api(server, state), "POST", "/v1/nonce", body)
    assert 400 <= reply.status < 500
    assert reply.media_type == "application/problem+json"
    assert server.asked == []


def test_an_oversize_body_is_refused(server: Server, state: ProxyState) -> None:
    app = make_api(server, state)
    assert ask(app, "POST", "/v1/nonce", b" " * 4097).status == 413
    assert ask(app, "POST", "/v1/enroll", b" " * 65_537).status == 413
    assert server.asked == []


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/agents/enroll"), ("POST", "/"), ("GET", "/v1/nonce")])
def test_nothing_else_is_there(server: Server, state: ProxyState, method: str, path: str) -> None:
    assert ask(make_api(server, state), method, path).status in (404, 405)
    assert server.asked == []


@pytest.mark.req("A-50", "A-107")
def test_a_renewal_under_a_standing_approval_goes_to_the_server_and_not_to_a_gateway(
    server: Server, state: ProxyState
) -> None:
    """There is nothing left to approve, and a gateway would ask its owner in vain."""
    server.answers["/v1/agents/enroll"] = ISSUED
    app = make_api(server, state)
    for standing, status in (((), 400), (("A" * 43,), 201)):
        token, der = request_token(
            model="owner-mediated", purpose="renew", prev="header.payload.signature", standing=standing
        )
        reply = ask(app, "POST", "/v1/enroll", composite.write(composite.Composite(token, der)))
        assert reply.status == status, reply
        assert [one.path for one in server.asked] == ["/v1/agents/enroll"] * bool(standing)


# -- who calls -----------------------------------------------------------------------------------------------------


@pytest.mark.req("A-12")
@pytest.mark.parametrize(
    "peer", [Peer(uid=1000, pid=0), Peer(uid=65534, pid=os.getpid()), Peer(uid=0, pid=os.getpid()), Peer()],
    ids=["other pid namespace", "overflow uid", "root", "not a Unix socket"],
)  # fmt: skip
def test_callers_without_an_identity_are_refused_at_every_route(server: Server, state: ProxyState, peer: Peer) -> None:
    app = make_api(server, state, allow_root=False)
    for method, path, body in (
        ("POST", "/v1/nonce", nonce_body()), ("POST", "/v1/enroll", enroll_body()[0]), ("GET", "/v1/trust", b""),
    ):  # fmt: skip
        reply = ask(app, method, path, body, peer=peer)
        assert (reply.status, reason(reply)) == (403, "caller-not-allowed")
    assert server.asked == []


@pytest.mark.req("A-16")
@pytest.mark.parametrize("first", ["nonce", "enroll"])
def test_a_key_of_another_user_is_refused(server: Server, state: ProxyState, first: str) -> None:
    server.answers["/v1/agents/nonce"] = Reply(200, JSON, body=b"{}")
    server.answers["/v1/agents/enroll"] = ISSUED
    app = make_api(server, state)
    if first == "nonce":
        assert ask(app, "POST", "/v1/nonce", nonce_body()).status == 200
    else:
        assert ask(app, "POST", "/v1/enroll", enroll_body()[0]).status == 201
    asked = len(server.asked)
    CallerBook(state, FixedClock())
    other = make_api(server, state)  # after a restart, and for a caller who is somebody else
    book = json.loads(state.read("callers.json") or b"{}")
    state.write("callers.json", json.dumps({k: [v[0] + 1, v[1]] for k, v in book.items()}).encode())
    other = make_api(server, state)
    for path, body in (("/v1/nonce", nonce_body()), ("/v1/enroll", enroll_body()[0])):
        reply = ask(other, "POST", path, body)
        assert (reply.status, reason(reply)) == (403, "request-not-yours")
    assert len(server.asked) == asked


@pytest.mark.req("A-98")
def test_a_caller_has_a_rate(server: Server, state: ProxyState) -> None:
    limits = Limits(FixedClock(), Bucket(1, 1), Bucket(1, 3))
    app = make_api(server, state, limits=limits)
    server.answers["/v1/trust"] = Reply(200, JSON, body=b"{}")
    statuses = [ask(app, "GET", "/v1/trust").status for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert "retry-after" in ask(app, "GET", "/v1/trust").headers
    # others are not held up by it
    limited = ask(app, "GET", "/v1/trust", peer=replace(ME, uid=(ME.uid or 0) + 7, pid=0))
    assert reason(limited) == "caller-not-allowed"


# -- enroll --------------------------------------------------------------------------------------------------------


@pytest.mark.req("A-14", "A-20", "A-23", "A-103")
def test_the_request_goes_on_unchanged_with_evidence_about_the_caller(server: Server, state: ProxyState) -> None:
    server.answers["/v1/agents/enroll"] = ISSUED
    body, token = enroll_body()
    reply = ask(make_api(server, state), "POST", "/v1/enroll", body)
    assert (reply.status, reply.media_type, reply.body) == (201, JSON, ISSUED.body)
    assert dict(reply.headers) == {}

    sent = server.asked[0]
    assert (sent.method, sent.path, sent.media_type) == ("POST", "/v1/agents/enroll", composite.MEDIA_TYPE)
    passed_on, handed_in = json.loads(sent.body), json.loads(body)
    assert {name: passed_on[name] for name in handed_in} == handed_in
    assert set(passed_on) - set(handed_in) == {"evidence"}

    received = composite.read(sent.body)
    assert received.evidence is not None
    opened = evidence.unseal(received.evidence, key("ldevid").public_key())
    request = agent_request.unseal(token)
    evidence.check(opened, request, proxy_id=PROXY, now=datetime.now(UTC))
    assert opened.ueid == b"\x01" + b"u" * 32
    assert (opened.oemid, opened.hwmodel, opened.dbgstat) == ("Acme", "device", "disabled")
    assert (opened.agent["uid"], opened.agent["pid"]) == (os.getuid(), os.getpid())
    import hashlib

    mine = hashlib.sha256(Path("/proc/self/exe").read_bytes()).digest()
    assert opened.agent["executable_digest"] == {"alg": "sha-256", "hash": jws.base64url(mine)}


@pytest.mark.req("A-13", "A-14")
def test_a_changed_request_is_refused_before_the_server_hears_of_it(server: Server, state: ProxyState) -> None:
    token, der = request_token()
    head, payload, signature = token.split(".")
    for damaged in (
        f"{head}.{payload[:-2]}AA.{signature}", f"{head}.{payload}.{signature[:-4]}AAAA", f"{head}.{payload}.", "x",
    ):  # fmt: skip
        body = json.dumps({"request": damaged, "csr": jws.base64url(der), "approvals": []}).encode()
        reply = ask(make_api(server, state), "POST", "/v1/enroll", body)
        assert 400 <= reply.status < 500
    assert server.asked == []


@pytest.mark.req("A-16", "A-103")
@pytest.mark.parametrize("member", ["evidence", "org", "proxy"])
def test_what_is_not_for_the_agent_to_say_is_refused(server: Server, state: ProxyState, member: str) -> None:
    value = json.loads(enroll_body()[0])
    value[member] = evidence.write_cmw("a.b.c") if member == "evidence" else [1]
    reply = ask(make_api(server, state), "POST", "/v1/enroll", value)
    assert 400 <= reply.status < 500
    assert server.asked == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Reply(202, JSON, {"retry-after": "7"}, b'{"status": "/v1/agents/requests/x"}'), 202),
        (Reply(403, "application/problem+json", {}, b'{"reason": "owner-not-active"}'), 403),
        (Reply(429, "application/problem+json", {"retry-after": "3"}, b'{"reason": "rate-limited"}'), 429),
        (Reply(200, "application/json; charset=utf-8", {}, b"{}"), 200),
    ],
)
def test_the_servers_answer_is_relayed(server: Server, state: ProxyState, answer: Reply, status: int) -> None:
    server.answers["/v1/agents/enroll"] = answer
    reply = ask(make_api(server, state), "POST", "/v1/enroll", enroll_body()[0])
    assert (reply.status, reply.body) == (status, answer.body)
    assert reply.headers.get("retry-after") == answer.headers.get("retry-after")


@pytest.mark.parametrize("answer", [Reply(502, "text/html", body=b"<html>"), Reply(200), Reply(204)])
def test_an_answer_that_is_none_of_the_servers_own_is_not_relayed(
    server: Server, state: ProxyState, answer: Reply
) -> None:
    server.answers["/v1/agents/enroll"] = answer
    reply = ask(make_api(server, state), "POST", "/v1/enroll", enroll_body()[0])
    assert (reply.status, reason(reply)) == (503, "identity-server-away")
    assert reply.headers["retry-after"] == "5"


def test_a_result_whose_answer_got_lost_is_asked_for_again(server: Server, state: ProxyState) -> None:
    body, token = enroll_body()
    server.answers["/v1/agents/enroll"] = Reply(
        409, "application/problem+json", body=b'{"reason": "approval-spent", "status": 409}'
    )
    server.answers[f"/v1/agents/requests/{jws.s256(token)}"] = Reply(200, JSON, body=ISSUED.body)
    reply = ask(make_api(server, state), "POST", "/v1/enroll", body)
    assert (reply.status, reply.body) == (200, ISSUED.body)
    assert [one.method for one in server.asked] == ["POST", "GET"]


def test_a_server_away_is_said_with_when_to_come_back(server: Server, state: ProxyState) -> None:
    server.away = True
    app = make_api(server, state)
    for method, path, body in (
        ("POST", "/v1/nonce", nonce_body()), ("POST", "/v1/enroll", enroll_body()[0]), ("GET", "/v1/trust", b""),
    ):  # fmt: skip
        reply = ask(app, method, path, body)
        assert (reply.status, reason(reply), reply.headers["retry-after"]) == (503, "identity-server-away", "5")


def test_trust_is_relayed(server: Server, state: ProxyState) -> None:
    server.answers["/v1/trust"] = Reply(200, JSON, body=b'{"root": "PEM"}')
    assert ask(make_api(server, state), "GET", "/v1/trust").body == b'{"root": "PEM"}'


def test_facts_about_maker_and_model_come_from_the_idevid() -> None:
    from cryptography.x509.oid import NameOID

    from lab.factory import make_leaf, make_root
    from tests.appliance.proxy.campus import BORN

    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Ac\u200bme"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "X-1000"),
        ]
    )
    device = Device.of(PROXY, "01" + "ab" * 32, make_leaf(make_root("r", now=BORN), subject, now=BORN).certificate)
    assert (device.oemid, device.hwmodel, device.ueid) == ("Ac?me", "X-1000", b"\x01" + b"\xab" * 32)
    assert Device.of(PROXY, "01" + "ab" * 32, None).oemid is None


def test_nothing_of_the_requests_is_logged(server: Server, state: ProxyState, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server.answers["/v1/agents/enroll"] = ISSUED
    body, token = enroll_body()
    ask(make_api(server, state), "POST", "/v1/enroll", body)
    assert token.rpartition(".")[2] not in caplog.text
    assert "agent request uid=" in caplog.text


@pytest.mark.req("A-22")
def test_what_an_agent_says_about_itself_is_in_the_evidence_under_that_name_alone(
    server: Server, state: ProxyState
) -> None:
    server.answers["/v1/agents/enroll"] = ISSUED
    app = make_api(server, state)
    digest = {"alg": "sha-256", "hash": jws.base64url(b"m" * 32)}
    said = {"ai_model_id": "small-7", "ai_model_hash": digest, "input_policy_digest": digest, "allowed_apis": ["notes"]}
    token, der = request_token()
    body = composite.write(composite.Composite(token, der, ("header.payload.signature",), self_asserted=said))
    assert ask(app, "POST", "/v1/enroll", body, media_type=composite.MEDIA_TYPE).status == 201
    handed_on = composite.read(server.asked[-1].body)
    assert handed_on.self_asserted == {} and handed_on.evidence is not None
    agent = evidence.unseal(handed_on.evidence, key("ldevid").public_key()).agent
    assert {name: agent[name] for name in said} == said
    assert agent["self_asserted"] == sorted(said)
    assert agent["uid"] == os.getuid() and {"boot_id", "container", "gid", "cgroup"} <= agent.keys()


@pytest.mark.req("A-22")
@pytest.mark.parametrize(
    "said",
    [
        {"uid": 7}, {"executable_digest": {"alg": "sha-256", "hash": "A" * 43}}, {"owner_id": OWNER},
        {"container": "x"}, {"self_asserted": []}, {"swname": "trusted"}, {"ai_model_id": 7}, {"ai_model_hash": "x"}, 7,
        {"capabilities": ["x" * 250] * 20},
    ],
    ids=lambda said: str(said)[:40],
)  # fmt: skip
def test_an_agent_does_not_say_what_its_proxy_measures(server: Server, state: ProxyState, said: object) -> None:
    body = json.loads(enroll_body()[0]) | {"self_asserted": said}
    reply = ask(make_api(server, state), "POST", "/v1/enroll", body, media_type=composite.MEDIA_TYPE)
    assert reply.status == 400 and server.asked == []
