"""The composition root: an appliance in this process, and what happens when it cannot be put together."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from appliance.clock import SystemClock
from appliance.compose import create_appliance
from appliance.console.client import call
from appliance.errors import HomeLocked, PassphraseWrong
from appliance.home import admin_socket, locked
from appliance.initialise import initialise
from appliance.ports import PortUnavailable
from appliance.running import ask_home
from appliance.settings import Settings, load_settings
from appliance.web.routes import ROUTES
from est.errors import Refusal
from tests.campus import Client, tls_context

PORTS = tuple(f"web.{port}_port=0" for port in ("device", "console", "decision", "pki"))
QUIET = (*PORTS, "radius.port=0", "registrar.announce=false")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("compose") / "home"
    initialise(home, SystemClock(), trust_domain="campus.example", organization="Example")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "home")
    (tmp_path / "home" / "run").mkdir(mode=0o700, exist_ok=True)
    return tmp_path / "home"


def settings_of(home: Path, *more: str) -> Settings:
    return load_settings(home, (*QUIET, *more)).settings


def run(home: Path, do: Callable[[Any], Any], *more: str) -> Any:
    """Starts, does, stops."""

    async def story() -> Any:
        made = create_appliance(settings_of(home, *more), passphrase=(home / "passphrase").read_bytes().strip())
        try:
            await made.prepare()
            await made.start()
            return await asyncio.to_thread(do, made)
        finally:
            await made.stop()

    return asyncio.run(story())


@pytest.mark.slow
def test_every_listener_answers_and_every_route_has_its_endpoint(home: Path) -> None:
    def look(appliance: Any) -> set[str]:
        found = appliance.listeners
        assert Client(found["console"], tls_context()).send("GET", "/readyz").status == 200
        assert Client(found["decision"], tls_context()).send("GET", "/healthz").status == 200
        assert Client(found["device"], tls_context()).send("GET", "/.well-known/est/cacerts").status == 200
        assert Client(found["pki"], None).send("GET", "/crl/agents.crl").status == 200
        assert Client(str(admin_socket(home)), None).send("POST", "/v1/operations/doctor").status == 415
        return set(found)

    assert run(home, look) == {"device", "console", "decision", "pki", "radius", "accounting"}
    assert {route.listener for route in ROUTES} == {"device", "console", "decision", "pki", "admin"}


@pytest.mark.slow
def test_without_a_radius_engine_nobody_listens_for_it(home: Path) -> None:
    assert run(home, lambda appliance: appliance.listeners["radius"], "radius.engine=none") is None


@pytest.mark.slow
def test_a_storm_on_the_decision_port_is_what_spares_the_store_the_decision_log(home: Path) -> None:
    def look(appliance: Any) -> list[bool]:
        (port,) = (one for one in appliance._open if one.admission is not None)
        log, found = appliance.access._log, []
        for port.admission.is_storm in (False, True, False):
            found.append(log.is_storm())
        return found

    assert run(home, look) == [False, True, False]


@pytest.mark.slow
def test_start_and_stop_leave_no_descriptor_thread_or_task(home: Path) -> None:
    run(home, lambda appliance: None)
    gc.collect()
    descriptors, threads = psutil.Process().num_fds(), psutil.Process().num_threads()
    for _ in range(3):
        run(home, lambda appliance: None)
    gc.collect()
    assert psutil.Process().num_fds() <= descriptors
    deadline = time.monotonic() + 10  # a thread that was joined may be on its last steps still, as the system sees it
    while psutil.Process().num_threads() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert psutil.Process().num_threads() <= threads


@pytest.mark.slow
def test_a_taken_port_is_refused_by_name_and_all_others_are_given_back(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortUnavailable, match=f"127.0.0.1:{port} \\(pki\\)"):
            run(home, lambda appliance: None, f"web.pki_port={port}")
    run(home, lambda appliance: None, f"web.pki_port={port}")


@pytest.mark.slow
def test_a_radius_port_that_is_taken_is_a_refusal_too(home: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Refusal):
            run(home, lambda appliance: None, f"radius.port={taken.getsockname()[1]}")


@pytest.mark.slow
def test_what_is_logged_is_forwarded_while_the_appliance_runs_and_secrets_are_not(home: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        to = f"udp://127.0.0.1:{receiver.getsockname()[1]}"

        def act(appliance: Any) -> str:
            def ask(operation: str, **more: Any) -> Any:
                return call(admin_socket(home), operation, more)

            deadline = time.monotonic() + 10
            while ask("access.forwarding")[0]["state"] != "connected":
                assert time.monotonic() < deadline
                time.sleep(0.02)
            ask("nas.add", name="sw-1", address="127.0.0.1", secret="secret-of-the-switch-0123456789")
            host, _, port = appliance.listeners["radius"].rpartition(":")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.bind(("127.0.0.2", 0))
                stranger.sendto(b"\x01\x07\x00\x14" + bytes(16), (host, int(port)))
            message = receiver.recv(65_536).decode()
            (row,) = [one for one in ask("doctor") if one["check"] == "log-forwarding"]
            assert (row["level"], row["message"]) == ("ok", "1 receivers")
            return message

        message = run(home, act, f"access.forward_to={to}")
    assert " campus-appliance - nas-unknown [decision@32473 " in message and "127.0.0.2" in message
    assert "secret-of-the-switch" not in message


@pytest.mark.slow
def test_operations_without_a_running_appliance_hold_the_lock(home: Path) -> None:
    assert ask_home(settings_of(home), "owners.list", {}, passphrase_file=None) == []
    with locked(home), pytest.raises(HomeLocked):
        ask_home(settings_of(home), "owners.list", {}, passphrase_file=None)
    with pytest.raises(PassphraseWrong):
        wrong = home.parent / "wrong"
        wrong.write_text("not the passphrase at all")
        ask_home(settings_of(home), "owners.list", {}, passphrase_file=wrong)
    assert ask_home(settings_of(home), "owners.list", {}, passphrase_file=None) == []


@pytest.mark.slow
def test_operations_do_not_say_that_the_appliance_stopped(home: Path) -> None:
    def events() -> list[str]:
        rows = ask_home(settings_of(home), "audit.list", {"limit": 1000}, passphrase_file=None)
        return [row["event"] for row in rows]

    before = events()
    assert events() == before and "appliance-stopped" not in before
    run(home, lambda appliance: None)
    assert [one for one in events() if one.startswith("appliance-")] == ["appliance-started", "appliance-stopped"]
    assert events()[-1] == "appliance-stopped"


@pytest.mark.slow
def test_two_homes_in_one_process_do_not_know_of_each_other(home: Path, tmp_path: Path) -> None:
    """No module-level state (design, D-16)."""
    other = tmp_path / "other"
    shutil.copytree(home, other)

    async def story() -> None:
        both = [
            create_appliance(settings_of(one), passphrase=(one / "passphrase").read_bytes().strip())
            for one in (home, other)
        ]
        for one in both:
            await one.prepare()
            await one.start()
        await both[0].operations.call("owners.add", {"ref": "alice"})
        assert await both[1].operations.call("owners.list", {}) == []
        assert set(both[0].listeners.values()).isdisjoint(both[1].listeners.values())
        for one in both:
            await one.stop()

    asyncio.run(story())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_is_a_refusal(home: Path) -> None:
    home.chmod(0o500)
    try:
        with pytest.raises(Refusal):
            ask_home(settings_of(home), "owners.add", {"ref": "alice"}, passphrase_file=None)
    finally:
        home.chmod(0o700)
