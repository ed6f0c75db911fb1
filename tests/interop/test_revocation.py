"""What we publish about revocation, read by others: openssl crl and verify, openssl ocsp, FreeRADIUS' CRL and OCSP.

FreeRADIUS as we render it asks the decision port instead; these tests turn its own checks on and policy off, which says
yes to every agent here.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.audit import Actor
from appliance.ca import CertificateAuthority
from appliance.clock import SystemClock
from appliance.console.pki import PkiRoutes
from appliance.crl import CrlKeeper
from appliance.hierarchy import ROLES, IssuingCa
from appliance.ocsp import OcspResponder
from appliance.store import Store, certificates
from appliance.web.app import build_app
from appliance.web.server import Listener
from est.keys import spki_sha256
from est.signer import KeySigner
from lab.supplicant import authenticate
from tests.appliance.authority import checkpoint_endpoints
from tests.interop.radius_tools import decision_service, free_udp_port, freeradius, need_freeradius, raddb_values
from tests.radius.world import SECRET, Desk, Issued, campus, login
from tests.stores import open_store

pytestmark = pytest.mark.interop
ADMINISTRATOR = Actor("administrator", "local")
GOOD = "spiffe://campus.example/agent/8c2f6a54-53a1-4a63-8f44-0d8a7a1c0011"
BAD = "spiffe://campus.example/agent/8c2f6a54-53a1-4a63-8f44-0d8a7a1c0012"
NEVER_ISSUED = "spiffe://campus.example/agent/8c2f6a54-53a1-4a63-8f44-0d8a7a1c0013"


@dataclass
class Pki:
    """The PKI port over a store that knows two agents."""

    ca: CertificateAuthority
    keeper: CrlKeeper
    url: str
    good: Issued
    bad: Issued

    async def revoke(self, issued: Issued) -> None:
        await self.ca.revoke("agents", issued.certificate.serial_number, reason="keyCompromise", actor=ADMINISTRATOR)


@asynccontextmanager
async def pki(folder: Path) -> AsyncIterator[Pki]:
    clock = SystemClock()
    store = open_store(f"sqlite:///{folder / 'appliance.db'}", clock)
    issuing = {
        role: IssuingCa(role, campus().cas[role].certificate, KeySigner(campus().cas[role].key)) for role in ROLES
    }
    ca = CertificateAuthority(root=campus().root.certificate, issuing=issuing, store=store, clock=clock)
    keeper, responder = CrlKeeper(ca, store, clock, life_hours=24), OcspResponder(ca, store, clock)
    good, bad = campus().agent(agent_id=GOOD), campus().agent(agent_id=BAD)
    for one in (good, bad):
        await record(store, ca, one)
    await responder.start()
    await keeper.build_missing()
    task = asyncio.create_task(keeper.run())
    endpoints = PkiRoutes(ca, keeper, responder, clock).endpoints | checkpoint_endpoints(store, clock)
    listener = Listener("pki", build_app("pki", endpoints))
    port = await listener.open_tcp("127.0.0.1", 0)
    try:
        yield Pki(ca, keeper, f"http://127.0.0.1:{port}", good, bad)
    finally:
        task.cancel()
        await listener.close()
        store.close()


async def record(store: Store, ca: CertificateAuthority, issued: Issued) -> None:
    """As issuance would have."""
    certificate, der = issued.certificate, issued.certificate.public_bytes(Encoding.DER)
    row = certificates.Pending(
        "agents",
        ca.issuing("agents").key_identifier,
        certificate.serial_number,
        hashlib.sha256(certificate.tbs_certificate_bytes).digest(),
        spki_sha256(certificate),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        {"profile": "agent"},
    )
    await store.write(lambda tx: certificates.issue(tx, certificates.add(tx, row), der, hashlib.sha256(der).digest()))


async def run_program(*arguments: str | Path, data: bytes | None = None) -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(
        *map(str, arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(data), 30)
    return process.returncode or 0, output


async def fetched_crl(url: str, folder: Path) -> Path:
    """The list as curl gets it, in PEM."""
    status, der = await run_program("curl", "-sf", f"{url}/crl/agents.crl")
    assert status == 0
    target = folder / "agents-crl.pem"
    target.write_bytes(x509.load_der_x509_crl(der).public_bytes(Encoding.PEM))
    return target


def within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> Awaitable[None]:
    async def wait() -> None:
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.05)

    return wait()


def test_openssl_refuses_a_revoked_agent_by_the_crl_that_is_there_within_five_seconds(tmp_path: Path) -> None:
    async def act() -> None:
        async with pki(tmp_path) as world:
            (tmp_path / "ca.pem").write_bytes(campus().cas["agents"].pem)
            (tmp_path / "leaf.pem").write_bytes(world.bad.certificate.public_bytes(Encoding.PEM))
            await fetched_crl(world.url, tmp_path)
            assert await verify() == (0, True)
            await world.revoke(world.bad)
            await within(5, lambda: is_refused(world))
            status, text = await run_program("openssl", "crl", "-in", tmp_path / "agents-crl.pem", "-noout", "-text",
                                             "-CAfile", tmp_path / "ca.pem")  # fmt: skip
            assert status == 0 and b"verify OK" in text and b"Key Compromise" in text

    async def verify() -> tuple[int, bool]:
        status, text = await run_program("openssl", "verify", "-partial_chain", "-crl_check", "-CAfile",
                                         tmp_path / "ca.pem", "-CRLfile", tmp_path / "agents-crl.pem",
                                         tmp_path / "leaf.pem")  # fmt: skip
        return status, b"certificate revoked" not in text

    async def is_refused(world: Pki) -> bool:
        await fetched_crl(world.url, tmp_path)
        return await verify() == (2, False)

    asyncio.run(act())


def test_openssl_ocsp_refuses_a_revoked_agent_at_once(tmp_path: Path) -> None:
    async def act() -> None:
        async with pki(tmp_path) as world:
            (tmp_path / "ca.pem").write_bytes(campus().cas["agents"].pem)
            (tmp_path / "root.pem").write_bytes(campus().root_pem)
            (tmp_path / "leaf.pem").write_bytes(world.bad.certificate.public_bytes(Encoding.PEM))
            assert b"leaf.pem: good" in await ask(world)
            await world.revoke(world.bad)
            assert b"leaf.pem: revoked" in await ask(world)

    async def ask(world: Pki) -> bytes:
        status, text = await run_program("openssl", "ocsp", "-url", f"{world.url}/ocsp", "-issuer", tmp_path / "ca.pem",
                                         "-cert", tmp_path / "leaf.pem", "-CAfile", tmp_path / "root.pem",
                                         "-verify_other", tmp_path / "ca.pem")  # fmt: skip
        assert status == 0 and b"Response verify OK" in text, text
        return text

    asyncio.run(act())


def turned_on(checks: str, crl: str) -> Callable[[dict[str, str]], dict[str, str]]:
    """The rendered eap module with its own checks of revocation, and no question to the decision port."""

    def change(files: dict[str, str]) -> dict[str, str]:
        eap = files["mods-enabled/eap"]
        start = eap.index("\t\tcheck_crl = no")
        cache = eap.index("\t\tcache {")
        ocsp = eap.index("\t\tocsp {")
        end = eap.index("\t\t}\n", ocsp) + len("\t\t}\n")
        anchors = "certs/client-cas.pem"
        return {
            **files,
            "mods-enabled/eap": eap[:start] + checks + eap[cache:ocsp] + eap[end:],
            anchors: files[anchors] + crl,
        }

    return change


async def logins(tmp_path: Path, world: Pki, checks: str, crl: str = "") -> dict[str, str]:
    """Who gets in: the good, the bad, and one whose certificate we never recorded."""
    desk = Desk()
    port = free_udp_port()
    stranger = campus().agent(agent_id=NEVER_ISSUED)
    for one, name in ((world.good, GOOD), (world.bad, BAD), (stranger, NEVER_ISSUED)):
        desk.admit(one, agent_id=name)
    found = {}
    async with decision_service(desk, tmp_path) as service:
        values = raddb_values(tmp_path / "raddb", service.port, port)
        async with freeradius(values, turned_on(checks, crl)):
            for name, one in (("good", world.good), ("bad", world.bad), ("stranger", stranger)):
                found[name] = (await authenticate("127.0.0.1", port, SECRET, **login(one))).code
    return found


def test_freeradius_refuses_a_revoked_agent_by_our_crl(tmp_path: Path) -> None:
    need_freeradius()

    async def act() -> None:
        async with pki(tmp_path) as world:
            await world.revoke(world.bad)
            await within(5, lambda: lists(world, 1))
            crl = (await fetched_crl(world.url, tmp_path)).read_text()
            found = await logins(tmp_path, world, "\t\tcheck_crl = yes\n", crl)
            assert found == {"good": "accept", "bad": "reject", "stranger": "accept"}

    asyncio.run(act())


def test_freeradius_raises_the_interval_of_new_crls_to_300_s_and_sees_a_revocation_at_its_next_start(
    tmp_path: Path,
) -> None:
    """Why the rendering leaves revocation to the decision port, and why `check_crl` by hand wants restarts."""
    need_freeradius()
    lists_folder = tmp_path / "lists"

    async def publish(world: Pki) -> None:
        crl = await fetched_crl(world.url, tmp_path)
        lists_folder.mkdir(exist_ok=True)
        (lists_folder / "agents-crl.pem").write_bytes(crl.read_bytes())
        (lists_folder / "agents.pem").write_bytes(campus().cas["agents"].pem)
        assert (await run_program("openssl", "rehash", lists_folder))[0] == 0

    async def act() -> None:
        async with pki(tmp_path) as world, decision_service(Desk(), tmp_path) as service:
            service.desk.admit(world.bad, agent_id=BAD)
            await publish(world)
            checks = f'\t\tcheck_crl = yes\n\t\tca_path = "{lists_folder}"\n\t\tca_path_reload_interval = 2\n'
            port = free_udp_port()

            async def code() -> str:
                return (await authenticate("127.0.0.1", port, SECRET, **login(world.bad))).code

            values = raddb_values(tmp_path / "raddb", service.port, port)
            async with freeradius(values, turned_on(checks, "")) as log:
                assert "ca_path_reload_interval is set too low, reset it to 300" in log.read_text()
                assert await code() == "accept"
                await world.revoke(world.bad)
                await within(5, lambda: lists(world, 1))
                await publish(world)
                await asyncio.sleep(4)
                assert await code() == "accept"  # the list that refuses it lies there
            log.unlink()
            async with freeradius(values, turned_on(checks, "")):
                assert await code() == "reject"

    asyncio.run(act())


def test_freeradius_refuses_a_revoked_agent_by_our_ocsp(tmp_path: Path) -> None:
    need_freeradius()

    async def act() -> None:
        async with pki(tmp_path) as world:
            await world.revoke(world.bad)
            checks = (
                "\t\tcheck_crl = no\n\t\tocsp {\n\t\t\tenable = yes\n\t\t\toverride_cert_url = yes\n"
                f'\t\t\turl = "{world.url}/ocsp"\n\t\t\tuse_nonce = yes\n'
                "\t\t\ttimeout = 2\n\t\t\tsoftfail = no\n\t\t}\n"
            )
            found = await logins(tmp_path, world, checks)
            assert found == {"good": "accept", "bad": "reject", "stranger": "reject"}

    asyncio.run(act())


async def lists(world: Pki, count: int) -> bool:
    return len(x509.load_der_x509_crl(await world.keeper.crl("agents"))) == count
