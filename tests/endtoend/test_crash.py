"""kill -9 in the middle of issuing: no client holds what is unknown, nothing is issued twice, no help is needed."""

from __future__ import annotations

import hashlib
import http.client
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.store.certificates import serial_octets
from est import csr, transfer
from est.cms import read_certs_only
from tests.campus import UNLIMITED, Ask, Campus, Client, Crowd, OwnerHost, leaf_of, new_ask
from tests.support import stretched

SIGNERS = 3  # every start issues certificates to its OCSP signers first
ISSUANCES = 50
THREADS = 8
READY_SECONDS = 5.0
NO_ANSWER = (OSError, http.client.HTTPException)
RETRY_ANSWERS = {201, 202, 409}


@dataclass
class Story:
    """Fifty agents and an appliance that dies under them."""

    campus: Campus
    owner: OwnerHost
    up: threading.Event = field(default_factory=threading.Event)
    held: dict[str, list[x509.Certificate]] = field(default_factory=dict)
    retried: Counter[int] = field(default_factory=Counter)
    acknowledged: int = 0

    def client(self) -> Client:
        """A connection to where the appliance listens now."""
        assert self.up.wait(120)
        return self.campus.as_proxy()

    def patiently(self, do: Callable[[Client], Any]) -> Any:
        """Does one thing; whatever dies with the appliance is done again."""
        while True:
            client = self.client()
            try:
                return do(client)
            except NO_ANSWER:
                time.sleep(0.02)
            finally:
                client.close()

    def agent(self, _: int) -> None:
        """One agent gets its certificate, however often the server goes away meanwhile."""
        ask: Ask = self.patiently(lambda client: new_ask(self.campus, client, self.owner))
        is_retry = False
        got: list[x509.Certificate] = []
        while not got:
            client = self.client()
            try:
                answer = ask.submit(client)
                if is_retry:
                    self.retried[answer.status] += 1
                assert answer.status in RETRY_ANSWERS, (answer.status, answer.body)
                if answer.status == 409:
                    assert answer.reason == "approval-spent", answer.body
                    answer = ask.status(client)
                    assert answer.status == 200, answer.body
                if answer.status in (200, 201):
                    got.append(leaf_of(answer.json))
                    self.acknowledged += 1
            except NO_ANSWER:
                is_retry = True
                time.sleep(0.02)
            finally:
                client.close()
        # whoever asks again gets the same
        again = self.patiently(ask.status)
        assert again.status == 200
        got.append(leaf_of(again.json))
        self.held[ask.sub] = got

    def watch(self, kill: Callable[[], bool], failpoints: list[str]) -> list[float]:
        """Waits for deaths and starts again; answers what each start cost, seconds of processor time."""
        took = []
        while True:
            process = self.campus.process
            assert process is not None
            if process.popen.poll() is not None or kill():
                if process.popen.poll() is None:
                    self.campus.kill()
                self.up.clear()
                took.append(self.campus.start(*UNLIMITED, failpoint=failpoints.pop(0) if failpoints else ""))
                self.up.set()
            if not self.crowd.is_busy:
                return took
            time.sleep(0.01)

    def run(self, *, failpoints: list[str] = [], kill: Callable[[], bool] = lambda: False) -> list[float]:  # noqa: B006
        self.campus.start(*UNLIMITED, failpoint=failpoints.pop(0) if failpoints else "")
        self.up.set()
        self.crowd = Crowd(THREADS, range(ISSUANCES), self.agent)
        took = self.watch(kill, failpoints)
        self.crowd.join()
        return took


def story_of(campus: Campus) -> Story:
    campus.start(*UNLIMITED)
    owner = campus.owner()
    campus.stop()
    return Story(campus, owner)


