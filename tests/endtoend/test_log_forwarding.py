"""Decisions at a log receiver while the appliance is killed and the receiver goes away: none missing, few twice."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.campus import NAS_SECRET, Campus
from tests.endtoend.test_network_side import log_in_with, request_credential
from tests.interop.radius_tools import free_tcp_port

pytestmark = pytest.mark.lab


class Receiver(socketserver.StreamRequestHandler):
    """Reads messages by octet counting (RFC 6587)."""

    def handle(self) -> None:
        self.server.open.append(self.request)  # type: ignore[attr-defined]
        while (length := self._length()) is not None:
            text = self.rfile.read(length).decode()
            found = re.search(r' \[decision@32473 id="(\d+)"', text)
            assert found is not None, text
            self.server.taken.append((int(found[1]), text))  # type: ignore[attr-defined]

    def _length(self) -> int | None:
        digits = b""
        while (octet := self.rfile.read(1)) not in (b"", b" "):
            digits += octet
        return int(digits) if octet else None


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@contextmanager
def receiver(port: int, taken: list[tuple[int, str]]) -> Iterator[None]:
    with Server(("127.0.0.1", port), Receiver) as server:
        server.taken, server.open = taken, []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield
        server.shutdown()
        thread.join()
        for connection in server.open:  # type: ignore[attr-defined]
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def test_a_receiver_gets_every_decision_over_kills_and_outages(template: Campus, tmp_path: Path) -> None:
    campus, port = template.copy(tmp_path / "campus"), free_tcp_port()
    taken: list[tuple[int, str]] = []
    settings = (f"access.forward_to=tcp://127.0.0.1:{port}",)

    def log_in(agent: Path, times: int) -> None:
        for _ in range(times):
            assert log_in_with(agent, campus.listeners["radius"]).vlan == "20"

    def until_all(least: int) -> None:
        rows = campus.cli("access", "log", "--limit", "1000").json  # written before they are shown
        assert len(rows) >= least
        wanted, deadline = {row["id"] for row in rows}, time.monotonic() + 15
        while not {key for key, _ in taken} >= wanted:
            assert time.monotonic() < deadline, (sorted(wanted), sorted(key for key, _ in taken))
            time.sleep(0.1)

    def forwarding() -> dict[str, object]:
        (row,) = campus.cli("access", "forwarding").json
        return dict(row)

    with closing(campus):
        with receiver(port, taken):
            campus.start(*settings)
            campus.start_proxy()
            agent = request_credential(campus, tmp_path / "agent")
            log_in(agent, 5)
            until_all(5)
            deadline = time.monotonic() + 20
            while forwarding()["sent"] != 5:  # what is not certain yet would come again
                assert time.monotonic() < deadline
                time.sleep(0.1)
        log_in(agent, 5)  # nobody takes them
        deadline = time.monotonic() + 10
        while forwarding()["state"] != "away" or forwarding()["behind"] != 5:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        campus.kill()
        campus.start(*settings)
        with receiver(port, taken):
            log_in(agent, 5)
            until_all(15)
            campus.kill()
            campus.start(*settings)
            log_in(agent, 5)
            until_all(20)
            status = forwarding()
            deadline = time.monotonic() + 20
            while status["behind"]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
                status = forwarding()
        assert status["dropped"] == 0
        keys = [key for key, _ in taken]
        assert len(keys) <= 20 + 10  # those of the last seconds before a kill
        assert not any(NAS_SECRET in text for _, text in taken)
