"""FreeRADIUS, or our own server: a login becomes a session, a failure a row, and a change reaches the port."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lab.supplicant import Outcome, authenticate
from tests.campus import NAS_SECRET, Campus
from tests.endtoend.test_network_side import request_credential, values_of
from tests.interop.radius_tools import free_udp_port, need_freeradius
from tests.interop.test_freeradius_ports import call_check, udp
from tests.radius.das import das
from tests.radius.test_accounting import Client, message

pytestmark = [pytest.mark.lab, pytest.mark.interop, pytest.mark.xdist_group("network-access")]

MAC = "02-00-00-00-00-05"
POLICY = """\
version = 2
[vlans]
research = 20
staff = 30
infrastructure = 5
onboarding = 7
guest = 99
[sites.north.vlans]
research = "research-north"
[[rule]]
name = "research"
department = "R&D"
vlan = "research"
role = "researcher"
session_timeout = 600
[[rule]]
name = "human resources"
department = "HR"
vlan = "staff"
"""
WITH_DEVICES = (
    """\
[mac_bypass]
vlan = "onboarding"
"""
    + POLICY.partition("[[rule]]")[1]
    + POLICY.partition("[[rule]]")[2]
    + """\
[[rule]]
name = "proxies"
credential = "proxy"
vlan = "infrastructure"
"""
)


class Site:
    def __init__(self, campus: Campus, folder: Path, ports: tuple[int, int]) -> None:
        self.campus, self.folder = campus, folder
        self.port, self.accounting_port = ports
        self.agent = request_credential(campus, folder / "agent")

    def run(self, *words: str | Path) -> Any:
        done = self.campus.cli(*words)
        assert done.status == 0, done.err
        return done.json

    def publish(self, text: str) -> None:
        (self.folder / "policy").write_text(text)
        self.run("policy", "publish", self.folder / "policy")

    async def log_in(self, chain: bytes = b"", key: bytes = b"", **more: Any) -> Outcome:
        block = values_of((self.agent / "wpa_supplicant.conf").read_text())
        return await authenticate(
            "127.0.0.1", self.port, NAS_SECRET.encode(), identity=block["identity"],
            certificate_chain_pem=chain or Path(block["client_cert"]).read_bytes(),
            key_pem=key or Path(block["private_key"]).read_bytes(), ca_pem=Path(block["ca_cert"]).read_bytes(),
            server_name=block["domain_match"], calling_station=MAC, **{"seconds": 15.0} | more,
        )  # fmt: skip

    async def log_in_proxy(self, **more: Any) -> Outcome:
        state = self.campus.state
        return await self.log_in((state / "ldevid.pem").read_bytes(), (state / "ldevid.key.pem").read_bytes(), **more)

    async def account(self, status: int, *more: tuple[int, bytes]) -> None:
        loop = asyncio.get_running_loop()
        transport, client = await loop.create_datagram_endpoint(Client, remote_addr=("127.0.0.1", self.accounting_port))
        client.transport = transport
        sent = message(
            (40, status.to_bytes(4, "big")), (44, b"S-1"), (31, MAC.encode()), (87, b"swp5"), *more,
            secret=NAS_SECRET.encode(),
        )  # fmt: skip
        try:
            assert await client.ask(sent, 60) is not None
        finally:
            transport.close()

    async def seen(self, count: int) -> list[dict[str, Any]]:
        """Its live sessions as soon as there are so many: they are written in batches."""
        for _ in range(600):
            if len(found := self.sessions()) >= count:
                break
            await asyncio.sleep(0.1)
        return found

    def sessions(self, *words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.run("sessions", "list", *words)
        return found


async def until(check: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "not within its time"
        await asyncio.sleep(0.05)
    return found


async def until_login(wanted: Callable[[Outcome], bool], ask: Callable[[], Any], seconds: float = 60.0) -> Outcome:
    deadline = time.monotonic() + seconds
    while True:
        outcome: Outcome = await ask()
        if wanted(outcome):
            return outcome
        assert time.monotonic() < deadline, outcome
        await asyncio.sleep(0.1)


ENGINES = {
    "FreeRADIUS": ("radius.engine=freeradius",),
    "two workers": ("radius.engine=embedded", "radius.workers=2"),
}


@pytest.fixture(scope="module", params=ENGINES)
def site(request: pytest.FixtureRequest, template: Campus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if request.param == "FreeRADIUS":
        need_freeradius()
    folder = tmp_path_factory.mktemp("site")
    campus = template.copy(folder / "campus")
    ports = free_udp_port(), free_udp_port()
    campus.start(*ENGINES[request.param], f"radius.port={ports[0]}", f"radius.accounting_port={ports[1]}")
    try:
        campus.start_proxy()
        made = Site(campus, folder, ports)
        made.publish(POLICY)
        yield made
    finally:
        campus.close()


def test_a_login_is_a_session_that_accounting_confirms_counts_and_ends(site: Site) -> None:
    async def story() -> None:
        outcome = await site.log_in()
        assert (outcome.code, outcome.vlan, outcome.role) == ("accept", "20", "researcher")
        (one,) = await site.seen(1)
        assert (one["state"], one["vlan"], one["mac"], one["nas"]) == ("assumed", "20", MAC, "lab-switch")
        (class_,) = outcome.attributes[25]
        assert class_.decode() == one["txn"]
        await site.account(1, (25, class_))
        await site.account(3, (25, class_), (42, (4096).to_bytes(4, "big")))
        (same,) = site.sessions()
        assert (same["id"], same["state"], same["acct_session"]) == (one["id"], "open", "S-1")
        assert same["octets_in"] == 4096
        await site.account(2, (25, class_), (49, (1).to_bytes(4, "big")))
        assert site.sessions() == []
        assert site.run("sessions", "show", one["id"])["cause"] == "user-request"

    asyncio.run(story())


def test_a_suspended_owner_or_agent_and_an_administrator_reach_the_port(site: Site) -> None:
    async def story() -> None:
        async with das(NAS_SECRET.encode()) as nas:
            site.run("nas", "set", "lab-switch", "--coa-port", str(nas.port), "--profile", "generic-disconnect")
            await site.log_in()
            (one,) = await site.seen(1)
            site.run("sessions", "disconnect", one["id"])
            await until(lambda: nas.done)
            await until(lambda: not site.sessions())
            await site.log_in()
            site.run("owners", "suspend", "alice")
            await until(lambda: len(nas.done) == 2)
            outcome = await site.log_in()
            assert outcome.code == "reject"
            site.run("owners", "resume", "alice")
            await until(lambda: not site.sessions())
            assert (await site.log_in()).code == "accept"
            site.run("agents", "suspend", site.sessions()[0]["agent"])
            await until(lambda: len(nas.done) == 3)
            assert (await site.log_in()).code == "reject"
            (row,) = site.run("access", "log", "--limit", "1")
            assert row["reason"] == "agent-suspended", row
            site.run("agents", "resume", row["agent"])

    asyncio.run(story())


def test_a_department_that_changes_by_scim_moves_the_port_within_seconds(site: Site) -> None:
    site.run("directory", "token", "new", "--name", "idp", "--file", site.folder / "token")
    token = (site.folder / "token").read_text().strip()
    site.campus.ask("directory.adopt", ref="alice", source="scim")
    client = site.campus.client("console")

    def scim(method: str, path: str, body: Any = None) -> Any:
        octets = json.dumps(body).encode() if body is not None else b""
        headers = {"Authorization": f"Bearer {token}"}
        answer = client.send(method, f"/scim/v2{path}", octets, "application/scim+json" if octets else "", headers)
        assert answer.status in (200, 201, 204), answer.body
        return answer.json if answer.body else None

    user = scim("POST", "/Users", {
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "userName": "alice", "externalId": "00u1",
        "active": True,
        "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User": {"department": "R&D"},
    })  # fmt: skip

    def move(department: str) -> None:
        scim("PATCH", f"/Users/{user['id']}", {
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
            "Operations": [{"op": "Replace", "path":
                            "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department",
                            "value": department}],
        })  # fmt: skip

    async def story() -> None:
        async with das(NAS_SECRET.encode()) as nas:
            site.run("nas", "set", "lab-switch", "--coa-port", str(nas.port), "--profile", "generic-coa")
            assert (await site.log_in()).vlan == "20"
            move("HR")
            await until(lambda: nas.done)
            assert (nas.done[0].code, nas.done[0].get(81)) == (43, [b"30"])
            await until(lambda: site.sessions()[0]["vlan"] == "30")
            move("R&D")
            await until(lambda: len(nas.done) == 2)

    asyncio.run(story())


def test_a_stranger_is_a_row_with_the_reason(site: Site) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "%{exec:...}")])
    own = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(4711).public_key(key.public_key())
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1)).not_valid_after(datetime.now(UTC) + timedelta(days=1))
    )  # fmt: skip
    chain = own.sign(key, SHA256()).public_bytes(Encoding.PEM)

    async def story() -> None:
        outcome = await site.log_in(chain, pem)
        assert outcome.code == "reject"
        (row,) = site.run("access", "log", "--limit", "1")
        assert (row["reason"], row["nas"], row["mac"]) == ("tls-unknown-ca", "lab-switch", MAC)
        assert "%{exec:...}" in row["trace"]["steps"][0]["evidence"]

    asyncio.run(story())


def test_proxies_and_mac_bypass_follow_the_policy_and_a_suspended_proxy_is_taken_off(site: Site) -> None:
    async def story() -> None:
        assert (await site.log_in_proxy()).code == "reject"
        head, rule, rest = POLICY.partition("[[rule]]")
        site.publish(head + WITH_DEVICES)
        outcome = await until_login(lambda one: one.code == "accept", site.log_in_proxy)
        assert outcome.vlan == "5"
        answer = await udp(site.port, call_check(NAS_SECRET.encode()))
        assert answer is not None and answer[0] == 2 and b"7" in answer
        assert {one["vlan"] for one in site.sessions()} == {"5", "7"}
        proxy = site.campus.proxy_id
        async with das(NAS_SECRET.encode()) as nas:
            site.run("nas", "set", "lab-switch", "--coa-port", str(nas.port), "--profile", "generic-disconnect")
            site.run("proxies", "suspend", proxy)
            await until(lambda: nas.done)
            assert (await site.log_in_proxy()).code == "reject"
            (row,) = site.run("access", "log", "--limit", "1")
            assert (row["reason"], row["agent"]) == ("proxy-suspended", proxy)
            site.run("proxies", "resume", proxy)
            assert (await site.log_in_proxy()).vlan == "5"
            site.publish(POLICY)  # what it gave is taken back at the ports, too
            await until(lambda: len(nas.done) == 3)
            assert site.sessions() == []
        await until_login(lambda one: one.code == "reject", site.log_in_proxy)

        async def bypass() -> Outcome:
            got = await udp(site.port, call_check(NAS_SECRET.encode()))
            return Outcome("accept" if got is not None and got[0] == 2 else "reject")

        await until_login(lambda one: one.code == "reject", bypass)
        assert "mac-bypass-off" in {row["reason"] for row in site.run("access", "log", "--limit", "4")}

    asyncio.run(story())
