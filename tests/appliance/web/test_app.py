"""The app without sockets: the route table, who gets in, and how errors become answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import pytest

from appliance.web.app import App, build_app
from appliance.web.limits import Bucket, Limits
from appliance.web.peer import Peer
from appliance.web.routes import OPTIONAL, ROUTES, Handler, Route
from est.exchange import Call, Reply
from tests.appliance.web.front import app, certify
from tests.support import FixedClock

LISTENERS = ("device", "decision", "pki", "console", "admin")


async def nothing(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
    return Reply(200)


def all_endpoints() -> dict[str, Handler]:
    return {route.endpoint: nothing for route in ROUTES}


def handle(target: App, call: Call, peer: Peer | None = None) -> Reply:
    return asyncio.run(target.handle(call, peer or Peer("10.0.0.1")))


@pytest.mark.parametrize("listener", LISTENERS)
def test_an_app_without_all_its_endpoints_is_not_built(listener: str) -> None:
    endpoints = all_endpoints()
    mine = [route.endpoint for route in ROUTES if route.listener == listener]
    build_app(listener, endpoints)  # type: ignore[arg-type]
    del endpoints[mine[-1]]
    with pytest.raises(LookupError, match=mine[-1]):
        build_app(listener, endpoints)  # type: ignore[arg-type]


def test_every_row_of_the_table_is_reachable_and_says_its_limits() -> None:
    for listener in LISTENERS:
        built = build_app(listener, all_endpoints())  # type: ignore[arg-type]
        for route in (route for route in ROUTES if route.listener == listener):
            path = route.path.replace("{path*}", "a/b").replace("{", "").replace("}", "")
            assert built.match(route.method, path).entry.route == route, route
            assert route.seconds > 0
            assert (route.max_body > 0) == (route.method in ("POST", "PUT", "PATCH"))


@pytest.mark.req("E-6")
@pytest.mark.parametrize(
    "path",
    [
        "/.well-known/est/serverkeygen",
        "/.well-known/est",
        "/.well-known/est/",
        "/.well-known/brski/requestauditlog",
        "/.well-known/brski/REQUESTVOUCHER",
        "/v1/agents",
        "/",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_not_in_the_table_is_404(path: str, method: str) -> None:
    built = build_app("device", {name: serve for name, serve in all_endpoints().items() if name not in OPTIONAL})
    reply = handle(built, Call(method, path, "application/pkcs10", body=b"x"))
    assert reply.status == 404


@pytest.mark.req("E-1", "E-16")
def test_nothing_is_redirected_however_a_path_is_spelled() -> None:
    built = build_app("device", all_endpoints())
    for route in (route for route in ROUTES if route.listener == "device"):
        for path in (route.path, route.path + "/", "/" + route.path, route.path.upper(), route.path.rpartition("/")[0]):
            for method in ("GET", "POST"):
                reply = handle(built, Call(method, path, "application/pkcs10"))
                assert not 300 <= reply.status < 400 and "location" not in reply.headers, path


@pytest.mark.req("E-11")
def test_est_methods_are_fixed_with_and_without_a_label() -> None:
    built = build_app("device", all_endpoints())
    for prefix in ("/.well-known/est", "/.well-known/est/agents"):
        for operation, allow in (("cacerts", "GET, HEAD"), ("simpleenroll", "POST"), ("simplereenroll", "POST")):
            wrong = "POST" if allow.startswith("GET") else "GET"
            reply = handle(built, Call(wrong, f"{prefix}/{operation}"))
            assert (reply.status, reply.headers["allow"]) == (405, allow)
            assert reply.media_type.startswith("text/plain")


@pytest.mark.req("E-1")
def test_no_route_of_another_port_is_reachable() -> None:
    for listener in LISTENERS:
        built = build_app(listener, all_endpoints())  # type: ignore[arg-type]
        mine = {(route.method, route.path) for route in ROUTES if route.listener == listener}
        for route in ROUTES:
            if route.listener != listener and (route.method, route.path) not in mine:
                path = route.path.replace("{path*}", "a/b").replace("{", "").replace("}", "")
                assert handle(built, Call(route.method, path)).status in (404, 405), (listener, path)


def test_a_route_for_certificates_refuses_who_has_none() -> None:
    refused = handle(app(), Call("POST", "/mine", body=b"x"))
    assert refused.status == 401 and json.loads(refused.body)["reason"] == "certificate-required"
    certificate, _ = certify("stranger")
    assert handle(app(), Call("POST", "/mine", body=b"x"), Peer("10.0.0.1", 1, certificate)).status == 200


def test_a_wrong_media_type_is_415_and_an_oversize_body_413() -> None:
    assert handle(app(), Call("POST", "/json", "text/plain", body=b"{}")).status == 415
    assert handle(app(), Call("POST", "/json", "application/json", body=b"{}")).status == 200
    assert handle(app(), Call("POST", "/json", "application/json", body=bytes(1001))).status == 413
    assert handle(app(), Call("GET", "/who", body=b"x")).status == 413


def test_errors_without_a_socket_are_the_same() -> None:
    assert handle(app(), Call("GET", "/broken")).status == 500
    assert handle(app(), Call("GET", "/slow")).status == 503
    assert json.loads(handle(app(), Call("GET", "/refused")).body)["reason"] == "not-found"


def test_the_request_id_of_the_caller_is_not_taken_over() -> None:
    seen: list[str] = []

    async def look(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        seen.append(call.headers["x-request-id"])
        return Reply(200)

    route = Route("device", "GET", "/", "look", "anyone", frozenset(), 0, "none", 5)
    built = build_app("device", {"look": look}, routes=(route,))
    handle(built, Call("GET", "/", headers={"x-request-id": "mine"}))
    handle(built, Call("GET", "/", headers={"x-request-id": "mine"}))
    assert "mine" not in seen and len(set(seen)) == 2


@pytest.mark.req("E-203")
def test_limits_count_strangers_by_address_and_ours_by_key() -> None:
    clock = FixedClock()
    known = certify("known")[0]
    limits = Limits(clock, Bucket(1, 2), Bucket(10, 5), is_known=lambda peer: peer.certificate == known)
    target = app(limits=limits)
    call = Call("GET", "/limited")
    assert [handle(target, call, Peer("10.0.0.1")).status for _ in range(3)] == [200, 200, 429]
    assert [handle(target, call, Peer("10.0.0.2")).status for _ in range(3)] == [200, 200, 429]
    stranger = Peer("10.0.0.3", 7, certify("stranger")[0])
    assert [handle(target, call, stranger).status for _ in range(3)] == [200, 200, 429]
    ours = Peer("10.0.0.1", 8, known)
    assert [handle(target, call, ours).status for _ in range(6)] == [200] * 5 + [429]
    elsewhere = Peer("10.0.0.9", 9, known)
    assert handle(target, call, elsewhere).status == 429
