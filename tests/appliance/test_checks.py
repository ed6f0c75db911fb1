"""`check` names what is wrong, each fault as its own row, and `doctor` looks at what runs."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from appliance.access.directory import OwnerDirectory
from appliance.audit import Actor
from appliance.checks import check_home, expiry
from appliance.clock import SystemClock
from appliance.hierarchy import certificate_file, key_file
from appliance.initialise import initialise
from appliance.settings import FILE_NAME, load_settings
from appliance.store import Store
from lab.demo import POLICY
from tests.campus import run_here
from tests.support import FixedClock


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("checks") / "home"
    initialise(home, SystemClock(), trust_domain="campus.example", organization="Example")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "home")
    return tmp_path / "home"


def look(home: Path, clock: SystemClock | FixedClock | None = None) -> Mapping[str, tuple[str, str]]:
    rows = check_home(load_settings(home), clock or SystemClock(), passphrase_file=None)
    assert all(set(row) == {"check", "level", "message", "fix"} for row in rows)
    assert all(row["fix"] for row in rows if row["level"] == "error"), "whoever reads of a fault reads what to do"
    return {row["check"]: (row["level"], row["message"]) for row in rows}


@pytest.mark.slow
def test_a_new_home_is_well(home: Path) -> None:
    found = look(home)
    assert {level for level, _ in found.values()} == {"ok"}
    assert {"settings", "passphrase", "keys", "store", "policy", "appraisal-policy", "expiry-root"} <= set(found)


@pytest.mark.slow
def test_an_approver_who_is_no_owner_is_found_before_an_agent_waits_in_vain(home: Path) -> None:
    clock = SystemClock()
    origin = "spiffe://campus.example"
    store = Store.open(load_settings(home).settings.store_url, clock)
    directory = OwnerDirectory(origin=origin, store=store, clock=clock)
    ada = Actor("administrator", "ada")
    made = asyncio.run(directory.add("bob", name="Bob", kind="person", department="IT", actor=ada))
    wrong = f"{origin}/owner/11111111-1111-4111-8111-111111111111"
    text = (home / FILE_NAME).read_text()
    for named, level in ((made["identifier"], "ok"), (wrong, "error")):
        more = f'[identity.approvers]\nrobot = 2\n[identity.named_approvers]\nrobot = ["{named}"]\n'
        (home / FILE_NAME).write_text(f"{text}\n{more}")
        assert look(home)["approvers"][0] == level
    asyncio.run(directory.suspend("bob", actor=ada))
    store.close()
    (home / FILE_NAME).write_text(f"{text}\n{more.replace(wrong, made['identifier'])}")
    assert look(home)["approvers"] == (
        "error",
        f"not-found: identity.named_approvers: {made['identifier']} is no active owner here",
    )


def expose(home: Path) -> None:
    key_file(home, "agents").chmod(0o644)


def swap_keys(home: Path) -> None:
    content = key_file(home, "devices").read_bytes()
    key_file(home, "agents").write_bytes(content)


def lose_key(home: Path) -> None:
    key_file(home, "radius").unlink()


def swap_certificates(home: Path) -> None:
    shutil.copy(certificate_file(home, "devices"), certificate_file(home, "agents"))


def lose_store(home: Path) -> None:
    (home / "appliance.db").unlink()


def garble_store(home: Path) -> None:
    (home / "appliance.db").write_bytes(b"no database at all" * 1000)


def garble_policy(home: Path) -> None:
    with closing(sqlite3.connect(home / "appliance.db")) as opened, opened:
        opened.execute(
            "INSERT INTO policies (text, sha256, comment, published_at) VALUES (?, ?, '', 0)", ("version = 9", "0" * 64)
        )


def other_passphrase(home: Path) -> None:
    (home / "passphrase").write_text("not the passphrase at all")


def lose_passphrase(home: Path) -> None:
    (home / "passphrase").unlink()


FAULTS: tuple[tuple[Callable[[Path], None], str], ...] = (
    (expose, "keys"), (swap_keys, "keys"), (lose_key, "keys"), (swap_certificates, "keys"),
    (lose_store, "store"), (garble_store, "store"), (garble_policy, "policy"),
    (other_passphrase, "keys"), (lose_passphrase, "passphrase"),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "check"), FAULTS, ids=lambda one: getattr(one, "__name__", one))
def test_each_fault_is_named_where_it_is(home: Path, damage: Callable[[Path], None], check: str) -> None:
    damage(home)
    found = look(home)
    wrong = [name for name, (level, _) in found.items() if level == "error"]
    assert check in wrong, found
    shown = run_here("check", "--home", home, "-o", "json")
    assert shown.status == 1 and shown.err == ""
    assert [row["check"] for row in shown.json if row["level"] == "error"] == wrong


@pytest.mark.slow
@pytest.mark.parametrize("damage", [expose, swap_keys, lose_key, swap_certificates, lose_store, garble_store])
def test_what_check_calls_a_fault_does_not_start(home: Path, damage: Callable[[Path], None]) -> None:
    """F16: refuse to start, in one line, with the reason's name."""
    damage(home)
    found = run_here("owners", "list", "--home", home)
    assert found.status == 1 and found.out == ""
    assert found.err.startswith("appliance: ") and found.err.count("\n") == 1


