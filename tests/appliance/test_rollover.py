"""Rollover of root and issuing CAs: the states, what is handed out in each, and that every client gets through."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as library

from appliance import cli
from appliance.access.service import AccessService
from appliance.access.snapshot import Credentials, Snapshot, credential_of
from appliance.audit import Actor
from appliance.authorities import load_authorities
from appliance.ca import CertificateAuthority
from appliance.clock import SystemClock
from appliance.compose import Appliance, create_appliance
from appliance.console.client import call
from appliance.crl import CrlKeeper
from appliance.errors import CaExpired, CaUnsuitable, Conflict, KeyFileExists, KeyFileMissing, NotFound
from appliance.hierarchy import ROLES, ROOT, SERVERS, key_file, read_server
from appliance.home import admin_socket
from appliance.initialise import initialise
from appliance.keys import generate, read_key
from appliance.ocsp import OcspResponder
from appliance.rollover import Rollovers, RolloverTooEarly, RolloverWaitsForRoot
from appliance.rollover_states import ROLLOVER, RolloverEvent, RolloverOutOfOrder, RolloverState, step
from appliance.root_signing import RootDocumentMalformed, read_answer, read_request, sign, write_request
from appliance.server_certificates import ServerCertificates
from appliance.settings import AccessSettings, load_settings
from appliance.store import Store, rollovers
from est import chains, cms
from est.certificates import aki_of, is_self_signed, ski_of
from est.chains import TrustAnchors
from est.client import EstClient
from est.errors import EstError, Refusal
from est.exchange import Reply
from est.keys import spki
from est.server import EstServer
from radius.request import AccessRequest, CredentialRef
from tests.appliance import authority
from tests.stores import open_store
from tests.support import FixedClock

ADMIN = Actor("administrator", "local")
S = RolloverState


@dataclass
class World:
    """The CAs of a home over a store, with everything that follows them but the network."""

    home: Path
    clock: FixedClock
    store: Store
    ca: CertificateAuthority
    servers: ServerCertificates
    crls: CrlKeeper
    ocsp: OcspResponder
    rollovers: Rollovers

    @property
    def root(self) -> x509.Certificate:
        return self.ca.root

    async def through(self, name: str, *states: RolloverState, force: bool = True) -> None:
        for state in states:
            told = await self.rollovers.advance(name, ADMIN, force=force)
            assert told["state"] == state.value

    def server_holds(self, *roots: x509.Certificate) -> bool:
        """Whether the registrar's TLS chain, as sent, leads to each of these roots alone (E-102)."""
        own, now = self.servers["registrar"], self.clock.now()
        for root in roots:
            try:
                chains.check(own.certificate, own.sent, TrustAnchors((root,)), at=now, policy=chains.SERVER)
            except EstError:
                return False
        return True


@asynccontextmanager
async def world(folder: Path, clock: FixedClock | None = None, home: Path | None = None) -> AsyncIterator[World]:
    clock = clock or FixedClock()
    if home is None:
        home = folder / "home"
        shutil.copytree(authority.home(), home)
    settings = authority.SETTINGS.model_copy(update={"home": home})
    database = home / "appliance.db"
    store = open_store(f"sqlite:///{database}", clock)
    try:
        now = load_authorities(home, settings, authority.PASSPHRASE, store.read_sync(rollovers.every))
        ca = CertificateAuthority(root=now.root, issuing=now.issuing, store=store, clock=clock)
        ca.adopt(now)
        read = {name: read_server(home, name, authority.PASSPHRASE, root=now.root) for name in SERVERS}
        servers = ServerCertificates(read, ca=ca, settings=settings, clock=clock)
        crls = CrlKeeper(ca, store, clock, life_hours=24)
        ocsp = OcspResponder(ca, store, clock)
        await ocsp.start()

        async def changed() -> None:
            await servers.settle()
            await crls.build_missing()
            await ocsp.follow()

        made = Rollovers(
            settings, ca=ca, store=store, clock=clock, passphrase=authority.PASSPHRASE, on_change=changed, key_cost=1024
        )
        yield World(home, clock, store, ca, servers, crls, ocsp, made)
    finally:
        store.close()


