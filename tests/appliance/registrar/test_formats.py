"""JWS beside CMS at the registrar: what the pledge asked in goes to the MASA, comes back, and is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from brski import MasaPolicy, jws, paths, voucher_request
from est import jose
from est.exchange import Call, Reply
from tests.appliance.registrar.world import World, play

JWS = paths.VOUCHER_JWS_JSON


@pytest.mark.req("B-201", "B-211", "B-313", "B-338", "B-340", "B-441", "B-448")
def test_a_whole_bootstrap_in_jws(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = replace(world.device(), media_type=JWS)
        asked: list[Call] = []
        world.masa.answer = lambda call: asked.append(call)
        reply = await device.voucher()
        assert (reply.status, reply.media_type) == (200, JWS)
        assert reply.body == world.masa.answers[0].body
        assert (await device.status()).status == 200
        assert (await device.enroll()).status == 200
        assert [(call.path.rsplit("/", 1)[1], call.media_type) for call in asked] == [
            ("requestvoucher", JWS),
            ("requestauditlog", JWS),
        ]
        # the history is asked for with the very same request
        assert asked[0].body == asked[1].body
        rvr, _ = voucher_request.unseal(asked[0].body, JWS)
        assert jws.unseal(rvr.prior_signed_voucher_request or b"").certificates[0] == device.identity.certificate
        row = await world.row()
        assert row["state"] == "enrolled" and row["audit_verdict"] == "accepted"

    play(tmp_path, story)


@pytest.mark.req("B-231", "B-234")
def test_the_same_request_again_gets_the_same_voucher_in_the_same_format_after_a_restart(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = replace(world.device(), media_type=JWS)
        call = device.request()
        first = await world.handle(call, device.peer)
        again = await World.create(tmp_path, reopen=world)
        second = await again.handle(call, device.peer)
        assert (second.status, second.media_type, second.body) == (200, JWS, first.body)
        assert world.masa.count("requestvoucher") == 1
        # the same bytes under another name are no request at all
        mislabelled = replace(call, media_type=paths.VOUCHER_CMS_JSON, headers={})
        assert (await again.handle(mislabelled, device.peer)).status == 400
        again.close()

    play(tmp_path, story)


@pytest.mark.req("B-212", "B-226", "B-227", "B-256")
@pytest.mark.parametrize(("name", "other"), [("cms", JWS), ("jws", paths.VOUCHER_CMS_JSON)])
def test_a_site_takes_one_format_only_if_it_says_so(name: str, other: str, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        refused = await world.handle(replace(device, media_type=other).request(), device.peer)
        assert refused.status == 415 and world.masa.calls == []
        device.media_type = paths.VOUCHER_FORMATS[name]
        assert (await device.voucher()).status == 200

    play(tmp_path, story, voucher_formats=(name,))


@pytest.mark.req("B-212", "B-226")
@pytest.mark.parametrize("status", [406, 415])
def test_a_masa_that_does_not_know_the_format_is_told_apart_from_one_that_says_no(status: int, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = replace(world.device(), media_type=JWS)
        world.masa.masa = type(world.masa.masa)(
            world.factory.masa_signer,
            world.factory.masa_chain,
            world.factory.device_anchors,
            MasaPolicy(formats=frozenset({paths.VOUCHER_CMS_JSON})),
        )
        if status == 406:
            world.masa.answer = lambda call: Reply(406, "text/plain", body=b"no")
        assert (await device.voucher()).status == 406
        assert (await world.row())["timeline"][-1]["code"] == "masa-format-refused"
        # the other format is another request, and the device is not locked out
        world.masa.answer = lambda call: None
        device.media_type = paths.VOUCHER_CMS_JSON
        assert (await device.voucher()).status == 200

    play(tmp_path, story)


@pytest.mark.req("B-444", "T-22")
def test_an_unsigned_request_stays_outside(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = replace(world.device(), media_type=JWS)
        call = device.request()
        document = json.loads(call.body)
        header = json.loads(jose.unbase64url(document["signatures"][0]["protected"].encode()))
        protected = jose.base64url(json.dumps(header | {"alg": "none"}).encode())
        document["signatures"] = [{"protected": protected, "signature": ""}]
        reply = await world.handle(replace(call, body=json.dumps(document).encode()), device.peer)
        assert reply.status == 400 and world.masa.calls == []

    play(tmp_path, story)
