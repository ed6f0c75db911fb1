"""One process per home; the command line asks it while it runs; SIGTERM loses nothing that was answered."""

from __future__ import annotations

import http.client
import json
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from appliance.store.certificates import serial_octets
from tests.campus import UNLIMITED, Campus, Client, Crowd, environment, leaf_of, new_ask, run_here
from tests.support import stretched

QUESTIONS: tuple[tuple[str, ...], ...] = (
    ("owners", "list"), ("manufacturers", "list"), ("pledges", "list"), ("pledges", "show", "acme-0001"),
    ("proxies", "list"), ("agents", "list"), ("policy", "show"), ("nas", "list"), ("access", "log"),
    ("audit", "verify"), ("audit", "list", "--event", "owner-added"),
    ("policy", "explain", "--serial", "1234", "--issuer", "agents"),
)  # fmt: skip
REFUSALS: tuple[tuple[str, ...], ...] = (
    ("owners", "suspend", "nobody"), ("pledges", "show", "no-such-device"), ("agents", "show", "nonsense"),
    ("policy", "explain", "--serial", "zz"), ("nas", "remove", "nowhere"),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.lab
def test_the_command_line_says_the_same_whether_or_not_the_appliance_runs(own_campus: Callable[[], Campus]) -> None:
    campus = own_campus()

    def ask() -> tuple[dict[str, object], dict[str, tuple[int, str]]]:
        answers = {" ".join(words): campus.cli(*words) for words in QUESTIONS}
        assert {name: one.err for name, one in answers.items() if one.status} == {}
        refusals = {" ".join(words): campus.cli(*words) for words in REFUSALS}
        return (
            {name: one.json for name, one in answers.items()},
            {name: (one.status, one.err) for name, one in refusals.items()},
        )

    stopped, refused_stopped = ask()
    campus.start()
    running, refused_running = ask()
    head = "audit verify"
    assert stopped.pop(head)["ok"] and running.pop(head)["ok"]  # type: ignore[index]
    assert stopped == running
    assert refused_stopped == refused_running
    for status, err in refused_running.values():
        assert status == 1
        assert err.startswith("appliance: ") and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.lab
@pytest.mark.slow
def test_a_second_process_on_a_home_is_refused_in_one_line(own_campus: Callable[[], Campus]) -> None:
    campus = own_campus()
    campus.start()
    command = [str(part) for part in campus.run_command()]
    second = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240, check=False)
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == f"appliance: home-locked: another process runs on {campus.home}\n"
    assert campus.ask("owners.list")
    assert campus.stop() == 0
    assert not (campus.home / "run" / "admin.sock").exists()
    campus.start()
    assert campus.ask("owners.list")