def run(tmp_path: Path, story: Callable[[World], Any]) -> Any:
    async def main() -> Any:
        async with world(tmp_path) as one:
            return await story(one)

    return asyncio.run(main())


def bag(one: World) -> Reply:
    call = EstClient().cacerts_call()
    return EstServer().cacerts_reply(one.ca.handed_out("devices"), call)


# -- the table


def test_the_table_has_these_arrows_and_no_others() -> None:
    assert {(a.value, e.value, b.value) for (a, e), b in ROLLOVER.items()} == {
        ("prepared", "advance", "published"), ("published", "advance", "signing-with-new"),
        ("signing-with-new", "advance", "old-retired"), ("published", "back", "prepared"),
        ("prepared", "back", "taken-back"),
    }  # fmt: skip
    for state in (S.SIGNING_WITH_NEW, S.OLD_RETIRED, S.TAKEN_BACK):
        with pytest.raises(RolloverOutOfOrder, match="no way back"):
            step(state, RolloverEvent.BACK)


# -- an issuing CA


@pytest.mark.req("E-103")
def test_an_issuing_ca_gives_way_to_its_successor_state_by_state(tmp_path: Path) -> None:
    async def story(one: World) -> None:
        old = one.ca.issuing("devices")
        before = await authority.issue_ldevid(one.ca, "early")
        told = await one.rollovers.start("devices", ADMIN)
        assert told["state"] == "prepared" and one.ca.generations == tuple(one.ca.issuing(role) for role in ROLES)
        label = told["label"]

        await one.through("devices", S.PUBLISHED)
        new = one.ca.generation(label)
        assert new.certificate.subject != old.certificate.subject and spki(new.certificate) != spki(old.certificate)
        assert one.ca.issuing("devices") is not new and one.ca.role_of(new.key_identifier) == "devices"
        assert set(one.ca.anchors("devices")) == {old.certificate, new.certificate}
        assert new.certificate in one.ca.handed_out("devices")
        crl = x509.load_der_x509_crl(await one.crls.crl(label))
        assert crl.issuer == new.certificate.subject

        await one.through("devices", S.SIGNING_WITH_NEW)
        after = await authority.issue_ldevid(one.ca, "late")
        assert aki_of(after.certificate) == new.key_identifier
        points = after.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        assert points[0].full_name[0].value.endswith(f"/crl/{label}.crl")  # type: ignore[index]
        assert one.ca.issuer_label(one.servers["registrar"].certificate) == label
        assert one.ca.issuer_label(one.servers["radius"].certificate) == "infrastructure"
        for held in (before, after):
            chains.check(
                held.certificate, (), one.ca.anchors("devices"), at=one.clock.now(), policy=chains.CLIENT
            )  # both generations count

        with pytest.raises(RolloverTooEarly, match="1 holders of certificates") as refused:
            await one.rollovers.advance("devices", ADMIN)
        assert refused.value.fields["waiting"] == 1
        one.clock.advance(timedelta(days=91).total_seconds())
        await one.through("devices", S.OLD_RETIRED, force=False)
        assert one.ca.role_of(old.key_identifier) is None and old.certificate not in one.ca.handed_out("devices")
        assert tuple(one.ca.anchors("devices")) == (new.certificate,)
        assert "devices" not in {held.label for held in one.ca.generations}

    run(tmp_path, story)


