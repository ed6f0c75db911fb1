"""Several RADIUS processes at one port: logins stay whole, nothing is lost, and a worker that dies is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from lab.supplicant import authenticate
from radius import messages
from radius.clients import NasClient, NasTable
from radius.decide import Decision, refuse
from radius.eap_tls import Eap
from radius.errors import WorkerMessageMalformed
from radius.pool import WorkerPool
from radius.request import AccessRequest, CredentialRef
from tests.radius.test_decide import ask
from tests.radius.test_server import Port
from tests.radius.world import OWNER_ID_OID, SECRET, Desk, Issued, campus, identity, login, now
from tests.support import key

OTHER = b"another-secret-of-32-characters-00"


def run(desk: Desk, act: Callable[[WorkerPool, int], Awaitable[None]], **changes: Any) -> list[Decision]:
    """What was accepted, in order."""
    accepted: list[Decision] = []

    async def bounded() -> None:
        given: dict[str, Any] = {
            "identity": identity(campus().server()), "anchors": [campus().agents_ca],
            "table": lambda: NasTable([NasClient("127.0.0.0/8", "switch-1", SECRET)]), "authorize": desk.authorize,
            "on_failure": desk.on_failure, "on_accept": accepted.append, "on_secret": lambda *_: None,
            "owner_id_oid": OWNER_ID_OID,
        }  # fmt: skip
        pool = WorkerPool(2, **(given | changes))
        port = await pool.start()
        try:
            async with asyncio.timeout(40):
                await act(pool, port)
        finally:
            await pool.close()
        assert all(not alive(pid) for pid in pool.pids)

    asyncio.run(bounded())
    return accepted


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_many_logins_over_two_workers_are_each_decided_logged_and_accepted_once() -> None:
    desk, agent, revoked = Desk(), campus().agent(), campus().agent()
    desk.admit(agent)
    desk.admit(revoked, state="revoked")

    async def act(pool: WorkerPool, port: int) -> None:
        outcomes = await asyncio.gather(
            *(
                authenticate("127.0.0.1", port, SECRET, **login(one, tls_version=version))
                for one in (agent, revoked)
                for version in ("1.2", "1.3")
                for _ in range(8)
            )
        )
        assert [outcome.vlan for outcome in outcomes] == ["20"] * 16 + [None] * 16
        assert all(outcome.msk_matches for outcome in outcomes[:16])
        stranger = await authenticate("127.0.0.1", port, SECRET, **login(campus("stranger").agent()))
        assert stranger.code == "reject"

    accepted = run(desk, act)
    assert len(desk.decisions) == 32
    assert len(accepted) == 16 and {one.vlan for one in accepted} == {20}
    assert [failure.reason_code for failure in desk.failures] == ["tls-unknown-ca"]


@pytest.mark.slow
def test_a_login_goes_on_though_the_nas_changes_its_source_port() -> None:
    """Each packet from a port of its own: the kernel spreads them, the State brings them together."""

    async def act(pool: WorkerPool, port: int) -> None:
        for _ in range(12):
            first = await Port.to(port)
            begun = await first.eap(Eap(2, 1, 1, b"bob"))
            assert begun == (11, Eap(1, 2, 13, b"\x20"))
            for _ in range(3):
                other = await Port.to(port)
                other.state = first.state
                assert await other.eap(Eap(2, 9, 13, b"\x00x"), seconds=0.05) is None  # out of turn, yet of this login
                other.transport.close()
            other = await Port.to(port)
            other.state = first.state
            assert await other.eap(Eap(2, 2, 3, b"\x19")) == (3, Eap(4, 2))
            other.transport.close()
            first.transport.close()

    desk = Desk()
    run(desk, act)
    assert [failure.reason_code for failure in desk.failures] == ["eap-method-refused"] * 12


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_logins_go_on() -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)

    async def act(pool: WorkerPool, port: int) -> None:
        before = pool.pids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        while len(pool.pids) < 2 or set(pool.pids) & set(before):
            assert time.monotonic() - begun < 120
            await asyncio.sleep(0.1)
        while (await authenticate("127.0.0.1", port, SECRET, **login(agent, seconds=3))).code != "accept":
            assert time.monotonic() - begun < 120

    run(desk, act)


@pytest.mark.slow
def test_what_changes_while_a_worker_starts_reaches_it() -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    rows = [NasClient("127.0.0.1", "switch-1", SECRET)]

    async def act(pool: WorkerPool, port: int) -> None:
        before = pool.pids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        while len(pool.pids) < 2 or set(pool.pids) & set(before):
            assert time.monotonic() - begun < 120
            await asyncio.sleep(0.005)
        rows[:] = [NasClient("127.0.0.1", "switch-1", OTHER)]  # they run, and have read nothing yet
        pool.refresh()
        while (await authenticate("127.0.0.1", port, OTHER, **login(agent, seconds=3))).code != "accept":
            assert time.monotonic() - begun < 120
        for _ in range(8):
            assert (await authenticate("127.0.0.1", port, OTHER, **login(agent, seconds=15))).code == "accept"

    run(desk, act, table=lambda: NasTable(rows))


@pytest.mark.slow
def test_the_table_of_nas_follows_and_so_does_the_certificate() -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    rows = [NasClient("127.0.0.1", "switch-1", SECRET)]
    used: list[tuple[str, bool]] = []

    async def act(pool: WorkerPool, port: int) -> None:
        assert (await authenticate("127.0.0.1", port, OTHER, **login(agent, seconds=0.5))).code == "timeout"
        rows[:] = [NasClient("127.0.0.1", "switch-1", OTHER, SECRET, time.time() + 60)]
        pool.refresh()
        pool.use_identity(identity(campus().server("radius2.campus.example")))
        renewed = login(agent, server_name="radius2.campus.example")
        for secret in (OTHER, SECRET):
            async with asyncio.timeout(60):  # the workers hear of it one after the other
                while (await authenticate("127.0.0.1", port, secret, **renewed)).code != "accept":
                    await asyncio.sleep(0.05)

    run(desk, act, table=lambda: NasTable(rows), on_secret=lambda name, address, old: used.append((name, old)))
    assert ("switch-1", False) in used and ("switch-1", True) in used


def test_requests_decisions_and_failures_come_through_whole() -> None:
    request = AccessRequest("n", "192.0.2.1", credential=CredentialRef("77c1", 255), san="URI:x", owner_id_hint="o")
    assert messages.read_request(through(messages.write_request(request))) == request
    decision = ask()
    again = messages.read_decision(through(messages.write_decision(decision)), decision.request)
    assert again == decision
    refused = refuse(request._replace(credential=None), "eap-malformed", "why")
    assert messages.read_failure(through(messages.write_failure(refused))) == refused


def through(message: dict[str, Any]) -> dict[str, Any]:
    """The message as it comes out, octet by octet and two at once."""
    reader = messages.Reader(messages.MAX_FROM_WORKER)
    octets = messages.write(message) * 2
    found = [one for at in range(len(octets)) for one in reader.feed(octets[at : at + 1])]
    assert found[0] == found[1] and messages.Reader(messages.MAX_FROM_WORKER).feed(octets) == found
    return found[0]


def test_a_message_that_announces_too_much_ends_the_conversation() -> None:
    with pytest.raises(WorkerMessageMalformed):
        messages.Reader(100).feed((101).to_bytes(4, "big"))


@pytest.mark.slow
def test_a_table_of_thousands_of_nas_reaches_the_workers() -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    rows = [NasClient(f"10.{at >> 8}.{at & 255}.0/24", f"switch-{at}", OTHER * 3) for at in range(8000)]
    rows.append(NasClient("127.0.0.1", "here", SECRET))

    async def act(pool: WorkerPool, port: int) -> None:
        assert (await authenticate("127.0.0.1", port, SECRET, **login(agent))).code == "accept"
        pool.refresh()
        assert (await authenticate("127.0.0.1", port, SECRET, **login(agent))).code == "accept"

    run(desk, act, table=lambda: NasTable(rows))
    assert desk.asked[0].nas == "here"


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("what", ["negative serial", "long serial", "long key identifier", "long names"])
@pytest.mark.slow
def test_an_odd_certificate_of_a_stranger_is_a_reject_and_costs_no_worker(what: str) -> None:
    """Its serial number, key identifier and names go to the log although nothing about it is verified."""
    desk, issued = Desk(), odd(what)

    async def act(pool: WorkerPool, port: int) -> None:
        pids = pool.pids
        for _ in range(4):
            outcome = await authenticate("127.0.0.1", port, SECRET, **login(issued, tls_version="1.2"))
            assert outcome.code == "reject"
        assert pool.pids == pids and all(alive(pid) for pid in pids)

    run(desk, act)
    assert len(desk.failures) == 4 and not desk.asked


def odd(what: str) -> Issued:
    """A certificate of somebody else's CA with something that none of ours has."""
    own = key("odd")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "odd")])
    names = [
        x509.UniformResourceIdentifier(f"urn:{number}:{'x' * 90}") for number in range(120 if "names" in what else 1)
    ]
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(own.public_key())
        .serial_number((1 << 158) + 1)
        .not_valid_before(now() - timedelta(days=1)).not_valid_after(now() + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier(bytes(200 if "identifier" in what else 20), None, None), critical=False
        )
    )  # fmt: skip
    made = builder.sign(own, hashes.SHA256())
    der = made.public_bytes(Encoding.DER)
    if what == "negative serial":
        place = der.index(((1 << 158) + 1).to_bytes(20, "big"))
        der = der[:place] + b"\xc0" + der[place + 1 :]
    if what == "long serial":
        serial = ((1 << 158) + 1).to_bytes(20, "big")
        place = der.index(b"\x02\x14" + serial)
        tbs_and_rest = der[:place] + b"\x02\x1e" + serial + bytes(10) + der[place + 22 :]
        der = _longer(tbs_and_rest, 10)
    return Issued(x509.load_der_x509_certificate(der), own)


def _longer(der: bytes, by: int) -> bytes:
    """The lengths of the two outer SEQUENCEs, each in the form 30 82 xx xx."""
    assert der[0:2] == der[4:6] == b"\x30\x82"
    outer, inner = (int.from_bytes(der[at : at + 2], "big") + by for at in (2, 6))
    return der[:2] + outer.to_bytes(2, "big") + der[4:6] + inner.to_bytes(2, "big") + der[8:]


@pytest.mark.parametrize(
    "octets", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"request":{"credential":[1,2]}}', b'{"request":{"x":1}}']
)
def test_a_message_that_is_none_of_ours_is_refused(octets: bytes) -> None:
    with pytest.raises(WorkerMessageMalformed):
        messages.read_request(messages.read(octets)["request"])
