"""Every route of the registrar against bytes that are not what they should be: a typed 4xx, nothing changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from est.exchange import Call
from tests.appliance.registrar.world import ADMIN, World, basic, play

RANDOM = random.Random(8995)

BODIES: dict[str, Callable[[World], bytes]] = {
    "empty": lambda world: b"",
    "64 KiB and one": lambda world: b"A" * 65_537,
    "random": lambda world: RANDOM.randbytes(700),
    "DER of another kind": lambda world: world.registrar_certificate.public_bytes(Encoding.DER),
    "DER and trailing bytes": lambda world: world.device("PX-8").csr() + b"\0",
    "duplicate keys": lambda world: b'{"version":1,"status":true,"version":1}',
    "depth 10000": lambda world: b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "not UTF-8": lambda world: b'{"version":1,"status":true,"reason":"\xff"}',
    "NaN": lambda world: b'{"version":NaN,"status":true}',
    "indefinite length": lambda world: b"\x30\x80\x02\x01\x00\x00\x00",
    "nested DER": lambda world: _nested(400),
}
ROUTES = {
    "/.well-known/brski/requestvoucher": "application/voucher-cms+json",
    "/.well-known/brski/voucher_status": "application/json",
    "/.well-known/brski/enrollstatus": "application/json",
    "/.well-known/est/simpleenroll": "application/pkcs10",
    "/.well-known/est/simplereenroll": "application/pkcs10",
}


def _nested(depth: int) -> bytes:
    body = b"\x05\x00"
    for _ in range(depth):
        length = len(body)
        size = bytes([length]) if length < 128 else b"\x82" + length.to_bytes(2)
        body = b"\x30" + size + body
    return body


@pytest.mark.req("E-200", "E-201", "E-27", "E-111", "T-23", "B-228", "B-352", "B-354")
@pytest.mark.parametrize("path", ROUTES)
def test_bad_bytes_are_a_typed_4xx_and_change_nothing(tmp_path: Path, path: str) -> None:
    async def story(world: World) -> None:
        device = world.device()
        ldevid = device.with_ldevid(await device.bootstrap())
        await device.voucher()
        await device.status()
        before = (await world.row())["state"]
        for name, body in BODIES.items():
            for peer in (device.peer, ldevid, world.peer()):
                reply = await world.handle(Call("POST", path, ROUTES[path], {}, body(world)), peer)
                assert 400 <= reply.status < 500, (name, reply)
                assert b"Traceback" not in reply.body and len(reply.body) < 700
                assert reply.media_type.startswith("text/plain") or (reply.status, reply.body) == (401, b"")
        assert (await world.row())["state"] == before
        assert (await device.enroll()).status == 200

    play(tmp_path, story)


@pytest.mark.req("B-212", "B-227", "B-226", "E-111", "E-141")
def test_media_types_and_accept_are_negotiated(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        call = device.request()
        for media_type in ("application/json", "", "application/voucher-cose+cbor", "application/pkcs7-mime"):
            wrong = Call("POST", call.path, media_type, {}, call.body)
            assert (await world.handle(wrong, device.peer)).status == 415
        mislabelled = Call("POST", call.path, "application/voucher-jws+json", {}, call.body)
        assert (await world.handle(mislabelled, device.peer)).status == 400
        picky = Call("POST", call.path, call.media_type, {"accept": "application/voucher-jws+json"}, call.body)
        assert (await world.handle(picky, device.peer)).status == 406
        assert world.masa.calls == []
        enrol = Call("POST", "/.well-known/est/simpleenroll", "text/plain", {}, b"AAAA")
        await device.voucher()
        await device.status()
        assert (await world.handle(enrol, device.peer)).status == 415

    play(tmp_path, story)


@pytest.mark.req("E-49")
def test_a_bad_request_does_not_spend_a_secret(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        headers = basic(made["credentials"])
        for body in BODIES.values():
            call = Call("POST", "/.well-known/est/simpleenroll", "application/pkcs10", headers, body(world))
            assert 400 <= (await world.handle(call, world.peer())).status < 500
        assert await world.audited("est-secret-spent") == []

    play(tmp_path, story)


def test_a_wrong_method_names_the_right_one(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        reply = await world.handle(Call("GET", "/.well-known/est/simpleenroll"), world.peer())
        assert (reply.status, reply.headers["allow"]) == (405, "POST")

    play(tmp_path, story)