@pytest.mark.req("E-103")
def test_revocations_of_both_generations_are_on_their_own_lists_and_answered(tmp_path: Path) -> None:
    async def story(one: World) -> None:
        early = await authority.issue_ldevid(one.ca, "early")
        told = await one.rollovers.start("devices", ADMIN)
        await one.through("devices", S.PUBLISHED, S.SIGNING_WITH_NEW)
        late = await authority.issue_ldevid(one.ca, "late")
        for held in (early, late):
            await one.ca.revoke(aki_of(held.certificate) or b"", held.serial, actor=ADMIN)
        await one.crls.build_all()
        for label, mine, others in (("devices", early, late), (told["label"], late, early)):
            crl = x509.load_der_x509_crl(await one.crls.crl(label))
            assert crl.is_signature_valid(one.ca.generation(label).signer.public_key())
            assert crl.get_revoked_certificate_by_serial_number(mine.serial) is not None
            assert crl.get_revoked_certificate_by_serial_number(others.serial) is None
            issuer = one.ca.generation(label).certificate
            request = library.OCSPRequestBuilder().add_certificate(mine.certificate, issuer, hashes.SHA256()).build()
            answer: Any = one.ocsp.respond(request.public_bytes(Encoding.DER))
            response = library.load_der_ocsp_response(answer.der)
            assert response.certificate_status is library.OCSPCertStatus.REVOKED
            response.certificates[0].verify_directly_issued_by(issuer)

    run(tmp_path, story)


@pytest.mark.req("E-103")
def test_a_rollover_is_taken_back_until_the_new_one_signs(tmp_path: Path) -> None:
    async def story(one: World) -> None:
        first = await one.rollovers.start("agents", ADMIN)
        assert (await one.rollovers.start("agents", ADMIN)) == first, "asked twice, begun once"
        await one.through("agents", S.PUBLISHED)
        assert (await one.rollovers.back("agents", ADMIN))["state"] == "prepared"
        assert one.ca.generations == tuple(one.ca.issuing(role) for role in ROLES)
        await one.through("agents", S.PUBLISHED)
        await one.rollovers.back("agents", ADMIN)
        key = key_file(one.home, first["label"])
        assert key.exists()
        assert (await one.rollovers.back("agents", ADMIN))["state"] == "taken-back"
        assert not key.exists()
        with pytest.raises(RolloverOutOfOrder, match="no rollover of agents"):
            await one.rollovers.back("agents", ADMIN)
        second = await one.rollovers.start("agents", ADMIN)
        assert second["label"] != first["label"]
        await one.through("agents", S.PUBLISHED, S.SIGNING_WITH_NEW)
        with pytest.raises(RolloverOutOfOrder, match="no way back"):
            await one.rollovers.back("agents", ADMIN)
        with pytest.raises(RolloverOutOfOrder, match="agents has to be finished"):
            await one.rollovers.start(ROOT, ADMIN)
        with pytest.raises(NotFound, match="no CA printers"):
            await one.rollovers.start("printers", ADMIN)

    run(tmp_path, story)


