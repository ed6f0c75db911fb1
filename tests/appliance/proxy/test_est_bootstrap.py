"""Plain EST: server known beforehand, one-time secret only after it has been authenticated."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.clock import SystemClock
from appliance.errors import KeyFileExposed
from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.errors import (
    BootstrapGaveUp,
    BootstrapNotConfigured,
    EnrolmentSecretUnusable,
    FingerprintMismatch,
    ServerNotAuthorized,
    ServerUntrusted,
)
from appliance.proxy.report import BootstrapReport
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from appliance.settings import ProxySettings
from est import EstClient, EstServer, csr, csrattrs, transfer
from est.csrattrs import CsrAttrs, ExtensionDemand, KeyDemand, NameDemand
from est.errors import EnrollmentRefused, Refusal, ReplyNotAccepted
from est.exchange import Reply
from tests.appliance.proxy.campus import PROXY_ID, Campus, World, asked, make_world, other_domain, server_identity

QUICK = Timing(connect=30, voucher=30, call=30, first_pause=0.1)
SECRET = "proxy-1:correct-horse-battery"
BASIC = "Basic " + base64.b64encode(SECRET.encode()).decode()
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
LOCALHOST = x509.DNSName("localhost")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def state(tmp_path: Path) -> ProxyState:
    return ProxyState.open(tmp_path / "state")


def settings_for(world: World, campus: Campus, **changes: object) -> ProxySettings:
    anchor, secret = world.folder / "anchor.pem", world.folder / "secret"
    anchor.write_bytes(world.domain.root.chain_pem)
    secret.touch(0o600)
    secret.write_text(SECRET + "\n")
    base = ProxySettings(
        method="est", registrar_url=campus.url, est_anchor=anchor, est_secret_file=secret, give_up_seconds=60
    )
    return base.model_copy(update=changes)


async def bootstrap(state: ProxyState, settings: ProxySettings) -> BootstrapReport:
    return await Bootstrap(settings, state, SystemClock(), timing=QUICK).run()


def with_campus(
    world: World,
    scenario: Callable[[Campus], Awaitable[None]],
    *,
    names: Sequence[x509.GeneralName] = (LOOPBACK,),
    ra: bool = False,
    foreign: bool = False,
) -> None:
    async def run() -> None:
        domain = other_domain() if foreign else world.domain
        async with Campus(world.factory, domain, identity=server_identity(domain, names=names, ra=ra)) as campus:
            campus.secrets = {BASIC}
            await scenario(campus)

    asyncio.run(run())


def credentials(campus: Campus) -> list[str]:
    return [one.call.headers["authorization"] for one in campus.seen if "authorization" in one.call.headers]


@pytest.mark.req("A-81", "E-31", "E-97", "E-127", "E-223")
def test_a_known_server_and_a_one_time_secret_end_in_the_same_state_as_brski(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        report = await bootstrap(state, settings_for(world, campus))
        assert report.outcome == "ok"
        assert state.configured
        assert state.read("method") == b"est\n"
        assert state.record().identifier == PROXY_ID
        assert state.anchors() == (world.domain.root.certificate,)
        assert state.ldevid_chain()[0] == campus.issued[0]
        # the secret goes out with the two calls whose answers depend on who asks
        assert campus.paths() == ["cacerts", "csrattrs", "simpleenroll"]
        assert credentials(campus) == [BASIC, BASIC]
        assert SECRET.partition(":")[2].encode() not in (state.read("bootstrap.json") or b"")

    with_campus(world, scenario)


@pytest.mark.req("E-33")
@pytest.mark.parametrize(
    ("names", "ra"), [((LOOPBACK,), False), ((LOOPBACK,), True), ((), True), ((LOCALHOST,), True)],
    ids=["name", "both", "RA mark alone", "wrong name, RA mark"],
)  # fmt: skip
def test_the_right_name_or_the_ra_mark_is_enough(
    world: World, state: ProxyState, names: Sequence[x509.GeneralName], ra: bool
) -> None:
    async def scenario(campus: Campus) -> None:
        assert (await bootstrap(state, settings_for(world, campus))).outcome == "ok"

    with_campus(world, scenario, names=names, ra=ra)


@pytest.mark.req("E-33", "E-35")
@pytest.mark.parametrize("names", [(), (LOCALHOST,)], ids=["no name", "another name"])
def test_the_right_ca_with_neither_is_refused_before_anything_is_sent(
    world: World, state: ProxyState, names: Sequence[x509.GeneralName]
) -> None:
    async def scenario(campus: Campus) -> None:
        with pytest.raises(ServerNotAuthorized):
            await bootstrap(state, settings_for(world, campus))
        assert campus.connections == 1
        assert campus.seen == []

    with_campus(world, scenario, names=names)


def machine_store(world: World) -> Path:
    """A bundle as a machine has it: the campus' root among others."""
    bundle = world.folder / "ca-certificates.crt"
    bundle.write_bytes(other_domain().root.chain_pem + world.domain.root.chain_pem)
    return bundle


