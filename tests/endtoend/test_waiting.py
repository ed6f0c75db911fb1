"""A pledge that waits for an administrator, over kill -9 and restarts, with a real MASA: asked once, answered once."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.clock import SystemClock
from appliance.initialise import initialise
from brski import Pledge
from est.chains import TrustAnchors
from est.exchange import Call
from est.signer import KeySigner
from tests.campus import UNLIMITED, Answer, Campus, Client, run_here

SERIAL = "acme-0001"
MANUAL = "registrar.admission=manual"


class Waiting:
    """One device with one request, whatever becomes of the appliance."""

    def __init__(self, folder: Path) -> None:
        self.campus = Campus(folder)
        initialise(
            self.campus.home, SystemClock(), trust_domain="campus.example", organization="Example University",
            assignments=("registrar.announce=false",),
        )  # fmt: skip
        self.campus.start(*UNLIMITED, MANUAL)
        self.masa = self.campus.masa(SERIAL)
        device = self.campus.device(SERIAL)
        self.files = (device / "idevid.pem", device / "idevid.key.pem")
        chain = x509.load_pem_x509_certificates(self.files[0].read_bytes())
        key = load_pem_private_key(self.files[1].read_bytes(), None)
        anchors = TrustAnchors(x509.load_pem_x509_certificates((device / "masa-anchors.pem").read_bytes()))
        registrar = self.campus.certificates_of("registrar")[0]
        pledge = Pledge(KeySigner(key), chain, anchors)  # type: ignore[arg-type]
        self.call: Call = pledge.voucher_request(registrar, nonce=bytes(range(16)), now=datetime.now(UTC))

    def ask(self) -> Answer:
        """The very same request on a new connection."""
        client = self.campus.client("device", *self.files)
        try:
            return client.send("POST", self.call.path, self.call.body, self.call.media_type, self.call.headers)
        finally:
            client.close()

    def ask_twice_at_once(self) -> list[Answer]:
        found: list[Answer] = []
        threads = [threading.Thread(target=lambda: found.append(self.ask())) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return found

    def die(self, *assignments: str, failpoint: str = "") -> None:
        self.campus.kill()
        self.campus.start(*UNLIMITED, *assignments, failpoint=failpoint)

    def asked(self) -> int:
        """How many vouchers the MASA issued, by its own book."""
        url = next(row["masa_url"] for row in self.campus.ask("manufacturers.list"))
        client = Client(url.removeprefix("https://"), self.campus.client("device").context)
        try:
            rows = json.loads(client.send("GET", "/lab/requests").body)
        finally:
            client.close()
        return sum(1 for row in rows if row["path"].endswith("requestvoucher") and row["status"] == 200)


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    made = Waiting(tmp_path)
    yield made
    made.campus.close()


@pytest.mark.lab
@pytest.mark.req("T-15", "B-222", "B-234")
def test_one_request_to_the_masa_over_kill_9_and_two_at_once(waiting: Waiting) -> None:
    for _ in range(3):
        assert [answer.status for answer in waiting.ask_twice_at_once()] == [202, 202]
        waiting.die(MANUAL)
    answer = waiting.ask()
    assert answer.status == 202 and int(answer.headers["retry-after"]) >= 1
    assert waiting.asked() == 0
    waiting.campus.ask("pledges.admit", serial=SERIAL)
    waiting.die(MANUAL)
    first, second = waiting.ask_twice_at_once()
    assert (first.status, second.status) == (200, 200) and first.body == second.body
    waiting.die(MANUAL)
    assert [answer.body for answer in waiting.ask_twice_at_once()] == [first.body] * 2
    assert waiting.asked() == 1
    row = waiting.campus.ask("pledges.show", serial=SERIAL)
    assert row["state"] == "voucher-issued"
    assert [one["step"] for one in row["timeline"] if one["step"] == "masa-asked"] == ["masa-asked"]
    shown = run_here("pledges", "show", SERIAL, "--home", waiting.campus.home).out
    for words in ("bootstrap 1", "held", "asked-again", "voucher-granted", "the pledge's voucher-request", "pinned "):
        assert words in shown, shown


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.req("T-15", "B-234")
@pytest.mark.parametrize(
    ("failpoint", "issued"),
    # whoever dies after the MASA issued and before it knows of that has to ask once more
    [("voucher-requested", 1), ("masa-answered", 2), ("voucher-kept", 1)],
)
def test_a_death_around_the_masas_answer_heals_by_itself_and_the_history_stays_good(
    waiting: Waiting, failpoint: str, issued: int
) -> None:
    waiting.die(failpoint=failpoint)
    with pytest.raises((OSError, http.client.HTTPException)):
        waiting.ask()
    assert waiting.campus.process is not None
    waiting.campus.process.popen.wait(60)
    waiting.campus.start(*UNLIMITED)
    first = waiting.ask()
    assert first.status == 200 and waiting.ask().body == first.body
    assert waiting.asked() == issued
    client = waiting.campus.client("device", *waiting.files)
    status = {"version": 1, "status": True}
    answer = client.send("POST", "/.well-known/brski/voucher_status", json.dumps(status).encode(), "application/json")
    client.close()
    assert answer.status == 200
    row = waiting.campus.ask("pledges.show", serial=SERIAL)
    assert (row["state"], row["audit_verdict"]) == ("audit-passed", "accepted")
