"""Foreign clients whose request waits for a person: 202 again and again over a restart, then certificate or no."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509

from tests.campus import Campus
from tests.interop.est_clients import CLIENTS, Foreign, Site

pytestmark = [pytest.mark.interop, pytest.mark.lab, pytest.mark.xdist_group("est-clients")]


@dataclass
class Door(Campus):
    """The address that a client knows; behind it the appliance may go away and come back elsewhere."""

    address: str = ""
    opened: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.listeners = {"device": self.address}


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def patient_connection(campus: Campus) -> socket.socket:
    for _ in range(300):
        host, _, port = campus.listeners["device"].rpartition(":")
        with suppress(OSError):
            return socket.create_connection((host, int(port)))
        time.sleep(0.1)
    raise TimeoutError("the appliance did not come back")


@contextmanager
def door_to(campus: Campus) -> Iterator[Door]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        door = Door(campus.folder, address=f"127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            with suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    door.opened += 1
                    far = patient_connection(campus)
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield door
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(35)


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 40
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.req("E-130", "E-131", "E-132", "E-134", "E-135")
@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("answer", ["approve", "deny"])
def test_a_client_waits_over_a_restart_until_a_person_decides(kind: type[Foreign], answer: str, tmp_path: Path) -> None:
    kind.require()
    site = Site.start(tmp_path / "site", "est.approval=manual", "est.approval_retry_seconds=1")
    key, csr, got = tmp_path / "key.pem", tmp_path / "csr.der", tmp_path / "certificate.pem"
    try:
        with (
            door_to(site.campus) as door,
            closing(kind(replace(site, campus=door), tmp_path)) as client,
            ThreadPoolExecutor(1) as pool,
        ):
            client.request("small", key, csr)
            enrolling = pool.submit(client.enroll, "1.2", csr, site.credentials("waiting"), got)
            wait_until(lambda: site.campus.ask("est.pending"))
            site.restart()
            seen = door.opened
            wait_until(lambda: door.opened >= seen + 3)  # so that two were answered
            (row,) = site.campus.ask("est.pending")
            assert row["state"] == "pending" and not enrolling.done()
            if answer == "approve":
                site.campus.ask("est.approve", id=row["id"])
                assert enrolling.result(40) == "1.2"
                certificate = x509.load_pem_x509_certificate(got.read_bytes())
                assert certificate.public_key() == x509.load_der_x509_csr(csr.read_bytes()).public_key()
            else:
                site.campus.ask("est.deny", id=row["id"], reason="not in this building")
                with pytest.raises(AssertionError, match="403"):
                    enrolling.result(40)
    finally:
        site.campus.close()
