"""What an owner's gateway submits: one check as for the other models, and nothing that the gateway could forge."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from sqlalchemy import select

from appliance.access.owner_keys import check_gateway_url
from appliance.binding import composite, jws, possession, verify
from appliance.binding.composite import Composite
from appliance.binding.errors import ClaimMalformed, KeyReused, TokenTypeWrong
from appliance.binding.facts import Model, OwnerKey, OwnerRecord
from appliance.binding.verify import TrustDomain
from appliance.errors import RequestMalformed
from appliance.owner.client_key import ClientKeyFiles, client_keygen, gateway_keygen, gateway_statement
from appliance.store import org_material, proxies, schema
from appliance.store.transaction import Tx
from appliance.web.peer import Peer
from est.exchange import Call
from est.signer import KeySigner
from tests.appliance.identity.campus import (
    ADMIN,
    ORIGIN,
    SERVER_ID,
    Ask,
    Campus,
    OwnerHost,
    Proxy,
    new_key,
    random_id,
)
from tests.appliance.identity.test_enroll import credentials, play

MODEL = str(Model.OWNER_MEDIATED)
ISSUED = select(schema.certificates.c.id).where(schema.certificates.c.profile == "agent")


@dataclass
class Gateway:
    """An owner's gateway with its registered client key."""

    owner: OwnerHost
    peer: Peer
    files: ClientKeyFiles

    @classmethod
    async def register(cls, owner: OwnerHost, folder: Path) -> Gateway:
        made = client_keygen(folder / owner.ref, ref=owner.ref, audience=ORIGIN, now=owner.campus.clock.now())
        statement = made.statement_file.read_text().strip()
        await owner.campus.directory.add_client_key(owner.ref, statement, actor=ADMIN)
        certificate = x509.load_pem_x509_certificate(made.certificate_file.read_bytes())
        return cls(owner, Peer("192.0.2.20", 78, certificate, (certificate,), "TLSv1.3"), made)

    async def call(self, method: str, path: str, body: bytes = b"", media_type: str = "") -> tuple[int, dict[str, Any]]:
        reply = await self.owner.campus.app.handle(Call(method, path, media_type, body=body), self.peer)
        return reply.status, json.loads(reply.body)

    async def submit(self, made: Composite) -> tuple[int, dict[str, Any]]:
        return await self.call("POST", "/v1/agents/enroll", composite.write(made), composite.MEDIA_TYPE)


