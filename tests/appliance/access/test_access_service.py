"""Decisions from the snapshot: the next login gets what the store says, and a silent store is never an accept."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import timedelta
from hashlib import sha256

import pytest

from appliance import audit
from appliance.access.nas import NasService
from appliance.access.policies import PolicyService
from appliance.access.routes import AccessRoutes
from appliance.access.service import AccessService
from appliance.access.sessions import SessionService
from appliance.audit import Actor
from appliance.errors import Conflict, NotFound, RequestMalformed, TokenRequired
from appliance.settings import AccessSettings, DirectorySettings
from appliance.store import directory_sources, nas, schema
from appliance.store.directory_sources import DONE, SourceRow
from appliance.web.peer import Peer
from est.errors import BodyMalformed, EstError
from est.exchange import Call
from radius import AccessRequest, CredentialRef
from radius.clients import Nas
from radius.decide import refuse
from radius.errors import HookMalformed
from tests.stores import open_store
from tests.support import FixedClock

ADMIN = Actor("administrator", "test")
AGENT = "spiffe://campus.example/agent/0b6f0c1e-6a1e-4a8e-9a63-1c0a4c0f2a11"
OWNER = "spiffe://campus.example/owner/5d1d7c4a-0d6e-4a0b-8a0e-6c9b5a3f7e21"
AKI = "77c1" * 10
OID = "1.3.6.1.4.1.32473.2026.1.2"
POLICY = """
version = 1
[vlans]
rnd = 20
hr = 30
guest = 99
[[rule]]
name = "research"
department = "R&D"
vlan = "rnd"
[[rule]]
name = "people"
department = "HR"
vlan = "hr"
"""


class Box:
    """A sealer that only marks what passed through it."""

    def seal(self, secret: bytes, purpose: str) -> bytes:
        return purpose.encode() + b"|" + secret[::-1]

    def unseal(self, sealed: bytes, purpose: str) -> bytes:
        assert sealed.startswith(purpose.encode() + b"|")
        return sealed.partition(b"|")[2][::-1]


@asynccontextmanager
async def access(tmp_path, clock=None, issuers=None, directory=None, **settings):
    clock = clock or FixedClock()
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}", clock)
    service = AccessService(AccessSettings(**settings), store, clock, issuers, directory)
    try:
        await service.start()
        yield service, store, clock
    finally:
        await service.stop()
        store.close()


def issue(tx, *, serial=0xBEEF, state="issued", owner=OWNER, profile="agent"):
    row = {
        "issuer_role": "agents",
        "issuer_aki": AKI,
        "serial": f"{serial:x}",
        "profile": profile,
        "subject_id": AGENT,
        "owner_id": owner,
        "state": state,
        "not_before": tx.now - timedelta(minutes=5),
        "not_after": tx.now + timedelta(hours=8),
        "model": "agent-mediated",
        "txn": "txn-1",
    }
    tx.execute(
        schema.certificates.insert(),
        {
            **row,
            "agent_id": AGENT,
            "proxy_id": None,
            "pledge_id": None,
            "tbs_sha256": "00",
            "cert_sha256": None,
            "der": None,
            "spki_sha256": "00",
            "csr_sha256": None,
            "created_at": tx.now,
            "revoked_at": None,
            "revocation_reason": None,
        },
    )
    tx.emit("certificate", f"{AKI}:{serial:x}", _plain(row))


def _plain(row):
    from appliance.store.columns import to_micros

    return row | {name: to_micros(row[name]) for name in ("not_before", "not_after")}


def set_owner(tx, department="R&D", state="active"):
    tx.emit("owner", OWNER, {"identifier": OWNER, "state": state, "kind": "person", "department": department})


def set_agent(tx, state="registered"):
    tx.emit("agent", AGENT, {"identifier": AGENT, "state": state})


def login(**more):
    return AccessRequest(tls_version="1.3", credential=CredentialRef(AKI, 0xBEEF), **more)


async def ready(service, store):
    await store.write(lambda tx: (issue(tx), set_owner(tx), set_agent(tx)))
    await PolicyService(store, service).publish(POLICY, "", ADMIN)


@pytest.mark.req("A-33", "A-111")
def test_an_owner_who_moves_gets_another_vlan_at_the_next_login_with_the_same_certificate(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            assert service.authorize(login()).vlan == 20
            await store.write(lambda tx: set_owner(tx, "HR"))
            assert service.authorize(login()).vlan == 30
            await store.write(lambda tx: set_owner(tx, "Astrology"))
            decision = service.authorize(login())
            assert (decision.verdict, decision.vlan, decision.reason_code) == ("guest", 99, "department-unmapped")

    asyncio.run(story())


@pytest.mark.req("A-10")
def test_a_proxys_certificate_is_told_apart_from_an_unknown_one_by_its_issuer(tmp_path):
    async def story():
        async with access(tmp_path, issuers={AKI: "agents", "dd" * 20: "devices"}) as (service, store, _):
            await ready(service, store)
            assert service.authorize(login()).vlan == 20
            for aki, code in (("dd" * 20, "credential-not-agent"), ("ee" * 20, "credential-unknown")):
                decision = service.authorize(AccessRequest(tls_version="1.3", credential=CredentialRef(aki, 0xBEEF)))
                assert (decision.verdict, decision.reason_code) == ("reject", code)

    asyncio.run(story())


@pytest.mark.req("A-110")
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda tx: set_owner(tx, state="suspended"), "owner-suspended"),
        (lambda tx: set_owner(tx, state="revoked"), "owner-revoked"),
        (lambda tx: set_agent(tx, "revoked"), "agent-revoked"),
        (lambda tx: set_agent(tx, "suspended"), "agent-suspended"),
    ],
)
def test_suspended_and_revoked_are_rejected_at_the_next_login(tmp_path, change, code):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            await store.write(change)
            decision = service.authorize(login())
            assert (decision.verdict, decision.reason_code) == ("reject", code)

    asyncio.run(story())


def test_a_revoked_certificate_is_rejected_as_soon_as_the_revocation_is_committed(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            body = _plain(
                {
                    "issuer_role": "agents",
                    "issuer_aki": AKI,
                    "serial": "beef",
                    "profile": "agent",
                    "subject_id": AGENT,
                    "owner_id": OWNER,
                    "state": "revoked",
                    "not_before": service._clock.now(),
                    "not_after": service._clock.now() + timedelta(hours=1),
                    "model": "agent-mediated",
                    "txn": "",
                }
            )
            await store.write(lambda tx: tx.emit("certificate", "x", body))
            assert service.authorize(login()).reason_code == "credential-revoked"

    asyncio.run(story())


@pytest.mark.parametrize(("rule", "verdict"), [("reject", "reject"), ("guest", "guest")])
def test_a_stale_snapshot_follows_the_sites_rule_and_never_opens_a_department(tmp_path, rule, verdict):
    async def story():
        async with access(tmp_path, stale_seconds=30) as (service, store, clock):
            await ready(service, store)
            policy = POLICY.replace("[[rule]]", f'[defaults]\nstale = "{rule}"\n[[rule]]', 1)
            await PolicyService(store, service).publish(policy, "", ADMIN)
            clock.advance(31)
            decision = service.authorize(login())
            assert (decision.verdict, decision.reason_code) == (verdict, "snapshot-stale")

    asyncio.run(story())


@pytest.mark.parametrize(
    ("rule", "verdict", "code"),
    [("keep", "accept", "rule-matched"), ("guest", "guest", "snapshot-stale"), ("reject", "reject", "snapshot-stale")],
)
def test_a_directory_that_was_not_read_for_too_long_follows_the_sites_rule_and_is_seen_in_the_chain(
    tmp_path, rule, verdict, code
):
    async def story():
        directory = DirectorySettings(source="ldap", stale_hours=1, when_stale=rule)
        async with access(tmp_path, directory=directory, stale_seconds=1e9) as (service, store, clock):
            await ready(service, store)
            read = SourceRow("ldap", clock.now(), clock.now(), DONE, {})
            await store.write(lambda tx: directory_sources.put(tx, read))
            assert "source" not in service.authorize(login()).steps[2].evidence, "a local owner has no such age"
            body = {"identifier": OWNER, "state": "active", "kind": "person", "department": "R&D", "source": "ldap"}
            await store.write(lambda tx: tx.emit("owner", OWNER, body))
            clock.advance(1800)
            fresh = service.authorize(login())
            assert (fresh.verdict, fresh.vlan) == ("accept", 20)
            assert fresh.steps[2].evidence.endswith(", source ldap read 1800 s ago")
            clock.advance(1801)
            old = service.authorize(login())
            assert (old.verdict, old.reason_code) == (verdict, code)
            assert f"source ldap read 3601 s ago (limit 3600 s, site rule {rule})" in old.steps[2].evidence
            if rule != "keep":
                assert f"snapshot 3601 s old, limit 3600 s, site rule {rule}" in old.steps[3].evidence
            await store.write(lambda tx: tx.emit("owner", OWNER, {**body, "state": "suspended"}))
            assert service.authorize(login()).reason_code == "owner-suspended", "a no stays a no"
            await store.write(lambda tx: tx.emit("owner", OWNER, body))
            again = SourceRow("ldap", clock.now(), clock.now(), DONE, {})
            await store.write(lambda tx: directory_sources.put(tx, again))
            assert service.authorize(login()).reason_code == "rule-matched"
            clock.advance(2e9)
            assert service.authorize(login()).verdict == "reject", "a silent store is the policy's own rule"

    asyncio.run(story())


def test_any_department_of_several_may_open_a_vlan(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            body = {"identifier": OWNER, "state": "active", "kind": "person", "department": "Art"}
            await store.write(lambda tx: tx.emit("owner", OWNER, {**body, "more_departments": ["Law", "HR"]}))
            assert service.authorize(login()).vlan == 30

    asyncio.run(story())


def test_a_restart_reads_the_same_facts_from_the_store(tmp_path):
    async def story():
        clock = FixedClock()
        async with access(tmp_path, clock) as (service, store, _):
            await ready(service, store)
            await store.write(
                lambda tx: (
                    tx.execute(
                        schema.owners.insert(),
                        {
                            "id": "o",
                            "identifier": OWNER,
                            "ref": "alice",
                            "name": "Alice",
                            "kind": "person",
                            "department": "R&D",
                            "state": "active",
                            "created_at": tx.now,
                            "updated_at": tx.now,
                        },
                    ),
                    tx.execute(
                        schema.agents.insert(),
                        {
                            "id": "a",
                            "identifier": AGENT,
                            "owner_id": "o",
                            "proxy_id": "p",
                            "jkt": "j",
                            "class": "",
                            "state": "registered",
                            "created_at": tx.now,
                            "updated_at": tx.now,
                        },
                    ),
                )
            )
            before = service.authorize(login())
            await service.reload()
            assert service.authorize(login())._replace(generation=before.generation) == before
            assert before.vlan == 20

    asyncio.run(story())


def test_every_decision_becomes_a_row_with_its_whole_reason_chain(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            service.authorize(login(nas="sw1", nas_port="7", calling_station="02-00"))
            service.failed(login(nas="sw1"), refuse(login(nas="sw1"), "tls-unknown-ca", "alert 48"))
            await service._log.flush()
            from appliance.store import decisions

            rows = await store.read(lambda tx: decisions.newest(tx, limit=10))
            assert [(row["verdict"], row["vlan"], row["reason"], row["port"]) for row in rows] == [
                ("accept", "20", "rule-matched", "7"),
                ("reject", None, "tls-unknown-ca", ""),
            ]
            assert [step["stage"] for step in rows[0]["trace"]["steps"]] == ["tls", "credential", "owner", "policy"]

    asyncio.run(story())


# ---- the decision port


def hook_body(serial="beef"):
    aki = ":".join(AKI[at : at + 2].upper() for at in range(0, len(AKI), 2))
    return {
        "TLS-Client-Cert-X509v3-Authority-Key-Identifier": {"type": "string", "value": [aki]},
        "TLS-Client-Cert-Serial": {"type": "string", "value": [serial]},
        "User-Name": {"type": "string", "value": ["%{exec:touch /tmp/x}"]},
    }


def call(body, token="right-token"):
    headers = {"authorization": f"Bearer {token}"} if token else {}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call("POST", "/v1/decide", "application/json", headers, raw)


async def with_port(service, store, sessions=None):
    await store.write(lambda tx: nas.put_server(tx, "id", "local", sha256(b"right-token").digest()))
    sessions = sessions or SessionService(
        store, service._clock, service, stale_minutes=60, assumed_hours=24, keep_days=1
    )
    return AccessRoutes(service, sessions, owner_id_oid=OID, reply_message=True)


def test_the_decision_port_answers_in_rlm_rests_words_and_nothing_is_expanded(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            routes = await with_port(service, store)
            reply = routes.decide(call(hook_body()), Peer(), {})
            answer = json.loads(reply.body)
            assert answer["control:Auth-Type"]["value"] == ["Accept"]
            assert answer["reply:Tunnel-Private-Group-Id"]["value"] == ["20"]
            assert all(value["do_xlat"] is False for value in answer.values())
            rejected = json.loads((routes.decide(call(hook_body("dead")), Peer(), {})).body)
            assert rejected["control:Auth-Type"]["value"] == ["Reject"]
            assert not any("Tunnel" in name for name in rejected)

    asyncio.run(story())


@pytest.mark.parametrize("shown", ["newest", "older"])
def test_a_question_with_the_newest_token_ends_the_one_before_and_one_with_the_older_does_not(tmp_path, shown):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            routes = await with_port(service, store)
            newest = await NasService(store, Box()).new_token("local", ADMIN)
            routes.decide(call(hook_body(), newest if shown == "newest" else "right-token"), Peer(), {})
            await asyncio.gather(*service._ending.values())
            assert (counts(service, "right-token"), counts(service, newest)) == (shown == "older", True)

    asyncio.run(story())


@pytest.mark.parametrize("token", ["", "wrong", "right-token2"])
def test_a_caller_without_the_token_learns_nothing(tmp_path, token):
    async def story():
        async with access(tmp_path) as (service, store, _):
            routes = await with_port(service, store)
            with pytest.raises(TokenRequired):
                routes.decide(call(hook_body(), token), Peer(), {})

    asyncio.run(story())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"a":1}', b'{"a":{},"a":{}}', b"[" * 10_000, bytes(range(256)), b"x" * 65_537]
)
def test_a_bad_body_is_refused_with_a_type(tmp_path, body):
    async def story():
        async with access(tmp_path) as (service, store, _):
            routes = await with_port(service, store)
            with pytest.raises((EstError, HookMalformed)) as refused:
                routes.decide(call(body), Peer(), {})
            assert refused.value.reason

    asyncio.run(story())


# ---- NAS


def test_nas_are_found_by_their_longest_prefix_and_secrets_are_sealed(tmp_path):
    async def story():
        async with access(tmp_path) as (_, store, _clock):
            service = NasService(store, Box())
            await service.start()
            made = await service.add("campus", "192.0.2.0/24", "", ADMIN)
            await service.add("core", "192.0.2.7", "sixteen-letters-x", ADMIN)
            assert service.lookup("192.0.2.9") == Nas("campus", made["shared_secret"].encode())
            assert service.lookup("192.0.2.7") == Nas("core", b"sixteen-letters-x")
            assert service.lookup("198.51.100.1") is None
            rows = await store.read(nas.every)
            assert all(b"sixteen-letters-x" not in row.secret_sealed for row in rows)
            await service.remove("core", ADMIN)
            assert service.lookup("192.0.2.7").name == "campus"
            with pytest.raises(NotFound):
                await service.remove("core", ADMIN)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("name", "address", "secret"),
    [("a b", "192.0.2.1", ""), ("a", "192.0.2.1/24", ""), ("a", "nowhere", ""), ("a", "192.0.2.1", "short"),
     ("a", "192.0.2.1", 'x" } client evil { secret = "'), ("", "192.0.2.1", "")],
)  # fmt: skip
def test_a_nas_that_could_break_a_configuration_is_refused(tmp_path, name, address, secret):
    async def story():
        async with access(tmp_path) as (_, store, _clock):
            with pytest.raises(RequestMalformed):
                await NasService(store, Box()).add(name, address, secret, ADMIN)

    asyncio.run(story())


def counts(service, token):
    try:
        return service.check_token(token) == "local"
    except TokenRequired:
        return False


def test_the_token_that_served_counts_until_its_successor_serves_and_there_are_two_at_the_most(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            box = NasService(store, Box())
            first = await box.new_token("local", ADMIN)
            other = await box.new_token("elsewhere", ADMIN)
            second = await box.new_token("local", ADMIN)
            assert counts(service, first) and counts(service, second)
            third = await box.new_token("local", ADMIN)  # the second never served
            assert [counts(service, one) for one in (first, second, third)] == [True, False, True]
            # neither the older one's serving nor that of a dead one or of another server ends anything
            for name, token in (("local", first), ("local", second), ("elsewhere", third), ("elsewhere", other)):
                await box.serves_with(name, token, ADMIN)
            assert counts(service, first)
            await box.serves_with("local", third, ADMIN)
            await box.serves_with("local", third, ADMIN)
            for _ in range(2):
                assert [counts(service, one) for one in (first, second, third)] == [False, False, True]
                await service.reload()
            return await store.read(lambda tx: [json.loads(body) for body in audit.bodies(tx)])

    rows = [row for row in asyncio.run(story()) if row["object"] == "local"]
    assert sorted(row["event"] for row in rows) == ["radius-server-added"] * 3 + ["radius-server-token-ended"]
    assert {row["fields"]["older_sha256"] != "" for row in rows if "older_sha256" in row["fields"]} == {True, False}


def test_a_newest_token_that_asks_ends_the_one_before_and_a_write_that_fails_is_tried_again(tmp_path, monkeypatch):
    async def story():
        async with access(tmp_path) as (service, store, _):
            box = NasService(store, Box())
            first, second = [await box.new_token("local", ADMIN) for _ in range(2)]
            service.served_with("local", first)
            assert not service._ending
            with monkeypatch.context() as broken:

                async def refuse(function, **more):
                    raise Conflict("not now")

                broken.setattr(store, "write", refuse)
                service.served_with("local", second)
                await asyncio.gather(*service._ending.values())
            assert counts(service, first) and not service._ending
            service.served_with("local", second)
            service.served_with("local", second)
            assert len(service._ending) == 1
            await asyncio.gather(*service._ending.values())
            assert [counts(service, one) for one in (first, second)] == [False, True]
            service.served_with("local", second)
            assert not service._ending

    asyncio.run(story())


def test_a_token_that_was_presented_is_kept_as_its_digest_alone(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            token = await NasService(store, Box()).new_token("local", ADMIN)
            assert [service.check_token(token) for _ in range(2)] == ["local", "local"]
            assert list(service._presented) == [sha256(token.encode()).digest()]

    asyncio.run(story())


def test_a_token_that_was_presented_and_is_gone_counts_no_more_once_everything_was_read_anew(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            token = await NasService(store, Box()).new_token("local", ADMIN)
            assert service.check_token(token) == "local"
            await store.write(lambda tx: tx.execute(schema.radius_servers.delete()))
            await service.reload()
            with pytest.raises(TokenRequired):
                service.check_token(token)

    asyncio.run(story())


def test_a_token_that_is_replaced_while_everything_is_read_anew_counts(tmp_path):
    class Slow:
        """A store whose answer about RADIUS servers is on its way when a token is replaced."""

        def __init__(self, store):
            self.store, self.between = store, None

        def subscribe(self, callback):
            self.store.subscribe(callback)

        async def write(self, function):
            return await self.store.write(function)

        async def read(self, function):
            found = await self.store.read(function)
            if function is nas.servers and self.between is not None:
                await self.between()
            return found

    async def story():
        store = open_store(f"sqlite:///{tmp_path / 'a.db'}", FixedClock())
        slow, box = Slow(store), NasService(store, Box())
        service = AccessService(AccessSettings(), slow, FixedClock())
        try:
            await service.start()
            tokens = [await box.new_token("local", ADMIN)]

            async def replaced():
                tokens.append(await box.new_token("local", ADMIN))
                await box.serves_with("local", tokens[1], ADMIN)

            slow.between = replaced
            await service.reload()
            assert service.check_token(tokens[1]) == "local"
            with pytest.raises(TokenRequired):
                service.check_token(tokens[0])
        finally:
            await service.stop()
            store.close()

    asyncio.run(story())


@pytest.mark.parametrize("body", [b"[" * 30_000 + b"]" * 30_000, b'{"a":' * 9_000 + b"1" + b"}" * 9_000, b"[" * 300])
def test_a_document_nested_without_end_is_refused_before_it_is_read(tmp_path, body):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            routes = await with_port(service, store)
            with pytest.raises(BodyMalformed):
                routes.decide(call(body), Peer(), {})

    asyncio.run(story())
