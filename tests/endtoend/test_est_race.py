"""Sixty-four clients want what one one-time secret gives, and the appliance dies under them: one certificate."""

from __future__ import annotations

import base64
import http.client
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.clock import SystemClock
from appliance.initialise import initialise
from est import csr, transfer
from est.cms import read_certs_only
from tests.campus import UNLIMITED, Answer, Campus
from tests.endtoend.test_crash import SIGNERS

pytestmark = pytest.mark.xdist_group("est-race")  # one campus for the whole module
CLIENTS = 64
ENROLL, CACERTS = "/.well-known/est/simpleenroll", "/.well-known/est/cacerts"


@pytest.fixture(scope="module")
def campus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campus]:
    """Not running."""
    found = Campus(tmp_path_factory.mktemp("race"))
    initialise(
        found.home, SystemClock(), trust_domain="campus.example", organization="Example University",
        assignments=("registrar.announce=false",),
    )  # fmt: skip
    yield found
    found.close()


def race(campus: Campus, bodies: list[bytes], credentials: str, *, kill: bool = False) -> list[Answer | None]:
    """All of them at once, each over its own open connection; None where no answer came."""
    headers = {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}
    barrier = threading.Barrier(len(bodies))
    first = threading.Event()

    def run(body: bytes) -> Answer | None:
        with closing(campus.client()) as client:
            assert client.send("GET", CACERTS).status == 200
            barrier.wait(120)
            try:
                return client.send("POST", ENROLL, body, "application/pkcs10", headers)
            except (OSError, http.client.HTTPException):
                return None
            finally:
                first.set()

    with ThreadPoolExecutor(len(bodies)) as pool:
        running = [pool.submit(run, body) for body in bodies]
        if kill:
            assert first.wait(120)
            campus.kill()
        return [one.result(60) for one in running]


def winners(bodies: list[bytes], answers: list[Answer | None]) -> dict[bytes, bytes]:
    """Who got a certificate, and its answer; it is for the key of whoever got it."""
    found = {body: answer.body for body, answer in zip(bodies, answers, strict=True) if answer and answer.status == 200}
    for body, answer in found.items():
        (certificate,) = read_certs_only(transfer.read_base64(answer))
        assert certificate.public_key() == csr.read(base64.b64decode(body)).public_key
    return found


@pytest.mark.req("E-49", "E-126")
@pytest.mark.parametrize(
    "point",
    [
        "first answer",
        "issue-signed",
        pytest.param("issue-pending", marks=pytest.mark.slow),
        pytest.param("issue-issued", marks=pytest.mark.slow),
    ],
)
def test_of_64_clients_that_race_twice_for_one_secret_across_a_kill_one_gets_one_certificate(
    campus: Campus, point: str
) -> None:
    name = point.replace(" ", "-")
    is_plain = point == "first answer"
    bodies = [
        base64.b64encode(csr.build(subject=x509.Name([]), key=ec.generate_private_key(ec.SECP256R1())))
        for _ in range(CLIENTS)
    ]
    campus.start(*UNLIMITED, failpoint="" if is_plain else f"{point}:{SIGNERS + 1}")
    credentials = str(campus.ask("est.secret", name=name)["credentials"])
    before = race(campus, bodies, credentials, kill=is_plain)
    assert campus.process is not None and campus.process.popen.wait(20) == -9
    assert is_plain or Counter(before) == {None: CLIENTS}

    campus.start(*UNLIMITED)
    after = race(campus, bodies, credentials)
    assert Counter(answer.status if answer else 0 for answer in after) == {200: 1, 401: CLIENTS - 1}
    # whoever got it before the end, if somebody did, is the one who gets it after, and the same one
    assert {**winners(bodies, after), **winners(bodies, before)} == winners(bodies, after)

    (proxy,) = [row for row in campus.ask("proxies.list") if row["name"] == name]
    assert campus.stop() == 0
    with closing(sqlite3.connect(campus.home / "appliance.db")) as database:
        issued = "SELECT count(*) FROM certificates WHERE subject_id = ? AND state = 'issued'"
        assert database.execute(issued, (proxy["identifier"],)).fetchone() == (1,)
        told = "SELECT count(*) FROM audit WHERE body LIKE ? AND body LIKE ?"
        for event in ("est-secret-spent", "ldevid-issued"):
            found = database.execute(told, (f'%"{event}"%', f"%{proxy['identifier']}%")).fetchone()
            assert found == (1,), event