@pytest.mark.req("E-31", "E-32", "E-34", "E-97")
def test_implicit_anchors_open_the_way_to_the_explicit_one_and_are_not_kept(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        settings = settings_for(world, campus, est_anchor=None, est_implicit_anchors=machine_store(world))
        report = await bootstrap(state, settings)
        (step,) = [one.as_json() for one in report.steps if one.as_json()["step"] == "server-verified"]
        assert step["anchors"] == "implicit"
        assert state.anchors() == (world.domain.root.certificate,)

    with_campus(world, scenario)


@pytest.mark.req("E-32", "E-34", "E-35")
@pytest.mark.parametrize("names", [(), (LOCALHOST,)], ids=["no name", "another name"])
def test_under_implicit_anchors_the_ra_mark_does_not_replace_the_name(
    world: World, state: ProxyState, names: Sequence[x509.GeneralName]
) -> None:
    async def scenario(campus: Campus) -> None:
        settings = settings_for(world, campus, est_anchor=None, est_implicit_anchors=machine_store(world))
        with pytest.raises(ServerNotAuthorized, match="implicit"):
            await bootstrap(state, settings)
        assert campus.seen == []
        # under the explicit anchor the very same server is good
        assert (await bootstrap(state, settings_for(world, campus))).outcome == "ok"

    with_campus(world, scenario, names=names, ra=True)


@pytest.mark.req("E-32", "E-97")
def test_a_server_that_the_machine_trusts_but_its_own_cacerts_do_not_vouch_for_is_refused(
    world: World, state: ProxyState
) -> None:
    async def scenario(campus: Campus) -> None:
        bundle = world.folder / "bundle.pem"
        bundle.write_bytes(campus.identity.certificate.public_bytes(Encoding.PEM))
        campus.instead["/.well-known/est/cacerts"] = lambda *_: cacerts_of(world)
        settings = settings_for(world, campus, est_anchor=None, est_implicit_anchors=bundle)
        with pytest.raises(ReplyNotAccepted, match="do not vouch"):
            await bootstrap(state, settings)
        assert credentials(campus) == []

    with_campus(world, scenario, foreign=True)


def cacerts_of(world: World) -> Reply:
    return EstServer().cacerts_reply((world.domain.root.certificate,), EstClient().cacerts_call())


@pytest.mark.req("E-30", "E-32", "E-35")
def test_a_server_of_another_ca_is_refused_before_anything_is_sent(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        with pytest.raises(ServerUntrusted):
            await bootstrap(state, settings_for(world, campus))
        assert campus.seen == []

    with_campus(world, scenario, ra=True, foreign=True)


def test_the_servers_own_certificate_serves_as_anchor(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        settings = settings_for(world, campus)
        assert settings.est_anchor is not None
        settings.est_anchor.write_bytes(campus.identity.certificate.public_bytes(Encoding.PEM))
        assert (await bootstrap(state, settings)).outcome == "ok"

    with_campus(world, scenario)


# -- without an anchor: a fingerprint ------------------------------------------------------------------------------


def fingerprint(world: World, digest: Callable[[bytes], object] = hashlib.sha256) -> str:
    return digest(world.domain.root.certificate.public_bytes(Encoding.DER)).hexdigest()  # type: ignore[attr-defined]


@pytest.mark.req("E-37")
@pytest.mark.parametrize("digest", [hashlib.sha256, hashlib.sha512])
def test_a_fingerprint_confirms_what_an_unauthenticated_connection_brought(
    world: World, state: ProxyState, digest: Callable[[bytes], object]
) -> None:
    async def scenario(campus: Campus) -> None:
        text = fingerprint(world, digest).upper()
        spelled = ":".join(text[i : i + 2] for i in range(0, len(text), 2))
        await bootstrap(state, settings_for(world, campus, est_anchor=None, est_fingerprint=spelled))
        assert [(one.connection, one.path.rpartition("/")[2]) for one in campus.seen] == [
            (1, "cacerts"), (2, "cacerts"), (2, "csrattrs"), (2, "simpleenroll"),
        ]  # fmt: skip
        assert [one.connection for one in campus.seen if "authorization" in one.call.headers] == [2, 2]

    with_campus(world, scenario)


@pytest.mark.req("E-37", "E-38")
def test_with_another_fingerprint_nothing_but_cacerts_was_asked(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        with pytest.raises(FingerprintMismatch):
            await bootstrap(state, settings_for(world, campus, est_anchor=None, est_fingerprint="ab" * 32))
        assert campus.paths() == ["cacerts"]
        assert credentials(campus) == []
        assert not state.configured

    with_campus(world, scenario)


@pytest.mark.req("E-38")
def test_a_challenge_on_the_unauthenticated_connection_is_not_answered(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        challenge = Reply(401, "text/plain", {"www-authenticate": 'Basic realm="x"'}, b"who?\n")
        campus.instead["/.well-known/est/cacerts"] = lambda *_: challenge
        with pytest.raises(EnrollmentRefused):
            await bootstrap(state, settings_for(world, campus, est_anchor=None, est_fingerprint=fingerprint(world)))
        assert campus.paths() == ["cacerts"]
        assert credentials(campus) == []

    with_campus(world, scenario)


@pytest.mark.req("E-37", "E-35")
def test_a_confirmed_root_does_not_authenticate_a_server_of_another_ca(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        campus.anchors_served = [world.domain.root.certificate]  # shows the right root, is not under it
        with pytest.raises(ServerUntrusted):
            await bootstrap(state, settings_for(world, campus, est_anchor=None, est_fingerprint=fingerprint(world)))
        assert campus.paths() == ["cacerts"]
        assert credentials(campus) == []

    with_campus(world, scenario, ra=True, foreign=True)


# -- secrets and configuration -------------------------------------------------------------------------------------


UNKNOWN_ATTRIBUTES = [
    # RFC 7030, section 4.5.2, malformed extension request and all; twice an unknown OID; nothing; no DER at all
    b"MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJBgcrBgEBAQEWBggqhkjOPQQDAw==",
    b"MBgGCisGAQQBgf1ZhGkGCisGAQQBgf1ZhGk=",
    b"MAA=",
    b"?" * 5000,
]


@pytest.mark.req("E-152")
@pytest.mark.parametrize("attributes", UNKNOWN_ATTRIBUTES, ids=["rfc7030", "unknown twice", "empty", "rubbish"])
def test_attributes_that_the_client_does_not_know_are_ignored(
    world: World, state: ProxyState, attributes: bytes
) -> None:
    async def scenario(campus: Campus) -> None:
        campus.instead["/.well-known/est/csrattrs"] = lambda *_: Reply(200, "application/csrattrs", body=attributes)
        report = await bootstrap(state, settings_for(world, campus))
        assert (report.outcome, state.configured) == ("ok", True)

    with_campus(world, scenario)


def asked_in(campus: Campus) -> csr.Csr:
    return csr.read(transfer.read_base64(campus.of("simpleenroll")[-1].call.body))


@pytest.mark.req("E-150", "E-161", "B-372")
def test_the_request_has_the_key_and_the_names_that_the_server_asks_for(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(PROXY_ID)])
        campus.demanded = CsrAttrs(
            key=KeyDemand(csrattrs.EC_PUBLIC_KEY, curve=csrattrs.CURVES["secp384r1"]),
            subject=(NameDemand(csrattrs.COMMON_NAME, b"\x0c\x05proxy"), NameDemand("2.5.4.99")),
            extensions=(ExtensionDemand(csrattrs.SUBJECT_ALT_NAME, value=names.public_bytes()),),
        )
        report = await bootstrap(state, settings_for(world, campus))
        assert (report.outcome, state.configured) == ("ok", True)
        asked = asked_in(campus)
        assert asked.public_key.curve.name == "secp384r1"  # type: ignore[union-attr]
        assert (asked.subject.rfc4514_string(), asked.san) == ("CN=proxy", names)

    with_campus(world, scenario)


@pytest.mark.req("E-152")
@pytest.mark.parametrize("value", [b"\x30\x00", b"\x30\x04\x82\x02ab", b"\x30\x04\x86\x02\xff\xfe", b"junk", b""])
def test_names_that_the_client_cannot_carry_are_passed_over(world: World, state: ProxyState, value: bytes) -> None:
    async def scenario(campus: Campus) -> None:
        campus.demanded = CsrAttrs(
            key=KeyDemand(csrattrs.RSA_ENCRYPTION, bits=4096),
            extensions=(ExtensionDemand(csrattrs.SUBJECT_ALT_NAME, value=value),),
        )
        assert (await bootstrap(state, settings_for(world, campus))).outcome == "ok"
        asked = asked_in(campus)
        assert (asked.san, asked.public_key.curve.name) == (None, "secp256r1")  # type: ignore[union-attr]

    with_campus(world, scenario)


@pytest.mark.req("E-14")
@pytest.mark.parametrize("where", ["https://127.0.0.1:{port}/elsewhere", "/elsewhere", "https://elsewhere.example/"])
@pytest.mark.parametrize("operation", ["cacerts", "simpleenroll"])
def test_no_redirect_is_followed(world: World, state: ProxyState, operation: str, where: str) -> None:
    async def scenario(campus: Campus) -> None:
        location = where.format(port=campus.port)
        campus.instead[f"/.well-known/est/{operation}"] = lambda *_: Reply(307, headers={"location": location})
        with pytest.raises(Refusal):
            await bootstrap(state, settings_for(world, campus, give_up_seconds=0.15))
        assert set(campus.paths()) <= {"cacerts", "csrattrs", operation}
        assert len(credentials(campus)) == sum(map(campus.paths().count, ("csrattrs", "simpleenroll")))
        assert not state.configured

    with_campus(world, scenario)


@pytest.mark.req("E-142")
def test_a_wrong_secret_is_not_repeated(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        campus.secrets = {"Basic other"}
        with pytest.raises(EnrollmentRefused):
            await bootstrap(state, settings_for(world, campus))
        assert campus.paths().count("simpleenroll") == 1
        assert not state.configured

    with_campus(world, scenario)


def test_a_server_in_trouble_is_asked_again(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        campus.instead["/.well-known/est/simpleenroll"] = lambda call, client, proper: (
            Reply(503) if len(campus.of("simpleenroll")) == 1 else proper()
        )
        assert (await bootstrap(state, settings_for(world, campus))).outcome == "ok"
        first, second = campus.of("simpleenroll")
        assert asked(first) == asked(second)

    with_campus(world, scenario)


def test_nobody_there_ends_with_the_time(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        settings = settings_for(world, campus, give_up_seconds=0.4)
        await campus.__aexit__()
        with pytest.raises(BootstrapGaveUp, match="peer-unreachable"):
            await bootstrap(state, settings)

    with_campus(world, scenario)


def test_a_certificate_issued_beforehand_serves_instead_of_a_secret(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        settings = settings_for(
            world, campus, est_secret_file=None,
            idevid_certificate=world.settings.idevid_certificate, idevid_key=world.settings.idevid_key,
        )  # fmt: skip
        assert (await bootstrap(state, settings)).outcome == "ok"
        assert campus.seen[-1].client == world.device.certificate
        assert credentials(campus) == []

    with_campus(world, scenario)


@pytest.mark.req("A-82", "E-54")
@pytest.mark.parametrize(
    "changes",
    [
        {"registrar_url": ""},
        {"registrar_url": "http://127.0.0.1:1"},
        {"registrar_url": "https://user@127.0.0.1:1"},
        {"registrar_url": "https://127.0.0.1:1/path"},
        {"est_anchor": None},
        {"est_implicit_anchors": Path("/etc/ssl/certs/ca-certificates.crt")},
        {"est_fingerprint": "ab" * 32},
        {"est_anchor": None, "est_fingerprint": "abc"},
        {"est_secret_file": None},
    ],
    ids=str,
)
def test_half_a_configuration_stops_with_instructions(
    world: World, state: ProxyState, changes: dict[str, object]
) -> None:
    async def scenario(campus: Campus) -> None:
        with pytest.raises(BootstrapNotConfigured):
            await bootstrap(state, settings_for(world, campus, **changes))
        assert campus.connections == 0

    with_campus(world, scenario)


@pytest.mark.parametrize("text", ["", "name", "name:", ":hunter2", "a\tb:hunter2", "name:hun ter2"])
def test_a_secret_file_without_a_secret_is_refused(world: World, state: ProxyState, text: str) -> None:
    async def scenario(campus: Campus) -> None:
        settings = settings_for(world, campus)
        assert settings.est_secret_file is not None
        settings.est_secret_file.write_text(text)
        with pytest.raises(EnrolmentSecretUnusable) as caught:
            await bootstrap(state, settings)
        assert "hun" not in caught.value.detail

    with_campus(world, scenario)


def test_a_secret_that_others_can_read_is_refused(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        settings = settings_for(world, campus)
        assert settings.est_secret_file is not None
        settings.est_secret_file.chmod(0o640)
        with pytest.raises(KeyFileExposed):
            await bootstrap(state, settings)

    with_campus(world, scenario)