def private(files: ClientKeyFiles) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(files.key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


async def revoke(campus: Campus, proxy: Proxy) -> None:
    def write(tx: Tx) -> None:
        row = proxies.by_identifier(tx, proxy.identifier)
        assert row is not None
        proxies.revoke(tx, row)

    await campus.store.write(write)


async def asked(proxy: Proxy, owner: OwnerHost, **changed: Any) -> Ask:
    return await proxy.ask(owner, **({"model": MODEL} | changed))


def signed(ask: Ask, *org: str, **changed: Any) -> Composite:
    """What an honest gateway submits."""
    made = replace(ask.composite(), org=org)
    assert ask.owner is not None
    return replace(made, approvals=(ask.owner.approve(ask.token, org=made.org_s256, **changed),))


@pytest.mark.req("A-11", "A-36", "A-50", "A-65", "A-5")
def test_a_gateway_submits_for_a_proxy_and_its_material_is_kept_and_told_by_hash_and_in_no_certificate(
    tmp_path: Path,
) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        gateway = await Gateway.register(owner, tmp_path)
        ask = await asked(proxy, owner)
        material = ("eyJhbGciOiJFUzI1NiJ9.bWVtYmVy.c2ln", "member 0815 of Example Partner")
        made = signed(ask, *material, proxy=proxy.identifier)
        status, answer = await gateway.submit(made)
        assert status == 201, answer
        leaf = x509.load_pem_x509_certificates(answer["certificate"].encode())[0]
        record = OwnerRecord(owner.identifier, (OwnerKey(owner.jkt, owner.signer.public_key()),))
        domain = TrustDomain(ORIGIN, SERVER_ID, campus.ca.anchors("agents"))
        report = verify.verify_certificate(leaf, (), domain, lambda _: record, at=campus.clock.now())
        assert (report.agent_id, report.model) == (ask.sub, Model.OWNER_MEDIATED)
        assert report.approval is not None and report.approval.org == made.org_s256
        der = leaf.public_bytes(Encoding.DER)
        # W-13 allows 2,000 bytes without material; its hash adds less than a hundred
        assert len(der) <= 2080 and not any(one.encode() in der for one in material)
        assert campus.store.read_sync(lambda tx: org_material.of_request(tx, ask.request.rqh)) == list(material)
        (row,) = (await campus.registry.show(ask.sub))["requests"]
        assert row["org"] == list(material)
        told = [entry for entry in await campus.audited() if entry["fields"].get("txn") == answer["txn"]]
        issued = next(entry for entry in told if entry["event"] == "dual-identity-issued")
        assert issued["fields"]["org_s256"] == made.org_s256
        assert (issued["actor"]["kind"], issued["actor"]["identifier"]) == ("owner", owner.identifier)
        assert issued["fields"]["proxy"] == proxy.identifier and issued["fields"]["model"] == MODEL
        # the gateway, and nobody else, may ask again what became of it
        path = f"/v1/agents/requests/{ask.request.rqh}"
        assert await gateway.call("GET", path) == (200, answer)
        assert (await gateway.submit(made))[1]["reason"] == "approval-spent"
        other = await Gateway.register(await campus.owner("bob", "HR"), tmp_path)
        assert (await other.call("GET", path))[0] == 404

    play(tmp_path, story)


Attack = Callable[[Campus, Proxy, OwnerHost, Gateway], Awaitable[tuple[int, dict[str, Any]]]]
ATTACKS: list[tuple[str, Attack]] = []


def refused_with(reason: str) -> Callable[[Attack], Attack]:
    def note(attack: Attack) -> Attack:
        ATTACKS.append((reason, attack))
        return attack

    return note


@refused_with("gateway-required")
async def the_proxy_submits_an_approved_request_itself(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    return await p.submit(signed(await asked(p, o)))


@refused_with("approval-missing")
async def nothing_is_approved(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    return await g.submit((await asked(p, o)).composite())


@refused_with("signature-invalid")
async def the_gateway_signs_with_its_client_key(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    ask = await asked(p, o)
    return await g.submit(replace(ask.composite(), approvals=(o.approve(ask.token, KeySigner(private(g.files))),)))


@refused_with("signature-invalid")
async def the_gateway_alters_the_request(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    made = signed(await asked(p, o))
    head, body, signature = made.request.split(".")
    claims = jws.read_object(jws.unbase64url(body, "payload"), "payload") | {"ttl": 86_000}
    body = jws.base64url(json.dumps(claims).encode())
    return await g.submit(replace(made, request=f"{head}.{body}.{signature}"))


@refused_with("approval-for-other-request")
async def the_gateway_lays_another_request_under_the_approval(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    key = new_key()
    first = await asked(p, o, key=key)
    second = Ask.make(p, o, KeySigner(key), {"sub": first.sub, "nonce": first.request.nonce, "server_id": SERVER_ID},
                      {"model": MODEL})  # fmt: skip
    return await g.submit(replace(second.composite(), approvals=signed(first).approvals))


@refused_with("csr-mismatch")
async def the_gateway_changes_the_csr(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    other = await asked(p, o)
    return await g.submit(replace(signed(await asked(p, o)), csr_der=other.csr_der))


@refused_with("signature-invalid")
async def the_gateway_makes_the_evidence_itself(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    ask = await asked(p, o)
    return await g.submit(replace(signed(ask), evidence=p.evidence(ask.token, new_key())))


@refused_with("evidence-for-other-request")
async def evidence_of_another_request(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    ask, other = await asked(p, o), await asked(p, o)
    transplanted = p.evidence(other.token, nonce=ask.request.nonce, jkt=ask.request.jkt)
    return await g.submit(replace(signed(ask), evidence=transplanted))


@refused_with("evidence-missing")
async def no_evidence(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    return await g.submit(replace(signed(await asked(p, o)), evidence=None))


@refused_with("evidence-too-old")
async def evidence_from_before_the_owners_lunch(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    made = signed(await asked(p, o))
    c.clock.advance(400)
    return await g.submit(made)


@refused_with("proxy-not-active")
async def evidence_of_a_proxy_that_was_revoked(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    made = signed(await asked(p, o))
    await revoke(c, p)
    return await g.submit(made)


@refused_with("proxy-not-allowed-for-owner")
async def a_proxy_outside_the_owners_matrix(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    other = await c.proxy()
    await c.directory.allow_proxy(o.ref, other.identifier, actor=ADMIN)
    return await g.submit(signed(await asked(p, o)))


@refused_with("approval-for-other-proxy")
async def the_approval_names_another_proxy(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    other = await c.proxy()
    return await g.submit(signed(await asked(p, o), proxy=other.identifier))


@refused_with("gateway-for-other-owner")
async def another_owners_gateway_with_the_right_approval(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    bob = await c.owner("bob", "HR")
    return await g.submit(signed(await asked(p, bob)))


@refused_with("agent-owner-mismatch")
async def an_agent_of_another_owner(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    bob, key = await c.owner("bob", "HR"), new_key()
    await c.registry.add(bob.ref, p.identifier, jws.jkt(key.public_key()), actor=ADMIN)
    return await g.submit(signed(await asked(p, o, key=key)))


@refused_with("submitter-not-a-proxy")
async def a_gateway_with_a_request_of_another_model(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    return await g.submit(signed(await p.ask(o)))


@refused_with("approval-for-other-model")
async def an_approval_given_for_another_model(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    ask = await asked(p, o)
    return await g.submit(replace(ask.composite(), approvals=(o.forge(ask.token, model="agent-mediated"),)))


@refused_with("org-material-mismatch")
async def material_that_the_owner_did_not_sign_for(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    return await g.submit(replace(signed(await asked(p, o), "member"), org=("member of the board",)))


@refused_with("org-material-mismatch")
async def material_left_out_on_the_way(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    return await g.submit(replace(signed(await asked(p, o), "member"), org=()))


@refused_with("org-material-not-expected")
async def material_from_a_proxy(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    return await p.submit(signed(await p.ask(o), "member"))


@refused_with("owner-not-active")
async def the_owner_is_suspended(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    made = signed(await asked(p, o))
    await c.directory.suspend(o.ref, actor=ADMIN)
    return await g.submit(made)


@refused_with("submitter-foreign")
async def the_client_key_is_revoked(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    made = signed(await asked(p, o))
    await c.directory.revoke_client_key(o.ref, g.files.jkt, actor=ADMIN)
    return await g.submit(made)


@refused_with("approval-denied")
async def the_owner_said_no(c: Campus, p: Proxy, o: OwnerHost, g: Gateway) -> Any:
    return await g.submit(signed(await asked(p, o), deny=True))


@pytest.mark.req("A-11", "A-14", "A-36", "A-50", "A-94", "A-96", "A-99", "A-103")
@pytest.mark.parametrize(("reason", "attack"), ATTACKS, ids=[attack.__name__ for _, attack in ATTACKS])
def test_a_gateway_that_is_not_honest_gets_nothing(tmp_path: Path, reason: str, attack: Attack) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        gateway = await Gateway.register(owner, tmp_path)
        status, answer = await attack(campus, proxy, owner, gateway)
        assert (answer.get("reason"), status >= 400) == (reason, True), answer
        issued = campus.store.read_sync(lambda tx: tx.all(ISSUED, {}))
        assert not issued
        if attack not in (the_client_key_is_revoked, the_owner_is_suspended):  # nobody who could be named
            assert any(entry["event"] == "agent-request-refused" for entry in await campus.audited())

    play(tmp_path, story)


@pytest.mark.req("A-32", "A-99")
def test_a_gateways_key_is_registered_once_and_told_to_the_owners_proxies_only(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        now = campus.clock.now()
        made = gateway_keygen(tmp_path / "server", ref="alice", audience=ORIGIN, now=now)
        statement = made.statement_file.read_text().strip()
        path = f"/v1/owners/{owner.identifier.rpartition('/')[2]}/gateways"
        assert (await proxy.call("GET", path))[0] == 404
        for url in ("http://gw.example", "https://gw.example/path", "https://u@gw.example", "https://gw.example:x", ""):
            with pytest.raises(RequestMalformed):
                await campus.directory.add_gateway("alice", url, statement, actor=ADMIN)
        with pytest.raises(TokenTypeWrong):
            await campus.directory.add_client_key("alice", statement, actor=ADMIN)
        await campus.directory.add_gateway("alice", "https://gw.example:9444", statement, actor=ADMIN)
        status, told, _ = await proxy.call("GET", path)
        certificate = x509.load_pem_x509_certificate(made.certificate_file.read_bytes())
        pin = Peer("", 1, certificate).key_sha256
        assert pin is not None and status == 200
        assert told["gateways"] == [{"url": "https://gw.example:9444", "spki_sha256": pin.hex()}]
        again = tmp_path / "again.jwt"
        gateway_statement(tmp_path / "server", again, ref="alice", audience=ORIGIN, now=now)
        for typ in (possession.GATEWAY_TYP, possession.CLIENT_TYP, possession.TYP):
            text = possession.seal(
                KeySigner(private(made)), sub="alice", aud=ORIGIN, iat=int(now.timestamp()),
                exp=int(now.timestamp()) + 60, jti=random_id(), typ=typ,
            )  # fmt: skip
            directory = campus.directory
            with pytest.raises(KeyReused):
                if typ == possession.GATEWAY_TYP:
                    await directory.add_gateway("alice", "https://b", text, actor=ADMIN)
                else:
                    take = directory.add_key if typ == possession.TYP else directory.add_client_key
                    await take("alice", text, actor=ADMIN)
        # nor can an agent have it
        assert (await (await proxy.ask(owner, key=private(made))).approved().submit())[1]["reason"] == "key-reuse"
        other = await campus.proxy()
        await campus.directory.allow_proxy("alice", proxy.identifier, actor=ADMIN)
        assert (await other.call("GET", path))[0] == 404
        assert (await proxy.call("GET", path))[0] == 200
        await campus.directory.revoke_gateway("alice", made.jkt, actor=ADMIN)
        assert (await proxy.call("GET", path))[0] == 404
        assert (await proxy.call("GET", "/v1/owners/nobody/gateways"))[0] == 404

    play(tmp_path, story)


def test_an_address_is_written_in_one_way() -> None:
    assert check_gateway_url("https://gw.example/") == "https://gw.example:443"
    assert check_gateway_url("https://[2001:db8::1]:9444") == "https://[2001:db8::1]:9444"


@pytest.mark.req("A-36")
@pytest.mark.parametrize(
    "org", [[1], [{}], ["x" * 8193], ["a\nb"], ["\u202eevil"], [""], ["a"] * 5, "text"], ids=lambda org: str(org)[:20]
)
def test_material_is_bounded_text_and_nothing_else(org: Any) -> None:
    with pytest.raises(ClaimMalformed):
        composite.read(json.dumps({"request": "a.b.c", "org": org}).encode())


@pytest.mark.req("A-97", "A-106")
def test_a_renewal_goes_through_the_gateway_like_a_first_issue(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        gateway = await Gateway.register(owner, tmp_path)
        first = await asked(proxy, owner)
        assert (await gateway.submit(signed(first)))[0] == 201
        campus.clock.advance(timedelta(minutes=40).total_seconds())
        again = await asked(proxy, owner, purpose="renew", nonce_sub=first.sub, previous=first.signer)
        status, answer = await gateway.submit(signed(again))
        assert (status, answer["sub"]) == (201, first.sub)
        assert len(await credentials(campus, first.sub)) == 2

    play(tmp_path, story)
