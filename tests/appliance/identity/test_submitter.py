"""Who may submit: proxies with a live domain certificate, and nobody else."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from appliance import cascade
from appliance.binding import composite
from appliance.store import proxies
from lab.factory import Factory
from tests.appliance.identity.campus import ADMIN, ORIGIN, Campus, OwnerHost, Proxy, campus_keys, new_key
from tests.appliance.identity.test_enroll import credentials, play

OTHER = f"{ORIGIN}/proxy/33333333-3333-4333-8333-333333333333"
LIFE = timedelta(days=1)


async def knock(campus: Campus, proxy: Proxy, certificate: x509.Certificate | None) -> tuple[int, str]:
    peer = campus.peer(certificate)
    visitor = replace(proxy, peer=peer)
    seen = set()
    for method, path, body in (
        ("POST", "/v1/agents/nonce", b'{"jkt": "' + b"A" * 43 + b'", "purpose": "issue"}'),
        ("GET", f"/v1/agents/requests/{'A' * 43}", b""),
    ):
        status, answer, _ = await visitor.call(method, path, body)
        seen.add((status, answer["reason"]))
    body = composite.write(composite.Composite("a.b.c"))
    status, answer, _ = await visitor.call("POST", "/v1/agents/enroll", body, composite.MEDIA_TYPE)
    seen.add((status, answer["reason"]))
    assert len(seen) == 1, seen
    return seen.pop()


@pytest.mark.req("A-11", "A-102")
def test_everybody_but_a_proxy_is_refused_with_the_reason(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        async def reason(certificate: x509.Certificate | None) -> tuple[int, str]:
            return await knock(campus, proxy, certificate)

        async def issued(**more: Any) -> x509.Certificate:
            return await campus.certificate(new_key(), **({"life": LIFE} | more))

        assert await reason(None) == (401, "certificate-required")
        idevid = Factory.create(now=campus.clock.now()).make_device("PX-1", now=campus.clock.now())
        assert await reason(idevid.certificate) == (403, "submitter-foreign")
        _, answer = await (await proxy.ask(owner)).approved().submit()
        agent = x509.load_pem_x509_certificate(answer["certificate"].encode())
        assert await reason(agent) == (403, "submitter-wrong-role")
        assert await reason(await issued(role="infrastructure", identifier=OTHER)) == (403, "submitter-wrong-role")
        assert await reason(await issued(role="agents", identifier=OTHER)) == (403, "submitter-wrong-role")
        registrar = campus_keys()[0].certificates["registrar"]
        assert await reason(registrar) == (403, "submitter-not-a-proxy")
        assert await reason(campus_keys()[0].certificates["devices"]) == (403, "submitter-foreign")
        for kind in ("agent", "owner", "nas"):
            assert await reason(await issued(identifier=OTHER.replace("/proxy/", f"/{kind}/"))) == (
                403,
                "submitter-not-a-proxy",
            )
        foreign = OTHER.replace("campus.example", "other.example")
        assert await reason(await issued(identifier=foreign)) == (403, "submitter-not-a-proxy")
        assert await reason(await issued(identifier=OTHER)) == (403, "proxy-not-active")
        short = await issued(identifier=proxy.identifier, life=timedelta(seconds=60))
        campus.clock.advance(61)
        assert await reason(short) == (403, "certificate-outside-validity")

    play(tmp_path, story)


@pytest.mark.req("A-11", "A-102")
def test_a_revoked_certificate_or_proxy_is_refused_at_the_next_request(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner)).approved()
        certificate = proxy.peer.certificate
        assert certificate is not None
        await campus.ca.revoke("devices", certificate.serial_number, actor=ADMIN)
        assert (await ask.submit())[1]["reason"] == "submitter-not-live"
        other = await campus.proxy()
        assert (await other.status("A" * 43))[0] == 404
        row = await campus.store.read(lambda tx: proxies.by_identifier(tx, other.identifier))
        assert row is not None
        await campus.store.write(lambda tx: proxies.revoke(tx, row))
        assert (await other.status("A" * 43))[1]["reason"] == "proxy-not-active"

    play(tmp_path, story)


@pytest.mark.req("A-102", "A-17")
def test_agents_fall_with_the_proxy_that_vouched_for_them(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        mine, other = (await proxy.ask(owner)).approved(), await campus.proxy()
        theirs = (await other.ask(owner)).approved()
        assert (await mine.submit())[0] == (await theirs.submit())[0] == 201
        count = await campus.store.write(lambda tx: cascade.revoke_behind_proxy(tx, proxy.identifier, actor=ADMIN))
        assert count == 1
        assert [row.state for row in await credentials(campus, mine.sub)] == ["revoked"]
        assert [row.state for row in await credentials(campus, theirs.sub)] == ["issued"]
        states = {one["identifier"]: one["state"] for one in await campus.registry.list()}
        assert states == {mine.sub: "revoked", theirs.sub: "registered"}

    play(tmp_path, story)
