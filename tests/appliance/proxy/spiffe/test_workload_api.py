"""The SPIFFE Workload API at the proxy: dual-identity certificates for software that expects its key to be made."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from appliance.binding import dual_identity, jws
from appliance.binding import request as requests
from appliance.binding.facts import Model
from appliance.proxy.spiffe.http2 import MAX_STREAMS
from appliance.proxy.spiffe.messages import Code
from appliance.web.limits import Bucket
from est.keys import spki
from tests.appliance.proxy.spiffe.scene import LABEL, Scene, run
from tests.appliance.proxy.spiffe.wire import BUNDLES, EMPTY, FETCH, Client, fields, refused

HUGE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff" + bytes(200_000)
"""The begin of a frame of 16 MiB."""


def read_svid(message: bytes) -> tuple[str, list[x509.Certificate], Any, x509.Certificate]:
    ((number, svid),) = fields(message)
    assert number == 1
    found = dict(fields(svid))
    assert sorted(found) == [1, 2, 3, 4]
    chain, rest = [], found[2]
    while rest:
        length = 4 + int.from_bytes(rest[2:4], "big")
        chain.append(x509.load_der_x509_certificate(rest[:length]))
        rest = rest[length:]
    key = load_der_private_key(found[3], None)
    return found[1].decode(), chain, key, x509.load_der_x509_certificate(found[4])


async def first(scene: Scene, **options: Any) -> tuple[Client, bytes]:
    client = await Client.open(scene.socket, **options)
    client.call()
    await scene.answer()
    return client, await client.message()


@pytest.mark.req("A-3", "A-106", "A-107")
def test_the_first_svid_waits_for_the_owner_and_renewals_come_by_themselves(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        assert stat.S_IMODE(scene.socket.stat().st_mode) == 0o660
        client, message = await first(scene)
        seen = requests.unseal(scene.questions[0]["request"])
        assert (seen.label, seen.sub, seen.profiles) == (LABEL, scene.agent, ("x509",))
        keys = set()
        for model in (Model.SERVER_MEDIATED, Model.STANDING, Model.STANDING):
            spiffe_id, chain, key, root = read_svid(message)
            assert spiffe_id == scene.agent and root.subject == root.issuer and root not in chain
            chain[0].verify_directly_issued_by(chain[1])
            chain[1].verify_directly_issued_by(root)
            assert spki(chain[0]) == spki(key.public_key())
            dual = dual_identity.of_certificate(chain[0])
            assert dual is not None and dual.model is model
            keys.add(spki(chain[0]))
            scene.campus.clock.advance(2700)
            message = await client.message()
        assert len(keys) == 3 and len(scene.questions) == 1
        assert [one["renewal"] for one in scene.told("spiffe-svid-issued")] == [False, True, True, True]
        client.close()

    run(tmp_path, story)


@pytest.mark.req("A-16")
def test_the_audit_log_and_the_evidence_say_that_the_proxy_made_the_key(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        client, _ = await first(scene)
        client.close()
        for event in ("agent-request-received", "dual-identity-issued"):
            assert [one["fields"]["key_origin"] for one in await scene.campus.audited(event)] == ["proxy"]
        (issued,) = (await scene.desk.call("GET", "/v1/owners/self/issued"))[1]["credentials"]
        assert issued["platform"]["key_origin"] == "proxy"
        own = await scene.proxy.ask(scene.owner)
        assert (await own.approved().submit())[0] == 201
        assert "key_origin" not in (await scene.campus.audited("dual-identity-issued"))[-1]["fields"]

    run(tmp_path, story)


@pytest.mark.req("A-16")
def test_the_key_is_in_no_file_and_no_event(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        client, message = await first(scene)
        key = dict(fields(next(fields(message))[1]))[3]
        secret = load_der_private_key(key, None).private_numbers().private_value.to_bytes(32, "big")  # type: ignore[union-attr]
        for path in tmp_path.rglob("*"):
            if path.is_file():
                body = path.read_bytes()
                assert secret not in body and jws.base64url(secret).encode() not in body and b"PRIVATE" not in (
                    body if path.is_relative_to(tmp_path / "proxy") else b""
                ), path  # fmt: skip
        assert secret.hex() not in str(scene.events)
        client.close()

    run(tmp_path, story)


def test_callers_of_one_workload_share_its_svid_and_ask_the_owner_once(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        clients = [await Client.open(scene.socket) for _ in range(5)]
        for client in clients:
            client.call()
        await scene.answer()
        serials = {read_svid(await client.message())[1][0].serial_number for client in clients}
        assert len(serials) == 1 and len(scene.told("spiffe-svid-issued")) == 1
        for client in clients:
            client.close()

    run(tmp_path, story)


def test_a_caller_that_leaves_while_the_owner_is_asked_leaves_the_question_to_the_next(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        early = await Client.open(scene.socket)
        early.call()
        async with asyncio.timeout(20):
            while not await scene.desk.waiting():
                await asyncio.sleep(0.02)
        early.close()
        client, message = await first(scene)
        assert read_svid(message)[0] == scene.agent
        assert len(await scene.campus.audited("owner-challenged")) == 1
        client.close()

    run(tmp_path, story)


def test_an_owners_no_is_permission_denied(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        call = asyncio.create_task(refused(scene.socket))
        await scene.answer(deny=True)
        assert await call == (Code.PERMISSION_DENIED, "no identity issued: approval-denied")

    run(tmp_path, story)


@pytest.mark.req("A-107")
def test_beyond_the_standing_approval_the_old_svid_serves_until_it_ends_and_then_the_owner_is_asked(
    tmp_path: Path,
) -> None:
    async def story(scene: Scene) -> None:
        client, message = await first(scene)
        scene.campus.clock.advance(2700)
        second = read_svid(await client.message())[1][0]
        scene.campus.clock.advance(2700)
        async with asyncio.timeout(20):
            while not scene.told("spiffe-renewal-failed"):
                await asyncio.sleep(0.02)
        assert scene.told("spiffe-renewal-failed")[0]["reason"] == "standing-approval-used-up"
        other = await Client.open(scene.socket)
        other.call()
        assert read_svid(await other.message())[1][0] == second
        scene.campus.clock.advance(3000)
        await scene.answer()
        for one in (client, other):
            leaf = read_svid(await one.message())[1][0]
            assert leaf != second
            dual = dual_identity.of_certificate(leaf)
            assert dual is not None and dual.model is Model.SERVER_MEDIATED
            one.close()

    run(tmp_path, story, max_uses=1)


def test_bundles_are_the_campus_root_by_its_trust_domain(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        client = await Client.open(scene.socket)
        client.call(BUNDLES)
        ((number, entry),) = fields(await client.message())
        found = dict(fields(entry))
        assert (number, found[1]) == (2, b"spiffe://campus.example")
        assert x509.load_der_x509_certificate(found[2]) == scene.campus.ca.root
        client.close()
        assert await scene.desk.waiting() == []

    run(tmp_path, story)


@pytest.mark.parametrize("header", ["", "false", "True"])
def test_without_the_security_header_nothing_is_served(tmp_path: Path, header: str) -> None:
    async def story(scene: Scene) -> None:
        for method in (FETCH, BUNDLES):
            code, message = await refused(scene.socket, method, **{"workload.spiffe.io": header})
            assert code == Code.INVALID_ARGUMENT and "workload.spiffe.io" in message

    run(tmp_path, story)


@pytest.mark.req("A-16")
@pytest.mark.parametrize("method", [FETCH, BUNDLES])
def test_another_program_and_another_user_get_permission_denied(tmp_path: Path, method: str) -> None:
    async def story(scene: Scene) -> None:
        assert await refused(scene.socket, method) == (Code.PERMISSION_DENIED, "no identity issued: workload-unknown")
        assert await scene.desk.waiting() == []

    for number, caller in enumerate(({"program": bytes(32)}, {"uid": os.getuid() + 1})):
        folder = tmp_path / str(number)
        folder.mkdir()
        run(folder, story, **caller)


def test_what_is_not_served_and_what_is_no_call_is_said_so(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        for name in ("FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID", "Nothing"):
            assert (await refused(scene.socket, f"/SpiffeWorkloadAPI/{name}"))[0] == Code.UNIMPLEMENTED
        assert (await refused(scene.socket, "/other.Service/FetchX509SVID"))[0] == Code.UNIMPLEMENTED
        for body, code in (
            (b"", Code.INTERNAL), (b"\0\0", Code.INTERNAL), (EMPTY + b"x", Code.INTERNAL),
            (b"\1" + EMPTY[1:], Code.UNIMPLEMENTED), (EMPTY + bytes(10_000), Code.RESOURCE_EXHAUSTED),
        ):  # fmt: skip
            assert (await refused(scene.socket, body=body))[0] == code
        for headers in ({":method": "GET"}, {"content-type": "application/json"}):
            client = await Client.open(scene.socket)
            client.call(**headers)
            assert (await client.end())[":status"] == "415"
            client.close()

    run(tmp_path, story)


def test_what_is_not_http2_ends_the_connection_and_the_next_is_served(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        for octets in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            bytes(64),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\1",
            HUGE,
        ):
            reader, writer = await asyncio.open_unix_connection(str(scene.socket))
            writer.write(octets)
            async with asyncio.timeout(60):
                await reader.read()
            writer.close()
        assert (await refused(scene.socket, BUNDLES + "x"))[0] == Code.UNIMPLEMENTED

    run(tmp_path, story)


def test_silent_connections_are_closed_and_a_user_has_a_rate_and_so_many_streams(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        silent = await Client.open(scene.socket)
        await silent.end()
        busy = await Client.open(scene.socket)
        for _ in range(MAX_STREAMS + 1):
            busy.call()
        await busy.end()
        answers = [(await refused(scene.socket, BUNDLES + "x"))[0] for _ in range(30)]
        assert Code.RESOURCE_EXHAUSTED in answers

    run(tmp_path, story, silent_seconds=0.2, rate=Bucket(0.1, 25))


def test_a_client_that_takes_few_octets_at_a_time_gets_them_all(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        client, message = await first(scene, window=100)
        assert read_svid(message)[0] == scene.agent
        client.close()

    run(tmp_path, story)
