"""How an error looks on the wire."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from appliance.errors import Conflict, DiskFull, KeyMismatch, NotFound, QueueFull, RateLimited, TokenRequired
from appliance.web.problems import one_line, problem, status_of
from est.errors import MethodNotAllowed, Refusal


def answer(error: BaseException, path: str = "/v1/x"):
    return problem(error, path=path, request_id="r1")


def test_a_refusal_shows_its_reason_detail_and_public_fields() -> None:
    reply = answer(NotFound("no such owner", owner="é", count=3, raw=b"\x01", many=("a", "b"), status=200, reason="x"))
    assert reply.status == 404 and reply.media_type == "application/problem+json"
    assert json.loads(reply.body) == {
        "type": "/problems/not-found",
        "title": "not found",
        "status": 404,
        "detail": "no such owner",
        "reason": "not-found",
        "request_id": "r1",
        "owner": "é",
        "count": 3,
        "raw": "01",
        "many": ["a", "b"],
    }


@pytest.mark.req("E-138")
def test_well_known_paths_get_one_line_of_text() -> None:
    reply = answer(NotFound("two\r\nlines \x1b[31m"), "/.well-known/est/cacerts")
    assert reply.media_type.startswith("text/plain")
    assert reply.body == b"not-found: two??lines ?[31m (request r1)\n"


def test_a_leaf_without_a_row_takes_its_ancestors() -> None:
    class Special(Conflict):
        reason: ClassVar[str] = "special-conflict-of-this-test"

    class Nowhere(Refusal):
        reason: ClassVar[str] = "nowhere-in-the-table"

    assert status_of(Special) == status_of(Special("x")) == 409
    assert json.loads(answer(Special("x")).body)["reason"] == "special-conflict-of-this-test"
    assert status_of(Nowhere) is None
    assert answer(Nowhere("hidden")).status == 500 and b"hidden" not in answer(Nowhere("hidden")).body


@pytest.mark.parametrize("error", [RuntimeError("private"), KeyMismatch("private"), ZeroDivisionError()])
def test_our_own_faults_show_no_detail(error: Exception) -> None:
    reply = answer(error)
    assert reply.status == 500 and b"private" not in reply.body


def test_headers_go_with_their_status() -> None:
    assert answer(RateLimited("slow down", retry_after_seconds=0.2)).headers["retry-after"] == "1"
    assert answer(QueueFull("full", retry_after_seconds=7)).headers["retry-after"] == "7"
    assert answer(DiskFull("full")).headers["retry-after"] == "5"
    assert answer(MethodNotAllowed("no", allow="GET, HEAD")).headers["allow"] == "GET, HEAD"
    assert answer(TokenRequired("who")).headers["www-authenticate"].startswith("Bearer")
    assert (
        answer(TokenRequired("who", www_authenticate='Basic realm="est"'))
        .headers["www-authenticate"]
        .startswith("Basic")
    )
    assert answer(Conflict("c", close=True)).headers["connection"] == "close"
    assert dict(answer(Conflict("c")).headers) == {}


def test_one_line_is_short_and_printable() -> None:
    assert one_line("a\nb\x00c" + "d" * 1000) == "a?b?c" + "d" * 495