def check_books(story: Story) -> None:
    """What clients hold against the database file and the audit log, after the appliance has stopped."""
    campus = story.campus
    verified = campus.ask("audit.verify")
    assert verified["ok"], verified
    assert campus.stop() == 0
    with closing(sqlite3.connect(campus.home / "appliance.db")) as database:
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM certificates").fetchall()
        audited = {one["body"] for one in database.execute("SELECT body FROM audit")}
        approvals = database.execute("SELECT value FROM spent WHERE kind LIKE '%approval%'").fetchall()
    by_digest = {row["cert_sha256"]: row for row in rows if row["cert_sha256"]}
    for agent, certificates in story.held.items():
        digests = {hashlib.sha256(one.public_bytes(Encoding.DER)).digest() for one in certificates}
        assert len(digests) == 1, "asked twice, got two"
        (digest,) = digests
        row = by_digest.get(digest)
        assert row is not None and row["state"] == "issued", agent
        assert any(digest.hex() in body and "dual-identity-issued" in body for body in audited), agent
    serials = [(row["issuer_aki"], row["serial"]) for row in rows]
    assert len(set(serials)) == len(serials)
    issued = Counter(row["agent_id"] for row in rows if row["profile"] == "agent" and row["state"] == "issued")
    assert set(issued) == set(story.held) and set(issued.values()) == {1}
    assert len({row["value"] for row in approvals}) == len(approvals) == ISSUANCES
    told = Counter(body for body in audited if "dual-identity-issued" in body)
    assert len(told) == len(story.held) == ISSUANCES


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.req("A-98", "A-100", "A-112")
@pytest.mark.parametrize("point", ["issue-pending", "issue-signed", "issue-issued"])
def test_death_at_each_step_of_issuing(own_campus: Callable[[], Campus], point: str) -> None:
    story = story_of(own_campus())
    took = story.run(failpoints=[f"{point}:{SIGNERS + count}" for count in (1, 17, 9)])
    assert len(took) == 3 and max(took) <= stretched(READY_SECONDS), took
    check_books(story)
    assert set(story.retried) <= RETRY_ANSWERS and sum(story.retried.values()) > 0, story.retried


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.req("A-98", "A-100", "A-112")
def test_death_at_any_moment(own_campus: Callable[[], Campus]) -> None:
    chance = random.Random(20260101)
    story = story_of(own_campus())
    marks = [3, 11, 19, 27, 35, 43]

    def kill() -> bool:
        if not (marks and story.up.is_set() and story.acknowledged >= marks[0]):
            return False
        marks.pop(0)
        time.sleep(chance.uniform(0.0, 0.06))
        return True

    took = story.run(kill=kill)
    assert len(took) == 6 and max(took) <= stretched(READY_SECONDS), took
    check_books(story)


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.req("E-126")
def test_renewals_of_the_proxy_survive_too(own_campus: Callable[[], Campus]) -> None:
    """simplereenroll: whoever repeats the request after a lost answer gets the certificate that was made then."""
    story = story_of(own_campus())
    campus = story.campus
    old = campus.ldevid
    san = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    held: list[x509.Certificate] = []

    def renew(_: int) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        body = transfer.write_base64(csr.build(subject=old.subject, key=key, san=san), wrapped=None)
        answer = story.patiently(
            lambda client: client.send("POST", "/.well-known/est/simplereenroll", body, "application/pkcs10")
        )
        assert answer.status == 200, answer
        held.append(read_certs_only(transfer.read_base64(answer.body))[0])

    campus.start(*UNLIMITED, failpoint=f"issue-signed:{SIGNERS + 11}")
    story.up.set()
    story.crowd = Crowd(THREADS, range(ISSUANCES), renew)
    took = story.watch(lambda: False, ["issue-issued:11", "issue-pending:11"])
    story.crowd.join()
    assert len(took) == 3 and max(took) <= stretched(READY_SECONDS)
    assert campus.ask("audit.verify")["ok"]
    log = "\n".join(campus.ask("audit.export"))
    assert campus.stop() == 0
    with closing(sqlite3.connect(campus.home / "appliance.db")) as database:
        known = dict(database.execute("SELECT serial, state FROM certificates").fetchall())
        twice = database.execute("SELECT serial FROM certificates GROUP BY issuer_aki, serial HAVING count(*) > 1")
        assert twice.fetchall() == []
        finished = database.execute(
            "SELECT csr_sha256, count(*) FROM certificates WHERE profile = 'ldevid' AND state = 'issued'"
            " AND csr_sha256 IS NOT NULL GROUP BY csr_sha256"
        )
        assert {count for _, count in finished} == {1}
    assert len(held) == ISSUANCES == len({one.serial_number for one in held})
    for one in held:
        assert known[serial_octets(one.serial_number)] == "issued"
        assert hashlib.sha256(one.public_bytes(Encoding.DER)).hexdigest() in log
