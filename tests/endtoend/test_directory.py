"""From the directory to the port: what changes in slapd, or is pushed by SCIM, is in the next decision and audited."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.campus import Answer, Campus, leaf_of, new_ask
from tests.interop.slapd import WHY_NOT, Slapd, person
from tests.support import stretched

pytest.importorskip("ldap3", reason="ldap3 is not installed: pip install campus-appliance[ldap]")
pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.interop,
    pytest.mark.xdist_group("directory"),
]
USER = "urn:ietf:params:scim:schemas:core:2.0:User"
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"


@dataclass(frozen=True)
class Scene:
    """A running campus, the slapd that it reads, and one agent's certificate of each owner."""

    campus: Campus
    slapd: Slapd
    alice: str
    bob: str

    def explain(self, certificate_pem: str) -> dict[str, Any]:
        found: dict[str, Any] = self.campus.ask(
            "policy.explain", certificate_pem=certificate_pem, serial="", issuer="agents", nas=""
        )
        return found

    def events(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.campus.ask("audit.list", limit=1000, event=event) if one["event"] == event]


def credential(campus: Campus, ref: str) -> str:
    """An agent's certificate in this owner's name."""
    client = campus.as_proxy()
    asked = new_ask(campus, client, campus.owner(ref))
    answer = asked.submit(client)
    assert answer.status == 201, answer.body
    return leaf_of(answer.json).public_bytes(Encoding.PEM).decode()


