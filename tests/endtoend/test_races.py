"""Sixty-four clients race for one thing: one approval, one nonce, one challenge; one gets a credential, always.

Half of them ask the appliance, half a worker of its identity server: two processes on one database file. Some of the
races go over a kill -9 of both and a new start. Ten thousand at the store alone: tests/bench/races.py.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import approval, jws
from appliance.binding import request as requests
from est.signer import KeySigner
from tests.campus import UNLIMITED, Answer, Ask, Campus, Client, OwnerHost, new_ask, random_id
from tests.endtoend.test_server_mediated import Desk

CLIENTS = 64
CHOSEN = (
    *UNLIMITED, "web.identity_rate=100000", "web.identity_burst=1000000", "identity.workers=1", "web.identity_port=0",
)  # fmt: skip
PROCESSES = ("device", "identity")


class Field:
    """Sixty-four clients with connections that they keep, and what they race for."""

    def __init__(self, campus: Campus) -> None:
        self.campus = campus
        self.desk = Desk.register(campus)
        self.owner: OwnerHost = self.desk.owner
        self.pool = ThreadPoolExecutor(CLIENTS)
        self.start()

    def start(self) -> None:
        ldevid = self.campus.state / "ldevid.pem", self.campus.state / "ldevid.key.pem"
        self.clients = [self.campus.client(PROCESSES[at % 2], *ldevid) for at in range(CLIENTS)]
        self.tools = [self.desk.client(PROCESSES[at % 2]) for at in range(CLIENTS)]

    def restart(self) -> None:
        for one in (*self.clients, *self.tools):
            one.close()
        self.campus.kill()
        self.campus.start(*CHOSEN)
        self.start()

    def race(self, do: Callable[[int], Answer]) -> list[Answer]:
        """All at the same moment, each over its own connection."""
        barrier = threading.Barrier(CLIENTS)

        def run(at: int) -> Answer:
            barrier.wait(120)
            return do(at)

        return list(self.pool.map(run, range(CLIENTS)))

    def ask(self, **changed: object) -> Ask:
        return new_ask(self.campus, self.clients[0], self.owner, **changed)

    def check(self, answers: list[Answer], sub: str, statuses: set[int]) -> None:
        """One winner; nobody else got a credential, or something else than a reason."""
        told = sorted(answer.status for answer in answers)
        assert told.count(201) == 1, told
        assert set(told) <= {201, *statuses}, {(answer.status, answer.reason) for answer in answers}
        credentials = self.campus.ask("agents.show", agent=sub)["credentials"]
        assert [one["state"] for one in credentials] == ["issued"]


def one_approval(field: Field, *, restart: bool) -> None:
    """The same approved request from everybody."""
    ask = field.ask()
    answers = field.race(lambda at: ask.submit(field.clients[at]))
    field.check(answers, ask.sub, {202, 409})
    if restart:
        field.restart()
        again = field.race(lambda at: ask.submit(field.clients[at]))
        assert {(one.status, one.reason) for one in again} == {(409, "approval-spent")}
        field.check(answers, ask.sub, {202, 409})


def one_nonce(field: Field, *, restart: bool) -> None:
    """Everybody makes another request with one nonce, each well approved."""
    first = field.ask()
    asked, now = first.request, int(time.time())
    asks = []
    for _ in range(CLIENTS):
        token = requests.seal(
            KeySigner(first.key), sub=first.sub, owner=field.owner.identifier, aud=asked.aud, iat=now, exp=now + 3600,
            jti=random_id(), nonce=asked.nonce, profiles=("x509",), ttl=3600, csr_der=first.csr_der,
        )  # fmt: skip
        yes = approval.seal(
            field.owner.signer, requests.unseal(token), iss=field.owner.identifier, iat=now, exp=now + 3600,
            jti=random_id(),
        )  # fmt: skip
        asks.append(replace(first, token=token, approvals=(yes,)))
    answers = field.race(lambda at: asks[at].submit(field.clients[at]))
    field.check(answers, first.sub, {403, 409})
    assert {one.reason for one in answers if one.status != 201} <= {"nonce-spent", "conflict", "key-reuse"}
    if restart:
        field.restart()
        again = field.race(lambda at: asks[at].submit(field.clients[at]))
        assert {one.reason for one in again} <= {"nonce-spent", "approval-spent"}
        field.check(answers, first.sub, {403, 409})


def one_challenge(field: Field, *, restart: bool) -> None:
    """Sixty-four answers to one question; then everybody wants the credential."""
    key = ec.generate_private_key(ec.SECP256R1())
    field.campus.ask("agents.add", owner="alice", proxy=field.campus.proxy_id, jkt=jws.jkt(key.public_key()))
    ask = replace(field.ask(key=key, model="server-mediated", exp=int(time.time()) + 900), approvals=())
    assert ask.submit(field.clients[0]).status == 202
    asked = field.desk.asked()
    tokens = [field.desk.yes(ask, asked) for _ in range(CLIENTS)]
    said = field.race(lambda at: answer_with(field, at, asked.jti, tokens[at]))
    assert sorted(one.status for one in said) == [200] + [409] * (CLIENTS - 1), {one.reason for one in said}
    if restart:
        field.restart()
    answers = field.race(lambda at: ask.submit(field.clients[at]))
    field.check(answers, ask.sub, {202, 409})


def answer_with(field: Field, at: int, challenge: str, token: str) -> Answer:
    body = b'{"approval": "' + token.encode("ascii") + b'"}'
    client: Client = field.tools[at]
    return client.send("POST", f"/v1/owners/self/challenges/{challenge}", body, "application/json")


RACES = (one_approval, one_nonce, one_challenge)


def run_races(campus: Campus, count: int, restarts: int) -> None:
    campus.start(*CHOSEN)
    field = Field(campus)
    for at in range(count):
        RACES[at % len(RACES)](field, restart=at < restarts)
    field.pool.shutdown()
    assert campus.ask("audit.verify")["ok"]


@pytest.mark.lab
@pytest.mark.req("A-98", "A-100")
def test_sixty_four_clients_race_for_one_thing_and_one_wins(own_campus: Callable[[], Campus]) -> None:
    run_races(own_campus(), 6, restarts=3)


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.req("A-98", "A-100")
def test_races_over_http_have_one_winner_each_also_over_restarts(own_campus: Callable[[], Campus]) -> None:
    """RACES=150 in the environment makes it the long run, of two minutes."""
    run_races(own_campus(), int(os.environ.get("RACES", "18")), restarts=3)