@pytest.mark.lab
def test_a_home_in_use_by_one_command_is_refused_to_another_in_one_line(own_campus: Callable[[], Campus]) -> None:
    """The lock is held, yet nobody answers on the socket: an operation of another process is under way."""
    import fcntl

    campus = own_campus()
    (campus.home / "run").mkdir(exist_ok=True)
    with (campus.home / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = campus.cli("owners", "list")
    assert found.status == 1 and found.err.count("\n") == 1 and "appliance-unreachable" in found.err


@pytest.mark.lab
@pytest.mark.slow
def test_a_socket_left_by_a_killed_process_is_no_obstacle(own_campus: Callable[[], Campus]) -> None:
    campus = own_campus()
    campus.start()
    campus.kill()
    assert (campus.home / "run" / "admin.sock").exists()
    assert campus.cli("owners", "list").status == 0
    assert campus.start() <= 5.0
    assert campus.ask("audit.verify")["ok"]


@pytest.mark.lab
@pytest.mark.slow
def test_a_taken_port_is_one_line_and_leaves_nothing_open(own_campus: Callable[[], Campus]) -> None:
    campus, other = own_campus(), own_campus()
    campus.start()
    taken = campus.listeners["pki"].rpartition(":")[2]
    command = [str(part) for part in other.run_command(f"web.pki_port={taken}")]
    found = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240, check=False)
    lines = [line for line in found.stderr.splitlines() if line.startswith("appliance: ")]
    assert found.returncode == 1 and found.stdout == "" and "Traceback" not in found.stderr
    assert len(lines) == 1 and "port-unavailable" in lines[0] and taken in lines[0]
    other.start()


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.parametrize("rest", [0.0, 0.03, 0.11])
def test_sigterm_under_load_loses_no_answer(own_campus: Callable[[], Campus], rest: float) -> None:
    """Whoever was told 201 is in the books; whoever was not is refused or cut off, and may come again."""
    campus = own_campus()
    campus.start(*UNLIMITED)
    owner, told, cut = campus.owner(), [], []
    enough = threading.Event()

    def agent(_: int) -> None:
        client = campus.as_proxy()
        try:
            answer = new_ask(campus, client, owner).submit(client)
        except (OSError, http.client.HTTPException, AssertionError) as ended:
            cut.append(ended)
            return
        finally:
            client.close()
        if answer.status == 201:
            told.append(leaf_of(answer.json))
            if len(told) >= 8:
                enough.set()
        else:
            cut.append(answer)

    crowd = Crowd(8, range(60), agent)
    assert enough.wait(120)
    time.sleep(rest)
    begun = time.monotonic()
    assert campus.stop() == 0
    assert time.monotonic() - begun < stretched(12)
    crowd.join()
    assert len(told) >= 8 and cut
    with closing(sqlite3.connect(campus.home / "appliance.db")) as database:
        states = dict(database.execute("SELECT serial, state FROM certificates").fetchall())
        last = database.execute("SELECT event FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    assert {states[serial_octets(one.serial_number)] for one in told} == {"issued"}
    assert last == ("appliance-stopped",), "its last word came before its last act"
    assert campus.cli("audit", "verify").json["ok"]
    assert "Traceback" not in campus.log()


@pytest.mark.lab
def test_the_ready_line_is_the_only_line_and_names_every_listener(own_campus: Callable[[], Campus]) -> None:
    campus = own_campus()
    campus.start("radius.engine=none")
    assert campus.process is not None
    (line,) = campus.process.events
    assert line["event"] == "ready" and line["pid"] == campus.process.popen.pid and line["home"] == str(campus.home)
    assert set(line["listeners"]) == {"device", "console", "decision", "pki", "radius"}
    assert line["listeners"]["radius"] is None
    assert all(line["listeners"][name].startswith("127.0.0.1:") for name in ("device", "console", "decision", "pki"))
    assert json.loads(json.dumps(line)) == line


@pytest.mark.lab
def test_operations_that_are_not_there_or_asked_wrongly_are_typed(campus: Campus) -> None:
    client: Client = campus.client("admin")
    for name, body, status, reason in (
        ("no.such", b"{}", 404, "operation-unknown"),
        ("__init__", b"{}", 404, "operation-unknown"),
        ("owners.__class__", b"{}", 404, "operation-unknown"),
        ("owners._directory", b"{}", 404, "operation-unknown"),
        ("owners.add", b"{}", 400, "request-malformed"),
        ("owners.add", b'{"ref": 1}', 400, "request-malformed"),
        ("owners.add", b'{"ref": "x", "more": 1}', 400, "request-malformed"),
        ("owners.import", b'{"csv": "x", "confirm": 1}', 400, "request-malformed"),
        ("owners.list", b"[]", 400, "request-malformed"),
    ):
        answer = client.send("POST", f"/v1/operations/{name}", body, "application/json")
        assert (answer.status, answer.reason) == (status, reason), (name, body, answer)


def test_a_home_that_is_none_is_one_line(tmp_path: Path) -> None:
    for words in (("run",), ("owners", "list"), ("backup", str(tmp_path / "b"))):
        found = run_here(*words, "--home", tmp_path / "nothing")
        assert found.status == 1 and found.out == "" and found.err.count("\n") == 1 and "home-missing" in found.err
