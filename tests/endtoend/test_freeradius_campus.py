"""A whole appliance that runs FreeRADIUS itself: NAS by secret and by certificate, and what follows a change."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.access.raddb_folder import default_folder, run_as
from est import csr
from lab.story import Cast
from lab.supplicant import Outcome, authenticate
from tests.campus import NAS_SECRET, Campus, environment
from tests.endtoend.test_network_side import request_credential, values_of
from tests.interop.radius_tools import RadSecWire, free_tcp_port, free_udp_port, need_freeradius

pytestmark = [pytest.mark.lab, pytest.mark.interop, pytest.mark.xdist_group("freeradius-campus")]


@dataclass
class Site:
    campus: Campus
    agent: Path
    radius: tuple[str, int]
    radsec_port: int
    folder: Path
    refuse: Path

    async def log_in(self, secret: bytes = NAS_SECRET.encode(), **more: Any) -> Outcome:
        block = values_of((self.agent / "wpa_supplicant.conf").read_text())
        return await authenticate(
            *self.radius, secret, identity=block["identity"],
            certificate_chain_pem=Path(block["client_cert"]).read_bytes(),
            key_pem=Path(block["private_key"]).read_bytes(), ca_pem=Path(block["ca_cert"]).read_bytes(),
            server_name=block["domain_match"], **more,
        )  # fmt: skip

    async def over_tls(self, certificate: Path, version: str) -> Outcome:
        root = (self.campus.home / "certificates" / "root.pem").read_text()
        try:
            wire = await RadSecWire.open_files(
                self.radsec_port, certificate, self.folder / "nas.key", root, "radius.campus.example", version
            )
        except OSError:
            return Outcome("timeout")
        try:
            return await self.log_in(RadSecWire.SECRET, wire=wire, seconds=1.0)
        finally:
            await wire.close()

    async def until(self, wanted: Callable[[Outcome], bool], ask: Callable[[], Any], seconds: float = 60.0) -> Outcome:
        deadline = time.monotonic() + seconds
        while True:
            outcome: Outcome = await ask()
            if wanted(outcome):
                return outcome
            assert time.monotonic() < deadline, outcome
            await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def site(template: Campus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    campus = template.copy(folder / "campus")
    port, radsec_port = free_udp_port(), free_tcp_port()
    with choosy_freeradius() as refuse, closing(campus):
        campus.start(
            "radius.engine=freeradius", f"radius.port={port}", f"radius.accounting_port={free_udp_port()}",
            "radius.radsec_host=127.0.0.1", f"radius.radsec_port={radsec_port}", "radius.fail_mode=guest",
        )  # fmt: skip
        campus.start_proxy()
        agent = request_credential(campus, folder / "agent")
        yield Site(campus, agent, ("127.0.0.1", port), radsec_port, folder, refuse)


@contextmanager
def choosy_freeradius() -> Iterator[Path]:
    """On the path the real FreeRADIUS, whose check refuses everything while there is a file `refuse` in the folder."""
    # not in pytest's folder, which FreeRADIUS' user cannot enter
    with tempfile.TemporaryDirectory(prefix="choosy-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        folder.chmod(0o711)
        program = folder / "freeradius"
        program.write_text(
            f"#!/bin/sh\nif [ \"$1\" = -C ] && [ -e '{folder}/refuse' ]; then\n"
            f"echo 'Error: refused by the test'; exit 1; fi\nexec {need_freeradius()} \"$@\"\n"
        )
        program.chmod(0o755)
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield folder / "refuse"


def request_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    der = csr.build(subject=x509.Name([]), key=key)
    return x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)


def test_a_nas_gets_a_certificate_logs_agents_in_over_tls_and_is_shut_out_by_its_revocation(site: Site) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (site.folder / "nas.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (site.folder / "nas.csr").write_bytes(request_of(key))
    certificate = site.folder / "nas.pem"
    assert site.campus.cli("nas", "certify", "nowhere", "--csr", site.folder / "nas.csr", "--out", certificate).status
    assert site.campus.cli("nas", "add", "hall", "192.0.2.77").status == 0
    done = site.campus.cli("nas", "certify", "hall", "--csr", site.folder / "nas.csr", "--out", certificate)
    assert done.status == 0, done.err
    issued = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert issued.subject.rfc4514_string() == "CN=hall"

    async def act() -> None:
        for version in ("1.2", "1.3"):
            outcome = await site.until(lambda one: one.code == "accept", lambda: site.over_tls(certificate, version))
            assert outcome.vlan == "20"
        (row,) = site.campus.cli("access", "log", "--limit", "1").json
        assert row["nas"] == "hall"

        # another NAS's certificate cuts nobody's connection
        root = (site.campus.home / "certificates" / "root.pem").read_text()
        wire = await RadSecWire.open_files(
            site.radsec_port, certificate, site.folder / "nas.key", root, "radius.campus.example", "1.3"
        )
        other = site.folder / "other.pem"
        again = site.campus.cli("nas", "certify", "hall", "--csr", site.folder / "nas.csr", "--out", other)
        assert again.status == 0, again.err
        await site.until(lambda one: one.code == "accept", lambda: site.over_tls(other, "1.3"), seconds=8.0)
        assert (await site.log_in(RadSecWire.SECRET, wire=wire, seconds=3.0)).code == "accept"
        await asyncio.sleep(6)  # so that the revocation is taken without a restart as well
        revoked = site.campus.cli("certs", "revoke", done.json["serial"], "--issuer", "infrastructure")
        assert revoked.status == 0, revoked.err
        for version in ("1.2", "1.3"):
            await site.until(lambda one: one.code == "timeout", lambda: site.over_tls(certificate, version))
        assert (await site.log_in(RadSecWire.SECRET, wire=wire, seconds=1.0)).code == "timeout"
        assert (await site.over_tls(other, "1.3")).code == "accept"
        await wire.close()

    asyncio.run(act())
    assert site.campus.log().count("event=freeradius-reload") >= 2
    audited = site.campus.cli("audit", "list", "--event", "infrastructure-certificate-issued").json
    assert [row["object"] for row in audited].count(done.json["serial"]) == 1


def test_a_nas_whose_secret_changes_is_followed_without_a_restart_of_the_appliance(site: Site) -> None:
    secret = "another-secret-of-some-length-0123"
    (site.folder / "secret").write_text(secret)
    (site.folder / "old-secret").write_text(NAS_SECRET)
    (old,) = [row for row in site.campus.cli("nas", "list").json if row["address"].startswith("127.")]

    def replace(file: str) -> None:
        assert site.campus.cli("nas", "remove", old["name"]).status == 0
        added = site.campus.cli("nas", "add", old["name"], old["address"], "--secret-file", site.folder / file)
        assert added.status == 0, added.err

    async def act() -> None:
        assert (await site.log_in()).vlan == "20"
        replace("secret")
        await site.until(lambda one: one.code == "accept", lambda: site.log_in(secret.encode(), seconds=1.0))
        assert (await site.log_in(seconds=1.0)).code in ("timeout", "broken")
        replace("old-secret")
        await site.until(lambda one: one.code == "accept", lambda: site.log_in(seconds=1.0))

    asyncio.run(act())


def test_a_rotated_secret_reaches_freeradius_by_itself_and_the_old_one_is_refused(site: Site) -> None:
    (old,) = [row for row in site.campus.cli("nas", "list").json if row["address"].startswith("127.")]
    made = site.campus.cli("nas", "rotate-secret", old["name"], "--overlap", "1h")
    assert made.status == 0, made.err
    assert made.json["overlap_for"] == "requests to it alone" and "one secret per NAS" in made.json["logins"]
    new = made.json["shared_secret"].encode()

    async def act() -> None:
        # "in a second or two"
        await site.until(lambda one: one.code == "accept", lambda: site.log_in(new, seconds=1.0), seconds=4.0)
        assert (await site.log_in(seconds=1.0)).code == "timeout"
        (row,) = [row for row in site.campus.cli("nas", "list").json if row["name"] == old["name"]]
        assert (row["old_secret_for"], row["still_old"]) == ("requests to it alone", None)
        refused = site.campus.cli("access", "log", "--reason", "radius-secret-wrong").json
        assert refused and refused[-1]["trace"]["address"] == "127.0.0.1"
        back = site.folder / "old-secret"
        back.write_text(NAS_SECRET)
        done = site.campus.cli("nas", "rotate-secret", old["name"], "--overlap", "0s", "--secret-file", back)
        assert done.status == 0 and done.json["overlap_for"] == "", done.err
        await site.until(lambda one: one.code == "accept", lambda: site.log_in(seconds=1.0), seconds=4.0)
        assert (await site.log_in(new, seconds=1.0)).code == "timeout"

    asyncio.run(act())


def test_what_freeradius_refuses_is_not_used_and_is_shown_until_it_takes_something_newer(site: Site) -> None:
    def radius() -> dict[str, str]:
        (row,) = [row for row in site.campus.cli("doctor").json if row["check"] == "radius"]
        return dict(row)

    def until(state: str) -> dict[str, str]:
        deadline = time.monotonic() + 5
        while (row := radius())["level"] != state:
            assert time.monotonic() < deadline, row
            time.sleep(0.1)
        return row

    assert until("ok")["message"] == "FreeRADIUS serves what was rendered last"
    site.refuse.touch()
    assert site.campus.cli("nas", "add", "late", "127.0.0.3").status == 0
    shown = until("error")
    assert "refused by the test" not in shown["message"]  # /readyz tells it to anybody
    (row,) = [row for row in site.campus.cli("doctor").json if row["check"] == "radius-configuration"]
    assert "refused by the test" in row["message"]
    assert asyncio.run(site.log_in()).code == "accept"
    site.refuse.unlink()
    assert site.campus.cli("nas", "remove", "late").status == 0
    until("ok")
    assert asyncio.run(site.log_in()).code == "accept"


def test_a_policy_with_another_guest_vlan_is_rendered(site: Site) -> None:
    """The fail mode is guest here, so that the policy's guest VLAN stands in the configuration."""

    def rendered() -> str:
        folder = default_folder(site.campus.home, run_as("freerad"))
        return (folder / "sites-enabled" / "check-eap-tls").read_text()

    assert 'Tunnel-Private-Group-Id := "99"' in rendered()
    policy = site.campus.cli("policy", "show").json["text"]
    (site.folder / "policy").write_text(policy.replace("99", "98"))
    assert site.campus.cli("policy", "publish", site.folder / "policy").status == 0
    deadline = time.monotonic() + 60
    while 'Tunnel-Private-Group-Id := "98"' not in rendered():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_check_says_what_it_looked_at(site: Site) -> None:
    done = site.campus.cli("radius", "check")
    assert done.status == 0, done.err
    assert done.json["ok"] and done.json["notes"] == "" and done.json["clients"] >= 1


