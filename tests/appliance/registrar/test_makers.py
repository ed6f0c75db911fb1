"""What can be set per manufacturer: MASA, what is trusted and shown there, serial numbers, limits."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from sqlalchemy import insert

from appliance.errors import Conflict, NotFound
from appliance.registrar.errors import ManufacturerUnusable, MasaCredentialsUnusable
from appliance.registrar.maker_options import Options, read_assignments, read_options
from appliance.store import Tx, schema
from brski import sealed, voucher_request
from brski.dialect import Dialect
from brski.idevid import HARDWARE_MODULE_NAME, SerialSource
from brski.leaves import Assertion
from brski.masa import Masa, MasaPolicy
from brski.voucher_request import VoucherRequest
from est import der
from est.exchange import Call, Reply
from lab.factory import Factory, Identity, make_leaf
from tests.appliance.registrar.test_inventory import refused
from tests.appliance.registrar.world import ADMIN, MASA_HOST, World, play
from tests.support import NOW

CMS = "application/voucher-cms+json"


def test_options_are_read_from_what_a_command_line_says() -> None:
    said = {
        "masa-trust": "machine",
        "masas": "a.example:1, b.example:2",
        "masa-concurrency": "3",
        "ignore-expiry": "true",
    }
    options = read_options(read_assignments(said))
    assert options == Options(
        masa_trust="machine", masas=("a.example:1", "b.example:2"), masa_concurrency=3, ignore_expiry=True
    )
    assert read_options(options.as_json()) == options


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"masa-trust": "everybody"}, "masa-trust"),
        ({"color": "blue"}, "color"),
        ({"masa-concurrency": "-1"}, "masa-concurrency"),
        ({"masa-concurrency": "many"}, "masa-concurrency"),
        ({"dialect": "klingon"}, "dialect"),
        ({"known-domains": "%%"}, "known-domains"),
        ({"admission": "perhaps"}, "admission"),
    ],
)
def test_an_option_that_does_not_exist_or_fit_is_named(said: dict[str, str], named: str) -> None:
    with pytest.raises(ManufacturerUnusable, match=f"^{named}: "):
        read_options(read_assignments(said))


@pytest.mark.req("B-144")
def test_a_change_keeps_what_is_not_named_and_is_audited_with_what_is_new(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        change = world.part.manufacturers.change
        before = await world.part.manufacturers.one("Acme")
        shown = await change("Acme", actor=ADMIN, new_name="Acme Inc", options={"masa_concurrency": 2})
        assert shown["name"] == "Acme Inc" and shown["masa_concurrency"] == 2
        assert shown["fingerprints"] == before["fingerprints"] and shown["masa_url"] == before["masa_url"]
        (audited,) = await world.audited("manufacturer-changed")
        assert audited["fields"] == {"masa_concurrency": 2, "was": "Acme"}
        await refused(change("Acme", actor=ADMIN, options={}), NotFound)
        await refused(
            change("Acme Inc", actor=ADMIN, masa_url="", options={"masa_from": "configured"}), ManufacturerUnusable
        )
        other = Factory.create("Other", now=NOW).device_root.chain_pem.decode()
        await world.part.manufacturers.add(
            anchors_pem=other, name="Other", options=Options(masa_trust="machine"), actor=ADMIN
        )
        await refused(change("Other", actor=ADMIN, new_name="Acme Inc"), Conflict)
        await refused(change("Acme Inc", actor=ADMIN, anchors_pem=other), Conflict)
        # devices that come now meet the new rules
        await change("Acme Inc", actor=ADMIN, options={"admission": "manual"})
        assert (await world.device().voucher()).status == 202

    play(tmp_path, story)


@pytest.mark.req("B-144")
@pytest.mark.parametrize(
    ("trust", "anchors", "public"), [("anchors", True, False), ("machine", False, True), ("both", True, True)]
)
def test_the_machines_trust_store_counts_only_where_it_was_named(
    tmp_path: Path, trust: str, anchors: bool, public: bool
) -> None:
    async def story(world: World) -> None:
        assert (await world.device().voucher()).status == 200
        (_, to), *_ = world.masa.calls
        assert bool(to.tls_anchors_pem) == anchors and to.public_anchors == public
        # the anchors of IDevIDs are never among them
        assert world.factory.device_root.chain_pem.decode() not in to.tls_anchors_pem

    play(tmp_path, story, options={"masa_trust": trust})


@pytest.mark.req("T-24", "B-158")
@pytest.mark.parametrize(
    "named", ["127.0.0.1:9443", "[::1]:9443", "169.254.169.254", "10.0.0.1", "masa.acme.example:22", "evil.example"]
)
def test_an_idevid_cannot_send_the_registrar_anywhere(tmp_path: Path, named: str) -> None:
    async def story(world: World) -> None:
        assert (await world.device(masa=named).voucher()).status == 403
        assert world.masa.calls == []
        (row,) = await world.part.knocks.every()
        assert row["reason"] == "masa-not-allowed" and "masas=HOST:PORT" in row["what_to_do"]
        assert row["what_to_do"].startswith("if that MASA is right: appliance manufacturers set Acme")

    play(tmp_path, story)


@pytest.mark.req("B-157", "B-158")
def test_a_listed_further_masa_is_asked_and_a_configured_one_instead_if_the_site_says_so(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device(masa="second.acme.example:8443")
        assert (await device.voucher()).status == 403
        await world.part.manufacturers.change("Acme", actor=ADMIN, options={"masas": ["second.acme.example:8443"]})
        assert (await device.voucher()).status == 200
        assert world.masa.calls[-1][1].base == "https://second.acme.example:8443"
        await world.part.manufacturers.change("Acme", actor=ADMIN, options={"masas": [], "masa_from": "configured"})
        assert (await device.voucher()).status == 200
        assert world.masa.calls[-1][1].base == f"https://{MASA_HOST}"

    play(tmp_path, story)


def hardware_device(factory: Factory, serial: bytes, *, common_name: str = "no serial here") -> Identity:
    """An IDevID whose serial number is a hardwareModuleName, and whose subject has none."""
    module = der.sequence(der.oid("1.3.6.1.4.1.32473.7"), der.tlv(der.OCTET_STRING, serial))
    names = x509.SubjectAlternativeName([x509.OtherName(HARDWARE_MODULE_NAME, module)])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return make_leaf(factory.device_ca, subject, now=NOW, extensions=[(names, False)])


def request_of(world: World, device: Identity, serial: str, *, nonce: str | None = "AAAAAAAAAAAAAAAAAAAAAA==") -> Call:
    """A voucher-request that no pledge of ours would make."""
    request = VoucherRequest(
        serial_number=serial, nonce=nonce, assertion=Assertion.PROXIMITY, created_on=NOW,
        proximity_registrar_cert=world.registrar_certificate.public_bytes(Encoding.DER),
    )  # fmt: skip
    body = sealed.seal(
        voucher_request.write(request), CMS, signer=device.signer, certificate=device.certificate,
        certificates=device.chain[1:], now=NOW,
    )  # fmt: skip
    return Call("POST", "/.well-known/brski/requestvoucher", CMS, {"accept": CMS}, body)


@pytest.mark.req("B-153")
@pytest.mark.parametrize(
    ("source", "octets", "serial"),
    [
        ("hardware-module-name", b"HW-77", "HW-77"),
        ("hardware-module-name", b"\x00\xff\x10", "00ff10"),
        ("common-name", b"HW-77", "CN-5"),
    ],
)
def test_the_serial_number_comes_from_where_the_manufacturer_puts_it(
    tmp_path: Path, source: str, octets: bytes, serial: str
) -> None:
    async def story(world: World) -> None:
        device = hardware_device(world.factory, octets, common_name="CN-5")
        peer, call = world.peer(device), request_of(world, device, serial)
        reply = await world.handle(call, peer)
        assert (reply.status, reply.body[:21]) == (404, b"device-serial-missing")
        (knock,) = await world.part.knocks.every()
        assert knock["known"] and "manufacturers set Acme serial-source=" in knock["what_to_do"]
        await world.part.manufacturers.change("Acme", actor=ADMIN, options={"serial_source": source})
        # the MASA of these tests reads subjects only: that it was asked, and about whom, is what counts here
        world.masa.answer = lambda call: Reply(404)
        assert (await world.handle(call, peer)).status == 403
        row = await world.row(serial)
        assert row["artefacts"]["registrar_voucher_request"]["serial_number"] == serial
        # and another serial number than the certificate's is still refused
        assert (await world.handle(request_of(world, device, "PX-1"), peer)).status == 403
        assert (await world.row(serial))["timeline"][-1]["code"] == "serial-number-mismatch"

    play(tmp_path, story)


def test_a_source_has_a_word_for_every_kind() -> None:
    sources = Options.model_fields["serial_source"].annotation
    assert {one.value for one in SerialSource} == set(sources.__args__)  # type: ignore[union-attr]


@pytest.mark.req("T-36")
def test_a_flood_of_one_makers_devices_leaves_room_for_anothers(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        statuses = [(await world.device(f"PX-{n}").voucher()).status for n in range(6)]
        assert statuses == [200] * 4 + [429] * 2
        assert world.masa.count("requestvoucher") == 4
        await world.part.manufacturers.change("Acme", actor=ADMIN, options={"requests_per_second": 0.5})
        statuses = [(await world.device(f"PY-{n}").voucher()).status for n in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        reply = await world.device("PZ-1").voucher()
        assert reply.status == 429 and 1 <= int(reply.headers["retry-after"]) <= 3

    play(tmp_path, story, maker_rate=0.001, maker_burst=4)


@pytest.mark.req("T-36")
def test_all_devices_together_have_a_limit_and_retries_cost_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        first = world.device("PX-0")
        call = first.request()
        replies = [await world.handle(call, first.peer) for _ in range(10)]
        assert {reply.status for reply in replies} == {200}
        assert [(await world.device(f"PX-{n}").voucher()).status for n in range(1, 4)] == [200, 200, 429]

    play(tmp_path, story, request_rate=0.001, request_burst=3)


@pytest.mark.req("T-36")
def test_asking_a_failing_masa_again_costs_the_pledge_a_token_each_time(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        call = device.request()
        world.masa.answer = lambda asked: Reply(500)
        statuses = [(await world.handle(call, device.peer)).status for _ in range(30)]
        assert statuses == [503] * 20 + [429] * 10
        assert world.masa.count("requestvoucher") == 20
        steps = (await world.row())["timeline"]
        assert [(one["step"], one["times"]) for one in steps] == [
            ("request-received", 1), ("masa-asked", 20), ("masa-failed", 20),
        ]  # fmt: skip

    play(tmp_path, story)


def secret_files(folder: Path, identity: Identity) -> dict[str, str]:
    found = {"masa_client_certificate": "cert.pem", "masa_client_key": "key.pem", "masa_basic_file": "basic"}
    contents = (identity.chain_pem, identity.key_pem, b"campus:correct horse\n")
    for name, content in zip(found.values(), contents, strict=True):
        (folder / name).touch(0o600)
        (folder / name).write_bytes(content)
    return {option: str(folder / name) for option, name in found.items()}


@pytest.mark.req("B-144", "B-147")
def test_files_for_one_masa_are_looked_at_when_they_are_named(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        change = world.part.manufacturers.change
        files = secret_files(tmp_path, world.factory.masa_tls)
        await change("Acme", actor=ADMIN, options=files)
        assert (await world.device().voucher()).status == 200
        credentials = world.masa.calls[-1][1].credentials
        assert credentials.authorization() == "Basic Y2FtcHVzOmNvcnJlY3QgaG9yc2U="
        # nothing of what they hold is in the store, in what administrators see, or in the audit log
        stored = (tmp_path / "appliance.db").read_bytes() + (tmp_path / "appliance.db-wal").read_bytes()
        assert b"correct horse" not in stored and b"Y2FtcHVz" not in stored
        assert "correct horse" not in repr(credentials)
        missing = {**files, "masa_client_key": ""}
        await refused(change("Acme", actor=ADMIN, options=missing), MasaCredentialsUnusable)
        for name, mode, content in (("basic", 0o644, b"a:b"), ("basic", 0o600, b"no colon"), ("key.pem", 0o600, b"x")):
            again = secret_files(tmp_path, world.factory.masa_tls)
            (tmp_path / name).write_bytes(content)
            (tmp_path / name).chmod(mode)
            await refused(change("Acme", actor=ADMIN, options=again), MasaCredentialsUnusable)
            (tmp_path / name).chmod(0o600)
        (tmp_path / "basic").unlink()
        await refused(change("Acme", actor=ADMIN, options=files), MasaCredentialsUnusable)

    play(tmp_path, story)


def test_a_row_that_cannot_be_used_does_not_shut_out_other_makers_devices(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        def spoil(tx: Tx) -> None:
            tx.execute(
                insert(schema.manufacturers),
                {
                    "id": "x", "name": "Broken", "anchors_pem": "no PEM", "masa_url": "", "masa_tls_anchors_pem": "",
                    "options": {"masa_trust": "machine"}, "created_at": NOW,
                },
            )  # fmt: skip

        await world.store.write(spoil)
        assert (await world.device().voucher()).status == 200

    play(tmp_path, story)


def test_requests_of_one_device_do_not_wait_for_another_ones_masa(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.masa.gate = asyncio.Event()
        slow = asyncio.create_task(world.device("PX-1").voucher())
        other = asyncio.create_task(world.device("PX-2").voucher())
        async with asyncio.timeout(60):
            while world.masa.count("requestvoucher") < 2:
                await asyncio.sleep(0.01)
        world.masa.gate.set()
        assert {(await slow).status, (await other).status} == {200}

    play(tmp_path, story)


def test_a_dialect_is_spoken_with_devices_and_masa_of_that_maker_alone(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        factory, dialect = world.factory, Dialect(base64_bodies=True)
        policy = MasaPolicy(dialect=dialect)
        world.masa.masa = Masa(factory.masa_signer, factory.masa_chain, factory.device_anchors, policy)
        device = world.device()
        asked = device.request()
        spoken = replace(asked, body=base64.b64encode(asked.body))
        assert (await world.handle(spoken, device.peer)).status == 400
        await world.part.manufacturers.change("Acme", actor=ADMIN, options={"dialect": "base64-bodies"})
        reply = await world.handle(spoken, device.peer)
        assert reply.status == 200 and base64.b64decode(reply.body, validate=True)[:1] == b"\x30"
        # kept and handed out again in the same form, judged and shown all the same
        assert (await world.handle(spoken, device.peer)).body == reply.body
        await device.status()
        row = await world.row()
        assert row["state"] == "audit-passed"
        assert set(row["artefacts"]) == {"registrar_voucher_request", "pledge_voucher_request", "voucher"}
        assert all("reason" not in one for one in row["artefacts"].values())

    play(tmp_path, story)