@pytest.mark.slow
def test_a_setting_that_is_none_is_named_with_its_neighbour(home: Path) -> None:
    with (home / "appliance.toml").open("a") as file:
        file.write("\n[weeb]\ndevice_port = 1\n")
    shown = run_here("check", "--home", home)
    assert shown.status == 1 and "weeb.device_port" in shown.err and "web.device_port" in shown.err


@pytest.mark.slow
def test_where_the_decision_log_goes_is_checked(home: Path, tmp_path: Path) -> None:
    assert "log-forwarding" not in look(home)
    settings, ca = home / "appliance.toml", tmp_path / "ca.pem"
    lines = f'[access]\nforward_to = ["tls://logs.example", "udp://[::1]:5514"]\nforward_ca_file = "{ca}"\n'
    settings.write_text(settings.read_text().replace("[access]\n", lines))
    for text in ("", "no certificate"):
        ca.write_text(text)
        assert look(home)["log-forwarding"] == (
            "error", f"log-not-forwarded: access.forward_ca_file: cannot read certificates from {ca}"
        )  # fmt: skip
    ca.write_bytes(certificate_file(home, "root").read_bytes())
    assert look(home)["log-forwarding"] == ("ok", "tls://logs.example, udp://[::1]:5514")


@pytest.mark.slow
def test_the_source_of_owners_is_checked_as_far_as_it_can_be_without_asking_it(home: Path, tmp_path: Path) -> None:
    assert "directory" not in look(home)
    settings = home / "appliance.toml"
    before = settings.read_text()

    def tell(*lines: str) -> None:
        settings.write_text(before.replace("[directory]", "\n".join(["[directory]", *lines])))

    tell('source = "ldap"')
    assert look(home)["directory"] == ("error", "directory-not-configured: directory.ldap_url is not set")
    tell('source = "ldap"', 'ldap_url = "ldap://directory.example"', 'ldap_base = "dc=x"')
    assert "ldap_ca_file is not set" in look(home)["directory"][1]
    tell('source = "ldap"', 'ldap_url = "ldap://directory.example"', 'ldap_base = "dc=x"', "ldap_start_tls = false")
    assert "in clear" in look(home)["directory"][1]
    file = tmp_path / "owners.csv"
    tell('source = "csv"', f'csv_file = "{file}"')
    assert look(home)["directory"][1].startswith("directory-unreachable")
    file.write_text("ref,name,kind,department\nalice,A,person,R&D\nbob,B,person,HR\n")
    assert look(home)["directory"] == ("ok", f"{file}; local: not read yet")
    assert run_here("directory", "sync", "--home", home).out == "+ alice: name A, kind person, department R&D\n" + (
        "+ bob: name B, kind person, department HR\n0 unchanged; done\n"
    )
    assert "read whole 0 min ago" in look(home)["directory"][1]
    file.write_text("ref,name,kind,department\n")
    refused = run_here("directory", "sync", "--home", home)
    assert (refused.status, refused.err.startswith("appliance: directory-frozen: ")) == (1, True)
    assert look(home)["directory"][1].startswith("directory-frozen: ")
    assert "directory-at-fault" not in look(home)["directory"][1]
    status = run_here("directory", "status", "--home", home, "-o", "json").json
    assert (status[0]["outcome"], status[0]["present"]) == ("frozen", 2)


def test_a_folder_that_is_no_home(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert set(found) == {"settings"} and found["settings"][0] == "error"


@pytest.mark.slow
def test_a_published_policy_is_counted(home: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    assert run_here("policy", "publish", tmp_path / "policy.toml", "--home", home).status == 0
    assert look(home)["policy"] == ("ok", "revision 1, 2 rules")
    rows = run_here("doctor", "--home", home, "-o", "json")
    assert {"snapshot", "policy", "expiry-agents"} <= {row["check"] for row in rows.json}


@pytest.mark.parametrize(("left", "level", "words"), [
    (timedelta(days=31), "ok", "until"), (timedelta(days=29), "warning", "30 days"),
    (timedelta(days=13), "warning", "14 days"), (timedelta(days=6), "warning", "7 days"),
    (timedelta(hours=23), "warning", "1 day"), (timedelta(), "error", "expired"),
    (-timedelta(days=1), "error", "expired"),
])  # fmt: skip
@pytest.mark.slow
def test_expiry_warns_in_steps(made: Path, left: timedelta, level: str, words: str) -> None:
    certificate = x509.load_pem_x509_certificates(certificate_file(made, "radius").read_bytes())[0]
    row = expiry("radius", certificate, FixedClock(certificate.not_valid_after_utc - left))
    assert row["level"] == level and words in row["message"]
