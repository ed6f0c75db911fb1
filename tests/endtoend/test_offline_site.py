"""An administrator prepares a site on the command line, and a device comes when its MASA cannot be reached."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from appliance.clock import SystemClock
from appliance.initialise import initialise
from brski import Pledge, PledgePolicy
from brski.masa import MasaPolicy
from est import chains
from lab import factory as makers
from lab.mock_masa import MockMasa
from tests.campus import UNLIMITED, Campus, run_here

SERIAL = "acme-0001"
T = TypeVar("T")


class MasaThread:
    """A MASA that knows one domain's registrars, on a loop of its own, until it goes away."""

    def __init__(self, folder: Path, policy: MasaPolicy) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._masa = self._run(self._make(folder, policy))
        self.port: int = self._run(self._masa.start())

    async def _make(self, folder: Path, policy: MasaPolicy) -> MockMasa:
        return MockMasa(folder, policy=policy)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._run(self._masa.stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()


@pytest.fixture
def campus(tmp_path: Path) -> Iterator[Campus]:
    made = Campus(tmp_path)
    initialise(
        made.home, SystemClock(), trust_domain="campus.example", organization="Example University",
        assignments=("registrar.announce=false",),
    )  # fmt: skip
    yield made
    made.close()


@pytest.mark.lab
@pytest.mark.req("B-270", "B-285", "B-306")
def test_vouchers_fetched_on_the_command_line_serve_when_the_masa_is_gone(campus: Campus, tmp_path: Path) -> None:
    campus.start(*UNLIMITED, "registrar.prefetch=masa-silent", "registrar.admission=listed", "registrar.masa_seconds=2")
    now, folder = datetime.now(UTC), tmp_path / "makers" / "acme"
    maker = makers.load_or_create(folder, now=now)
    (root,) = campus.certificates_of("root")
    masa = MasaThread(folder, MasaPolicy(registrar_anchors=chains.TrustAnchors([root])))
    try:
        device = maker.make_device(SERIAL, masa=f"127.0.0.1:{masa.port}", now=now - timedelta(minutes=5))
        makers.save_device(maker, folder, SERIAL, device)
        home = folder / "manufacturer"
        added = campus.cli(
            "manufacturers", "add", home / "ca.pem", "--name", "acme", "--masa", f"https://127.0.0.1:{masa.port}",
            "--masa-anchors", home / "masa-tls-ca.pem",
        )  # fmt: skip
        assert added.status == 0, added.err
        key = (chains.ski_of(maker.device_ca.certificate) or b"").hex()
        file = tmp_path / "devices.csv"
        file.write_text(f"manufacturer,serial,idevid-issuer\nacme,{SERIAL},{key}\nacme,never-sold,{key}\n")
        assert campus.cli("pledges", "import", file).json["counts"]["added"] == 2
        rows = campus.cli("pledges", "prefetch", "--manufacturer", "acme").json
        assert [(row["serial"], row["outcome"], row["reason"]) for row in rows] == [
            (SERIAL, "fetched", ""), ("never-sold", "failed", "masa-refused"),
        ]  # fmt: skip
        text = run_here("pledges", "prefetch", "--manufacturer", "acme", "--home", campus.home).out
        assert "never-sold" in text and SERIAL not in text and "was sold to you" in text
    finally:
        masa.stop()
    (row,) = campus.cli("pledges", "vouchers").json
    assert (row["serial"], row["state"]) == (SERIAL, "ready")

    registrar = campus.certificates_of("registrar")
    pledge = Pledge(device.signer, device.chain, maker.masa_anchors, PledgePolicy(accept_nonceless=True))
    call = pledge.voucher_request(registrar[0], nonce=bytes(range(16)), now=datetime.now(UTC))
    files = campus.device(SERIAL)
    client = campus.client("device", files / "idevid.pem", files / "idevid.key.pem")
    answer = client.send("POST", call.path, call.body, call.media_type, call.headers)
    assert answer.status == 200, answer
    status = pledge.voucher_status(True)
    assert client.send("POST", status.path, status.body, status.media_type).status == 200
    client.close()
    shown = run_here("pledges", "show", SERIAL, "--home", campus.home).out
    for words in ("masa-failed", "masa-unreachable", "fetched ahead", "audit-passed", "expires_on"):
        assert words in shown, shown
    assert campus.cli("pledges", "vouchers").json[0]["state"] == "handed-out"
    events = [entry["event"] for entry in campus.cli("audit", "list", "--limit", "200").json]
    assert events.count("voucher-fetched-ahead") == 3 and "voucher-issued" in events