def test_secrets_are_not_in_the_log(site: Site) -> None:
    log = (site.campus.folder / "logs").rglob("*") if (site.campus.folder / "logs").is_dir() else []
    for path in log:
        text = path.read_text(errors="replace")
        assert NAS_SECRET not in text
    assert json.dumps(site.campus.cli("nas", "list").json).find(NAS_SECRET) == -1


class From:
    """A NAS at an address of its own."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def open(cls, address: str, server: tuple[str, int]) -> From:
        made = cls()

        class Takes(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: object) -> None:
                made.answers.put_nowait(data)

        made._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            Takes, local_addr=(address, 0), remote_addr=server
        )
        return made

    def send(self, octets: bytes) -> None:
        assert self._transport is not None
        self._transport.sendto(octets)


def test_one_that_runs_beside_the_appliance_follows_it_and_keeps_what_works(template: Campus, tmp_path: Path) -> None:
    """`appliance radius run`: a new NAS is served by itself, a rendering that FreeRADIUS refuses changes nothing."""
    campus, port = template.copy(tmp_path / "campus"), free_udp_port()
    with choosy_freeradius() as refuse, closing(campus):
        campus.start("radius.engine=none", f"radius.port={port}", f"radius.accounting_port={free_udp_port()}")
        campus.start_proxy()
        agent = request_credential(campus, tmp_path / "agent")
        command = [
            sys.executable, "-m", "appliance", "radius", "run", "--home", campus.home, "-o", "json",
            f"--set=radius.port={port}",
        ]  # fmt: skip
        running = Cast(campus.logs, environment()).start("radius", command)
        campus.cast._members.append(running)
        running.wait_for("ready", 30)
        site = Site(campus, agent, ("127.0.0.1", port), 0, tmp_path, refuse)
        secret = "secret-of-a-new-switch-0123456789"
        (tmp_path / "secret").write_text(secret)

        async def from_new() -> Outcome:
            return await site.log_in(secret.encode(), wire=await From.open("127.0.0.2", site.radius), seconds=1.0)

        async def act() -> None:
            assert (await site.log_in()).vlan == "20"
            assert (await from_new()).code == "timeout"
            assert campus.cli("nas", "add", "new", "127.0.0.2", "--secret-file", tmp_path / "secret").status == 0
            await site.until(lambda one: one.code == "accept", from_new, seconds=10.0)

            refuse.touch()
            assert campus.cli("nas", "remove", "new").status == 0
            deadline = time.monotonic() + 10
            while "freeradius-not-reloaded" not in campus.log("radius"):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            assert "refused by the test" in campus.log("radius")
            assert [(await from_new()).code, (await site.log_in()).code] == ["accept", "accept"]
            refuse.unlink()
            await site.until(lambda one: one.code == "timeout", from_new, seconds=10.0)
            assert (await site.log_in()).vlan == "20"

        asyncio.run(act())
        assert secret not in campus.log("radius") and NAS_SECRET not in campus.log("radius")