@pytest.mark.req("E-103")
def test_a_step_that_moved_meanwhile_is_refused_and_a_restart_finds_the_state(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as one:
            await one.rollovers.start("infrastructure", ADMIN)
            (row,) = await one.store.read(rollovers.every)
            await one.through("infrastructure", S.PUBLISHED)
            with pytest.raises(Conflict):
                await one.store.write(lambda tx: rollovers.move(tx, row, "published", published_at=None))
            await one.through("infrastructure", S.SIGNING_WITH_NEW)
            signing, shown = one.ca.issuing("infrastructure").label, one.servers["radius"].certificate
        async with world(tmp_path, home=tmp_path / "home") as again:
            assert again.ca.issuing("infrastructure").label == signing
            assert again.servers["radius"].certificate == shown
            before = dict(again.servers.items())
            await again.rollovers.settle()
            assert dict(again.servers.items()) == before, "what is settled is not made anew"

    asyncio.run(story())


def test_a_kill_between_state_and_files_is_made_good_by_the_next_start(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as one:
            await one.rollovers.start("infrastructure", ADMIN)
            await one.through("infrastructure", S.PUBLISHED)
            (row,) = await one.store.read(rollovers.every)
            await one.store.write(lambda tx: rollovers.move(tx, row, "signing-with-new", published_at=row.published_at))
        async with world(tmp_path, home=tmp_path / "home") as again:
            signs = again.ca.issuing("infrastructure").label
            assert again.ca.issuer_label(again.servers["radius"].certificate) == "infrastructure"
            await again.rollovers.settle()
            assert again.ca.issuer_label(again.servers["radius"].certificate) == signs != "infrastructure"

    asyncio.run(story())


def test_an_old_ca_that_ends_before_it_is_retired_stops_nobody(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as one:
            end = one.ca.issuing("agents").certificate.not_valid_after_utc
            one.clock.advance((end - one.clock.now() - timedelta(days=30)).total_seconds())
            for name in ("agents", "devices", "infrastructure"):
                await one.rollovers.start(name, ADMIN)
                await one.through(name, S.PUBLISHED, S.SIGNING_WITH_NEW)
            one.clock.advance(timedelta(days=31).total_seconds())
            one.ca.check()
            assert await one.ocsp._renew()
            await authority.issue_ldevid(one.ca)
            clock = one.clock
        async with world(tmp_path, clock, home=tmp_path / "home") as again:
            await again.rollovers.settle()
            await again.through("agents", S.OLD_RETIRED, force=False)

    asyncio.run(story())


# -- the root


@pytest.mark.req("E-100", "E-93", "E-94", "E-99")
def test_a_new_root_comes_with_the_links_that_rfc_4210_asks_for(tmp_path: Path) -> None:
    async def story(one: World) -> None:
        old = one.root
        plain = len(bag(one).body)
        one.clock.advance(86400)
        await one.rollovers.start(ROOT, ADMIN)
        assert len(bag(one).body) == plain, "prepared: nobody sees it"
        await one.through(ROOT, S.PUBLISHED)
        found = cms.read_certs_only(base64.b64decode(bag(one).body))
        new = next(held for held in found if is_self_signed(held) and held != old)
        links = {ski_of(held): held for held in found if held.subject == old.subject and not is_self_signed(held)}
        old_with_new, new_with_old = links[ski_of(old)], links[ski_of(new)]
        assert old in found and new.subject == old.subject and new.not_valid_after_utc > old.not_valid_after_utc
        assert spki(old_with_new) == spki(old) and aki_of(old_with_new) == ski_of(new)
        assert spki(new_with_old) == spki(new) and aki_of(new_with_old) == ski_of(old)
        assert (old_with_new.not_valid_before_utc, old_with_new.not_valid_after_utc) == (
            old.not_valid_before_utc, old.not_valid_after_utc,
        )  # fmt: skip
        assert new_with_old.not_valid_before_utc == new.not_valid_before_utc
        assert new_with_old.not_valid_after_utc <= old.not_valid_after_utc
        for state in ("published", "signing-with-new", "old-retired"):
            assert len(bag(one).body) < 15_000
            if state != "old-retired":
                await one.rollovers.advance(ROOT, ADMIN, force=True)
        assert len(cms.read_certs_only(base64.b64decode(bag(one).body))) == 2

    run(tmp_path, story)


@pytest.mark.req("E-95", "E-101", "E-102")
def test_clients_with_either_root_get_through_in_every_state(tmp_path: Path) -> None:
    async def story(one: World) -> None:
        old = one.root
        early = await authority.issue_ldevid(one.ca, "early")
        early_issuer = one.ca.issuing("devices").certificate
        one.clock.advance(86400)
        await one.rollovers.start(ROOT, ADMIN)
        await one.through(ROOT, S.PUBLISHED)
        got = EstClient().read_cacerts(bag(one), at=one.clock.now())
        new = got.root
        assert new != old and {old, early_issuer} <= set(got.others)
        assert one.server_holds(old, new)

        assert (await one.rollovers.back(ROOT, ADMIN))["state"] == "prepared"
        assert one.server_holds(old, new), "who took the new root while it was published still finds us"
        assert EstClient().read_cacerts(bag(one), at=one.clock.now()).root == old
        await one.through(ROOT, S.PUBLISHED, S.SIGNING_WITH_NEW)
        assert one.root == new and one.server_holds(old, new)
        got = EstClient().read_cacerts(bag(one), at=one.clock.now())
        assert got.root == new and early_issuer in got.others

        late = await authority.issue_ldevid(one.ca, "late")
        link = next(held for held in got.others if held.subject == old.subject and ski_of(held) == ski_of(old)
                    and not is_self_signed(held))  # fmt: skip
        for held in (early, late):
            assert held.certificate.not_valid_after_utc <= link.not_valid_after_utc
        # an old end entity, with the chain that it has always had, under the new root alone
        anchors = TrustAnchors((new,))
        path = chains.check(early.certificate, (early_issuer, link), anchors, at=one.clock.now(), policy=chains.CLIENT)
        assert path[-1] == new
        chains.check(late.certificate, late.chain[:1], anchors, at=one.clock.now(), policy=chains.CLIENT)

        with pytest.raises(RolloverTooEarly, match="1 proxies have not renewed"):
            one.clock.advance(60)
            await authority.issue_ldevid(one.ca, "later")
            await one.rollovers.advance(ROOT, ADMIN)
        one.clock.advance(timedelta(days=91).total_seconds())
        await one.through(ROOT, S.OLD_RETIRED, force=False)
        assert one.server_holds(new) and not one.server_holds(old)
        assert one.servers["registrar"].sent == (one.ca.issuing("devices").certificate,)

    run(tmp_path, story)


@pytest.mark.req("E-101")
def test_no_certificate_outlives_its_ca_and_so_the_link(tmp_path: Path) -> None:
    async def story(one: World) -> None:
        end = one.ca.issuing("devices").certificate.not_valid_after_utc
        one.clock.advance(86400)
        await one.rollovers.start(ROOT, ADMIN)
        await one.through(ROOT, S.PUBLISHED)
        one.clock.advance((end - one.clock.now() - timedelta(days=30)).total_seconds())
        with pytest.raises(CaExpired):
            await authority.issue_ldevid(one.ca, "long")

    run(tmp_path, story)


def test_after_a_new_root_an_issuing_ca_and_then_the_root_again_can_be_rolled_over(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as one:
            roots = [one.root]
            for name in (ROOT, "devices", ROOT):
                one.clock.advance(3600)
                await one.rollovers.start(name, ADMIN)
                await one.through(name, S.PUBLISHED, S.SIGNING_WITH_NEW, S.OLD_RETIRED)
                roots.append(one.root)
            assert len(set(roots)) == 3
            labels, clock = sorted(one.ca.certificates), one.clock
        async with world(tmp_path, clock, home=tmp_path / "home") as again:
            assert again.root == roots[-1] and sorted(again.ca.certificates) == labels
            assert again.server_holds(again.root) and not again.server_holds(roots[0])

    asyncio.run(story())


# -- the root's key elsewhere


def test_the_root_key_leaves_the_home_and_everything_goes_on_without_it(tmp_path: Path) -> None:
    async def story(one: World) -> None:
        file = tmp_path / "root.key"
        taken = tmp_path / "taken"
        taken.write_text("x")
        with pytest.raises(KeyFileExists):
            await one.rollovers.export(taken, ADMIN)
        assert key_file(one.home, ROOT).exists(), "what was refused changed nothing"
        await one.rollovers.export(file, ADMIN)
        assert not key_file(one.home, ROOT).exists() and file.stat().st_mode & 0o777 == 0o600
        assert b"ENCRYPTED PRIVATE KEY" in file.read_bytes()
        with pytest.raises(KeyFileMissing, match="not in this home"):
            await one.rollovers.export(tmp_path / "again.key", ADMIN)
        await authority.issue_ldevid(one.ca)
        key = read_key(file, authority.PASSPHRASE)

        # an issuing CA: the request waits for the root
        told = await one.rollovers.start("agents", ADMIN)
        assert "sign-request" in told["next"]
        with pytest.raises(RolloverWaitsForRoot):
            await one.rollovers.advance("agents", ADMIN)
        request = read_request(await one.rollovers.request())
        assert list(request.csrs) == [told["label"]]
        answer = sign(request, key, one.clock.now(), None)
        await one.rollovers.take(answer, ADMIN)
        await one.through("agents", S.PUBLISHED, S.SIGNING_WITH_NEW, S.OLD_RETIRED)
        with pytest.raises(RootDocumentMalformed, match="another request"):
            await one.rollovers.take(answer, ADMIN)

        # nothing waits: new certificates for the same keys
        one.clock.advance(86400)
        before = {role: one.ca.issuing(role).certificate for role in ROLES}
        await one.rollovers.take(sign(read_request(await one.rollovers.request()), key, one.clock.now(), None), ADMIN)
        for role in ROLES:
            now = one.ca.issuing(role).certificate
            assert spki(now) == spki(before[role]) and now.serial_number != before[role].serial_number
        await authority.issue_ldevid(one.ca)

        # the root itself
        one.clock.advance(86400)
        await one.rollovers.start(ROOT, ADMIN)
        request = read_request(await one.rollovers.request())
        assert request.new_root
        with pytest.raises(RootDocumentMalformed, match="wants a new root"):
            sign(request, key, one.clock.now(), None)
        new_key = generate()
        await one.rollovers.take(sign(request, key, one.clock.now(), new_key), ADMIN)
        await one.through(ROOT, S.PUBLISHED, S.SIGNING_WITH_NEW, S.OLD_RETIRED)
        assert spki(one.root) == spki(new_key.public_key())

    run(tmp_path, story)


@pytest.mark.parametrize("harm", ["key", "root", "extra", "type", "text"])
def test_an_answer_that_was_changed_on_the_way_is_refused(tmp_path: Path, harm: str) -> None:
    async def story(one: World) -> None:
        request = read_request(await one.rollovers.request())
        key = read_key(key_file(one.home, ROOT), authority.PASSPHRASE)
        good = json.loads(sign(request, key, one.clock.now(), None))
        if harm == "key":
            good["certificates"]["agents"], good["certificates"]["devices"] = (
                good["certificates"]["devices"], good["certificates"]["agents"],
            )  # fmt: skip
        elif harm == "root":
            good["certificates"]["agents"] = one.ca.root.public_bytes(Encoding.PEM).decode()
        elif harm == "extra":
            good["certificates"]["printers"] = good["certificates"]["agents"]
        elif harm == "type":
            good["type"] = "something"
        text = "no json" if harm == "text" else json.dumps(good)
        before = one.ca.certificates
        with pytest.raises((RootDocumentMalformed, CaUnsuitable)):
            await one.rollovers.take(text, ADMIN)
        assert one.ca.certificates == before

    run(tmp_path, story)


def test_damaged_requests_and_answers_are_refused_without_a_traceback(tmp_path: Path) -> None:
    async def story(one: World) -> None:
        one.clock.advance(86400)
        key, new_key = read_key(key_file(one.home, ROOT), authority.PASSPHRASE), generate()
        asked = replace(read_request(await one.rollovers.request()), new_root=True)
        now = one.clock.now()
        documents = {
            write_request(asked): lambda text: sign(read_request(text), key, now, new_key),
            sign(asked, key, now, new_key): lambda text: read_answer(text, asked, now),
        }
        chance = random.Random(1)
        for text, read in documents.items():
            read(text)
            refused = 0
            for _ in range(300):
                try:
                    read(damaged(text, chance))
                except Refusal:
                    refused += 1
            assert refused > 100

    run(tmp_path, story)


def damaged(text: str, chance: random.Random) -> str:
    """A JSON document with one member gone, of another kind, or with one character changed."""
    document = json.loads(text)
    place = document
    while True:
        name = chance.choice(list(place))
        if isinstance(place[name], dict) and place[name]:
            place = place[name]
            continue
        break
    match chance.randrange(3):
        case 0:
            del place[name]
        case 1:
            place[name] = chance.choice([None, -1, [], {}, "x", "\0", True, 1e9])
        case _:
            old = str(place[name])
            at = chance.randrange(len(old))
            place[name] = old[:at] + chance.choice("AZaz09+/=\n") + old[at + 1 :]
    return json.dumps(document)


@pytest.mark.slow
def test_the_commands_from_start_to_end_with_the_root_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    initialise(home, SystemClock(), trust_domain="campus.example", organization="Example")
    passphrase = tmp_path / "passphrase"
    shutil.copy(home / "passphrase", passphrase)

    def command(*words: str, status: int = 0) -> Any:
        assert cli.run([*words, "--home", str(home), "-o", "json"]) == status, capsys.readouterr().err
        out = capsys.readouterr()
        return json.loads(out.out) if status == 0 else out.err

    key, request, answer = tmp_path / "root.key", tmp_path / "request.json", tmp_path / "answer.json"
    command("ca", "root", "export", str(key))
    assert command("ca", "rollover", "start", "--role", "infrastructure")["state"] == "prepared"
    assert "rollover-waits-for-root" in command("ca", "rollover", "advance", "--role", "infrastructure", status=1)
    command("ca", "root", "sign-request", "--out", str(request))
    elsewhere = [
        "ca", "root", "sign", "--key", str(key), "--request", str(request), "--out", str(answer),
        "--passphrase-file", str(passphrase), "--home", str(tmp_path / "no-home"), "-o", "json",
    ]  # fmt: skip
    assert cli.run(elsewhere) == 0 and not (tmp_path / "no-home").exists()
    capsys.readouterr()
    assert "infrastructure" in command("ca", "root", "import", str(answer))[0]["ca"]
    for state in ("published", "signing-with-new", "old-retired"):
        assert command("ca", "rollover", "advance", "--role", "infrastructure", "--force")["state"] == state
    (told,) = command("ca", "rollover", "status")
    assert told["state"] == "old-retired" and told["next"] == "done"
    rows = command("check")
    assert all(row["level"] != "error" for row in rows)
    assert any(row["check"] == f"expiry-{told['label']}" for row in rows)


# -- while everything runs


def fetched(address: str, path: str, *, tls: bool) -> bytes:
    scheme, context = "http", None
    if tls:
        scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(f"{scheme}://{address}{path}", timeout=20, context=context) as answer:
        return bytes(answer.read())


@pytest.mark.slow
@pytest.mark.req("E-103")
def test_a_running_appliance_follows_every_step_without_a_restart(tmp_path: Path) -> None:
    home = tmp_path / "home"
    initialise(home, SystemClock(), trust_domain="campus.example", organization="Example")
    (home / "run").mkdir(mode=0o700, exist_ok=True)
    quiet = [f"web.{port}_port=0" for port in ("device", "console", "decision", "pki")]
    settings = load_settings(home, (*quiet, "radius.port=0", "registrar.announce=false")).settings

    def story(made: Appliance) -> None:
        def ask(verb: str, **arguments: Any) -> Any:
            return call(admin_socket(home), f"ca.rollover_{verb}", {"role": "agents", **arguments})

        def told() -> tuple[list[x509.Certificate], int, list[x509.Certificate]]:
            """Agents CAs and WIT keys in the trust document, and whom the RADIUS server believes."""
            document = json.loads(fetched(made.listeners["device"] or "", "/v1/trust", tls=True))
            server = made._radius._server
            assert server is not None
            believed = list(server._anchors)
            cas = x509.load_pem_x509_certificates(document["agents_ca"].encode())
            return cas, len(document["wit_keys"]["keys"]), believed

        old = made.ca.issuing("agents").certificate
        roles = made.access._issuers
        assert roles is not None and told() == ([old], 1, [old])
        label = ask("start")["label"]
        assert told() == ([old], 1, [old])
        ask("advance")
        new = made.ca.generation(label).certificate
        assert told() == ([old, new], 2, [old, new])
        assert [role for role in roles.values() if role == "agents"] == ["agents", "agents"]
        deadline = time.monotonic() + 5
        while True:
            try:
                crl = fetched(made.listeners["pki"] or "", f"/crl/{label}.crl", tls=False)
                break
            except urllib.error.HTTPError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert x509.load_der_x509_crl(crl).issuer == new.subject
        ask("advance")
        assert told() == ([new, old], 2, [new, old])
        assert made.identity.issuer.wit_signer.public_key() == new.public_key()
        ask("advance")
        assert told() == ([new], 1, [new])
        assert (ski_of(old) or b"").hex() not in roles
        assert (
            x509.load_der_x509_certificate(fetched(made.listeners["pki"] or "", f"/ca/{label}.cer", tls=False)) == new
        )

    async def life() -> None:
        made = create_appliance(settings, passphrase=(home / "passphrase").read_bytes().strip())
        try:
            await made.prepare()
            await made.start()
            await asyncio.to_thread(story, made)
        finally:
            await made.stop()

    asyncio.run(life())


@pytest.mark.slow
@pytest.mark.req("E-103")
def test_the_decision_port_towards_other_machines_believes_the_cas_that_count(tmp_path: Path) -> None:
    home = tmp_path / "home"
    initialise(home, SystemClock(), trust_domain="campus.example", organization="Example")
    (home / "run").mkdir(mode=0o700, exist_ok=True)
    quiet = [f"web.{port}_port=0" for port in ("device", "console", "decision", "pki")]
    chosen = (*quiet, "web.decision_host=0.0.0.0", "radius.engine=none", "registrar.announce=false")

    async def life() -> None:
        settings = load_settings(home, chosen).settings
        made = create_appliance(settings, passphrase=(home / "passphrase").read_bytes().strip())

        def believed() -> set[bytes]:
            (listener,) = made._for_clients
            assert isinstance(listener._tls, ssl.SSLContext) and listener._tls.verify_mode is ssl.CERT_REQUIRED
            return set(listener._tls.get_ca_certs(binary_form=True))

        try:
            await made.prepare()
            await made.start()
            old = made.ca.issuing("infrastructure").certificate.public_bytes(Encoding.DER)
            assert believed() == {old}
            label = (await made.rollovers.start("infrastructure", ADMIN))["label"]
            await made.rollovers.advance("infrastructure", ADMIN)
            new = made.ca.generation(label).certificate.public_bytes(Encoding.DER)
            assert believed() == {old, new}
            await made.rollovers.advance("infrastructure", ADMIN)
            assert believed() == {old, new}
            await made.rollovers.advance("infrastructure", ADMIN, force=True)
            assert believed() == {new}
        finally:
            await made.stop()

    asyncio.run(life())


@pytest.mark.req("E-103")
def test_what_a_retired_ca_issued_gets_nobody_in(tmp_path: Path) -> None:
    clock = FixedClock()
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}", clock)
    try:
        roles = {"aa": "agents"}
        access = AccessService(AccessSettings(), store, clock, roles)
        row = {
            "profile": "agent", "serial": "7", "issuer_aki": "aa", "issuer_role": "agents", "state": "issued",
            "subject_id": "spiffe://campus.example/agent/1", "owner_id": "o", "not_before": clock.now(),
            "not_after": clock.now() + timedelta(hours=1),
        }  # fmt: skip
        key, credential = credential_of(row)
        access._snapshot = Snapshot(Credentials({key: credential}), checked_at=clock.monotonic())
        request = AccessRequest(credential=CredentialRef("aa", 7))
        known = access.simulate(request)
        del roles["aa"]
        retired = access.simulate(request)
        assert (known.reason_code, retired.reason_code) == ("agent-not-registered", "credential-unknown")
        assert retired.verdict == "reject"
    finally:
        store.close()