@pytest.fixture(scope="module")
def scene(template: Campus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("directory")
    slapd = Slapd(folder / "slapd").make([person("alice"), *(person(f"user{at:02}") for at in range(12))]).start()
    campus = template.copy(folder / "campus")
    settings = [f"directory.{name}={value}" for name, value in slapd.settings(interval_minutes=1440).items()]
    try:
        campus.start(*settings)
        until(120, lambda: any(one["outcome"] == "done" for one in campus.ask("directory.status")))
        yield Scene(campus, slapd, credential(campus, "alice"), credential(campus, "bob"))
    finally:
        campus.close()
        slapd.stop()


def until(seconds: float, look: Callable[[], bool]) -> float:
    """How long it took until something was so."""
    begun = time.monotonic()
    while not look():
        assert time.monotonic() - begun < seconds, "not in time"
        time.sleep(0.05)
    return time.monotonic() - begun


@pytest.mark.req("A-33", "A-111")
def test_a_department_that_changes_in_slapd_is_in_the_decision_after_the_next_reading(scene: Scene) -> None:
    campus = scene.campus
    campus.ask("directory.adopt", ref="alice", source="ldap")
    first = campus.cli("directory", "sync")
    assert first.status == 0, first.err
    assert json.loads(first.out)["conflicts"] == 0, "alice was an administrator's owner until she was handed over"
    before = scene.explain(scene.alice)
    assert (before["verdict"], before["department"]) == ("accept", "R&D")
    scene.slapd.put("alice", departmentNumber=["HR"])
    assert scene.explain(scene.alice) == before, "nobody asks the directory while a port waits"
    done = campus.cli("directory", "sync")
    assert json.loads(done.out)["rows"]["changed"] == [{"ref": "alice", "departments": [["R&D"], ["HR"]]}]
    after = scene.explain(scene.alice)
    assert (after["department"], after["vlan"] != before["vlan"]) == ("HR", True)
    assert "source ldap read" in after["text"]
    changed = scene.events("owner-changed")[-1]
    assert (changed["fields"]["ref"], changed["fields"]["department"]) == ("alice", ["R&D", "HR"])
    assert scene.events("directory-synced")[-1]["fields"]["changed"] == 1


def test_who_is_gone_from_slapd_is_rejected_and_comes_back_with_it(scene: Scene) -> None:
    campus = scene.campus
    scene.slapd.put("alice", userAccountControl=["514"])
    campus.ask("directory.sync")
    assert scene.explain(scene.alice)["reason_code"] == "owner-suspended"
    scene.slapd.put("alice", userAccountControl=[])
    campus.ask("directory.sync")
    assert scene.explain(scene.alice)["verdict"] == "accept"


def test_a_frozen_or_broken_source_is_said_everywhere_and_the_appliance_stays_ready(scene: Scene) -> None:
    campus = scene.campus
    gone = [f"user{at:02}" for at in range(6)]
    scene.slapd.remove(*gone)
    refused = campus.cli("directory", "sync")
    assert (refused.status, "directory-frozen" in refused.err, "6 vanish" in refused.err) == (1, True, True)
    ready = campus.client("console").send("GET", "/readyz")
    assert (ready.status, ready.json["checks"]["directory"]["reason"]) == (200, "directory-frozen")
    row = {one["check"]: one for one in campus.ask("doctor")}["directory-ldap"]
    assert (row["level"], row["fix"]) == ("error", "appliance directory sync --confirm")
    assert scene.explain(scene.alice)["verdict"] == "accept"
    assert campus.cli("directory", "sync", "--confirm").status == 0
    scene.slapd.stop(kill=True)
    try:
        assert "directory-unreachable" in campus.cli("directory", "sync").err
        assert campus.client("console").send("GET", "/readyz").json["checks"]["directory"]["ok"] is False
        assert scene.explain(scene.alice)["verdict"] == "accept", "the last good state counts"
    finally:
        scene.slapd.start()
    assert campus.cli("directory", "sync").status == 0
    assert campus.client("console").send("GET", "/readyz").json["checks"]["directory"]["ok"] is True
    assert "reader-password" not in campus.log()


@pytest.mark.req("A-111")
def test_active_false_by_scim_rejects_within_seconds(scene: Scene, tmp_path: Path) -> None:
    campus = scene.campus
    made = campus.cli("directory", "token", "new", "--name", "idp", "--file", tmp_path / "token")
    assert made.status == 0, made.err
    token = (tmp_path / "token").read_text().strip()
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert token not in made.out
    client = campus.client("console")

    def call(method: str, path: str, body: Any = None) -> Answer:
        octets = b"" if body is None else json.dumps(body).encode()
        media_type = "application/scim+json" if octets else ""
        return client.send(method, f"/scim/v2{path}", octets, media_type, {"Authorization": f"Bearer {token}"})

    assert client.send("GET", "/scim/v2/Users").status == 401
    taken = {"schemas": [USER], "userName": "bob", "externalId": "00u2"}
    assert call("POST", "/Users", taken).status == 409, "bob is an administrator's owner"
    campus.ask("directory.adopt", ref="bob", source="scim")
    made_user = call("POST", "/Users", {**taken, "active": True})
    assert made_user.status == 201, made_user.body
    assert made_user.json["meta"]["location"].startswith("https://localhost:")
    id_ = made_user.json["id"]
    assert call("GET", "/Users?filter=userName%20eq%20%22bob%22").json["totalResults"] == 1
    call("PATCH", f"/Users/{id_}", {
        "schemas": [PATCH],
        "Operations": [{"op": "Add", "path": "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department",
                        "value": "HR"}],
    })  # fmt: skip
    assert scene.explain(scene.bob)["verdict"] == "accept"
    ended = call(
        "PATCH",
        f"/Users/{id_}",
        {"schemas": [PATCH], "Operations": [{"op": "Replace", "path": "active", "value": "False"}]},
    )
    assert (ended.status, ended.json["active"]) == (200, False)
    assert until(60, lambda: scene.explain(scene.bob)["reason_code"] == "owner-suspended") < stretched(5)
    (event,) = [one for one in scene.events("owner-suspended") if one["fields"]["ref"] == "bob"]
    assert (event["actor"]["kind"], event["actor"]["identifier"]) == ("directory", "idp")
    hook = {"Authorization": f"Bearer {token}"}
    decision = campus.client("decision").send("POST", "/v1/decide", b"{}", "application/json", hook)
    assert decision.status == 401, "a token of a directory client opens no other port"
    proxy = campus.client("console", campus.state / "ldevid.pem", campus.state / "ldevid.key.pem")
    assert proxy.send("GET", "/scim/v2/Users").status == 401, "and no certificate replaces it"
    assert campus.cli("directory", "token", "revoke", "idp").status == 0
    assert call("GET", "/Users").status == 401
    assert token not in campus.log()
    states = {one["source"]: one for one in campus.ask("directory.status")}
    assert (states["scim"]["disabled"], states["scim"]["scheduled"]) == (1, False)
