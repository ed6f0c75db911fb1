"""The SCIM server: requests in the shapes that identity providers send them, answers as RFC 7644 wants them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pytest

from appliance import audit
from appliance.access.directory import OwnerDirectory
from appliance.access.directory_tokens import DirectoryTokens
from appliance.access.scim.routes import ScimRoutes
from appliance.access.scim.service import ScimService
from appliance.audit import Actor
from appliance.errors import Conflict, NotFound
from appliance.store import owners
from appliance.store.owners import Owner
from appliance.web.app import build_app
from appliance.web.peer import Peer
from appliance.web.routes import ROUTES
from est.exchange import Call, Reply
from tests.stores import open_store
from tests.support import FixedClock

ADMIN = Actor("administrator", "ada")
ORIGIN = "spiffe://campus.example"
USER = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"
Json = dict[str, Any]


class Answer:
    """A reply, read."""

    def __init__(self, reply: Reply) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.json: Any = json.loads(reply.body) if reply.body else None
        assert reply.status in (204, 304) or reply.media_type == "application/scim+json"

    @property
    def error(self) -> tuple[int, str]:
        """(status, scimType), both as the error's body says them."""
        assert self.json["schemas"] == [ERROR]
        assert self.json["status"] == str(self.status)
        return self.status, self.json.get("scimType", "")


class Provider:
    """An identity provider with its token, at a SCIM server of the test's own."""

    def __init__(self, folder: Path, departments_from: Literal["attribute", "groups", "both"]) -> None:
        clock = FixedClock()
        self.store = open_store(f"sqlite:///{folder / 'appliance.db'}", clock)
        self.directory = OwnerDirectory(origin=ORIGIN, store=self.store, clock=clock)
        self.tokens = DirectoryTokens(self.store)
        service = ScimService(self.store, origin=ORIGIN, departments_from=departments_from, max_owners=50)
        routes = ScimRoutes(service, self.tokens, lambda: "https://campus.example:9443")
        mine = [route for route in ROUTES if route.endpoint in routes.endpoints]
        self._app = build_app("console", routes.endpoints, routes=mine)
        self.token = ""

    async def call(self, method: str, path: str, body: object = None, query: str = "", **headers: str) -> Answer:
        sent = {"authorization": f"Bearer {self.token}"} | {key.replace("_", "-"): one for key, one in headers.items()}
        octets = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        media_type = "application/scim+json" if octets else ""
        call = Call(method, f"/scim/v2{path}", media_type, sent, octets, query)
        return Answer(await self._app.handle(call, Peer("192.0.2.9")))

    async def create(self, name: str, /, **more: Any) -> Json:
        made = await self.call("POST", "/Users", {"schemas": [USER], "userName": name, **more})
        assert made.status == 201, made.json
        return dict(made.json)

    async def patch(self, path: str, *operations: Json) -> Answer:
        return await self.call("PATCH", path, ops(*operations))

    async def find(self, kind: str, filter_: str) -> list[Any]:
        found = await self.call("GET", f"/{kind}", query=f"filter={quote(filter_)}")
        assert found.status == 200, found.json
        return list(found.json["Resources"])

    async def owner(self, ref: str) -> Owner:
        found = await self.store.read(lambda tx: owners.find(tx, ref))
        assert found is not None
        return found

    async def events(self) -> list[tuple[str, str]]:
        rows = await self.store.read(lambda tx: list(audit.rows(tx)))
        return [(row.event, row.entry["actor"]["identifier"]) for row in rows]


def play(
    folder: Path,
    story: Callable[[Provider], Awaitable[None]],
    departments_from: Literal["attribute", "groups", "both"] = "attribute",
) -> None:
    async def run() -> None:
        provider = Provider(folder, departments_from)
        try:
            provider.token = (await provider.tokens.new("idp", actor=ADMIN))["token"]
            await story(provider)
        finally:
            provider.store.close()

    asyncio.run(run())


def test_a_pushed_user_is_an_owner_with_department_and_comes_back_as_it_was_written(tmp_path: Path) -> None:
    async def story(idp: Provider) -> None:
        sent = {
            "externalId": "00u1",
            "name": {"givenName": "Alice", "familyName": "Able", "middleName": "B."},
            "displayName": "Alice Able",
            "active": True,
            "emails": [{"value": "alice@campus.example", "primary": True, "type": "work"}],
            "password": "must be nowhere",
            "groups": [],
            ENTERPRISE: {"department": "R&D", "employeeNumber": "7"},
        }
        made = await idp.call("POST", "/Users", {"schemas": [USER, ENTERPRISE], "userName": "alice", **sent})
        assert made.status == 201
        owner = await idp.owner("alice")
        assert (owner.department, owner.name, owner.source, owner.state) == ("R&D", "Alice Able", "scim", "active")
        assert made.headers["location"] == f"https://campus.example:9443/scim/v2/Users/{owner.id}"
        assert made.headers["etag"] == 'W/"1"' == made.json["meta"]["version"]
        shown = (await idp.call("GET", f"/Users/{owner.id}")).json
        assert shown == made.json
        assert (shown["externalId"], shown[ENTERPRISE], shown["active"]) == ("00u1", {"department": "R&D"}, True)
        assert shown["name"] == {"givenName": "Alice", "familyName": "Able"}
        assert "password" not in shown and "emails" not in shown
        assert ("owner-added", "idp") in await idp.events()
        idp.store.close()
        assert b"must be nowhere" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())

    play(tmp_path, story)


DEACTIVATIONS = {
    "path and text": {"op": "Replace", "path": "active", "value": "False"},
    "value object": {"op": "replace", "value": {"active": False}},
    "path and boolean": {"op": "replace", "path": "active", "value": False},
    "whole name": {"op": "replace", "path": f"{USER}:active", "value": False},
    "text in an object": {"op": "Add", "value": {"active": "false"}},
}


@pytest.mark.parametrize("operation", DEACTIVATIONS.values(), ids=list(DEACTIVATIONS))
def test_active_false_suspends_the_owner_in_each_shape_and_true_brings_it_back(tmp_path: Path, operation: Json) -> None:
    async def story(idp: Provider) -> None:
        id_ = (await idp.create("alice", externalId="1"))["id"]
        ended = await idp.patch(f"/Users/{id_}", operation)
        assert (ended.status, ended.json["active"]) == (200, False)
        owner = await idp.owner("alice")
        assert (owner.state, owner.source_state) == ("suspended", "disabled")
        back = await idp.patch(f"/Users/{id_}", {"op": "replace", "value": {"active": True}})
        assert (back.json["active"], (await idp.owner("alice")).state) == (True, "active")
        events = [name for name, _ in await idp.events()]
        assert events.count("owner-suspended") == events.count("owner-resumed") == 1

    play(tmp_path, story)


def test_patches_of_both_providers_change_what_they_say(tmp_path: Path) -> None:
    async def story(idp: Provider) -> None:
        id_ = (await idp.create("bob", externalId="2", displayName="Bob"))["id"]
        done = await idp.patch(
            f"/Users/{id_}",
            {"op": "Add", "path": f"{ENTERPRISE}:department", "value": "HR"},
            {"op": "Replace", "path": "name.givenName", "value": "Robert"},
            {"op": "Replace", "path": 'emails[type eq "work"].value', "value": "b@campus.example"},
            {"op": "Add", "path": f"{ENTERPRISE}:manager", "value": "3"},
        )
        assert (done.status, done.json["name"]) == (200, {"givenName": "Robert"})
        assert (await idp.owner("bob")).department == "HR"
        await idp.patch(f"/Users/{id_}", {"op": "replace", "value": {f"{ENTERPRISE}:department": "Law"}})
        assert (await idp.owner("bob")).department == "Law"
        flat = {"op": "replace", "value": {"displayName": "Rob", "name.familyName": "Baker"}}
        assert (await idp.patch(f"/Users/{id_}", flat)).json["name"]["familyName"] == "Baker"
        assert (await idp.owner("bob")).name == "Rob"
        nested = {"op": "replace", "value": {ENTERPRISE: {"department": "Art"}}}
        await idp.patch(f"/Users/{id_}", nested)
        assert (await idp.owner("bob")).department == "Art"
        await idp.patch(f"/Users/{id_}", {"op": "remove", "path": f"{ENTERPRISE}:department"})
        assert (await idp.owner("bob")).departments == ()
        renamed = await idp.patch(f"/Users/{id_}", {"op": "replace", "path": "userName", "value": "robert"})
        assert (renamed.json["id"], (await idp.owner("robert")).id) == (id_, id_)

    play(tmp_path, story)


def test_put_replaces_and_never_resumes_by_saying_nothing(tmp_path: Path) -> None:
    async def story(idp: Provider) -> None:
        id_ = (await idp.create("carol", active=False, displayName="C", **{ENTERPRISE: {"department": "HR"}}))["id"]
        assert (await idp.owner("carol")).state == "suspended"
        put = await idp.call("PUT", f"/Users/{id_}", {"schemas": [USER], "userName": "carol"})
        assert (put.status, put.json["active"], "displayName" in put.json) == (200, False, False)
        owner = await idp.owner("carol")
        assert (owner.state, owner.departments, owner.name) == ("suspended", (), "carol")
        await idp.call("PUT", f"/Users/{id_}", {"schemas": [USER], "userName": "carol", "active": True})
        assert (await idp.owner("carol")).state == "active"

    play(tmp_path, story)


def test_a_deleted_user_is_suspended_and_only_the_same_one_comes_back(tmp_path: Path) -> None:
    async def story(idp: Provider) -> None:
        id_ = (await idp.create("dave", externalId="4"))["id"]
        assert (await idp.call("DELETE", f"/Users/{id_}")).status == 204
        assert (await idp.call("GET", f"/Users/{id_}")).error == (404, "")
        assert (await idp.call("DELETE", f"/Users/{id_}")).status == 404
        assert await idp.find("Users", 'userName eq "dave"') == []
        owner = await idp.owner("dave")
        assert (owner.id, owner.state, owner.source_state) == (id_, "suspended", "absent")
        stranger = {"schemas": [USER], "userName": "dave", "externalId": "5"}
        assert (await idp.call("POST", "/Users", stranger)).error == (409, "uniqueness")
        assert (await idp.call("POST", "/Users", {"schemas": [USER], "userName": "dave"})).status == 409
        assert (await idp.create("dave", externalId="4"))["id"] == id_
        assert (await idp.owner("dave")).state == "active"
        await idp.call("DELETE", f"/Users/{id_}")
        await idp.directory.adopt("dave", "scim", actor=ADMIN)
        assert (await idp.create("dave", externalId="5"))["id"] == id_

    play(tmp_path, story)


def test_names_of_others_are_not_taken_over(tmp_path: Path) -> None:
    async def story(idp: Provider) -> None:
        await idp.directory.add("local", name="L", kind="person", department="Plant", actor=ADMIN)
        sent = {"schemas": [USER], "userName": "local"}
        for name in ("local", "LOCAL"):
            assert (await idp.call("POST", "/Users", sent | {"userName": name})).error == (409, "uniqueness")
        await idp.create("erin", externalId="6")
        for twin in ({"userName": "ERIN"}, {"userName": "other", "externalId": "6"}):
            assert (await idp.call("POST", "/Users", {"schemas": [USER], **twin})).error == (409, "uniqueness")
        other = (await idp.create("frank"))["id"]
        for name in ("local", "Local"):
            taken = {"op": "replace", "path": "userName", "value": name}
            assert (await idp.patch(f"/Users/{other}", taken)).error == (409, "uniqueness")
        assert (await idp.owner("frank")).id == other
        await idp.directory.revoke("erin", actor=ADMIN)
        found = (await idp.find("Users", 'userName eq "erin"'))[0]
        assert found["active"] is False
        again = await idp.patch(f"/Users/{found['id']}", {"op": "replace", "value": {"active": True}})
        assert (again.json["active"], (await idp.owner("erin")).state) == (False, "revoked")
        await idp.directory.adopt("local", "scim", actor=ADMIN)
        assert (await idp.create("local"))["id"] == (await idp.owner("local")).id

    play(tmp_path, story)


def test_groups_are_departments_where_the_site_says_so(tmp_path: Path) -> None:
    async def story(idp: Provider) -> None:
        alice, bob = (await idp.create("alice"))["id"], (await idp.create("bob"))["id"]
        made = await idp.call(
            "POST", "/Groups", {"schemas": [GROUP], "displayName": "R&D", "members": [{"value": alice}]}
        )
        id_, path = made.json["id"], f"/Groups/{made.json['id']}"
        assert (made.status, (await idp.owner("alice")).departments) == (201, ("R&D",))
        assert (await idp.call("GET", f"/Users/{alice}")).json["groups"][0]["display"] == "R&D"
        # one provider
        await idp.patch(path, {"op": "Add", "path": "members", "value": [{"$ref": None, "value": bob}]})
        assert (await idp.owner("bob")).departments == ("R&D",)
        await idp.patch(path, {"op": "Remove", "path": "members", "value": [{"$ref": None, "value": bob}]})
        assert (await idp.owner("bob")).departments == ()
        # the other
        await idp.patch(path, {"op": "add", "path": "members", "value": [{"value": bob, "display": "bob"}]})
        await idp.patch(path, {"op": "remove", "path": f'members[value eq "{alice}"]'})
        assert [(await idp.owner(one)).departments for one in ("alice", "bob")] == [(), ("R&D",)]
        renamed = {"op": "replace", "value": {"id": id_, "displayName": "Research"}}
        assert (await idp.patch(path, renamed)).status == 200
        assert (await idp.owner("bob")).departments == ("Research",)
        second = await idp.call("POST", "/Groups", {"schemas": [GROUP], "displayName": "Art"})
        replaced = {"op": "replace", "path": "members", "value": [{"value": bob}, {"value": alice}]}
        await idp.patch(f"/Groups/{second.json['id']}", replaced)
        assert (await idp.owner("bob")).departments == ("Art", "Research")
        lean = await idp.call("GET", path, query="excludedAttributes=members")
        assert "members" not in lean.json
        assert [one["id"] for one in await idp.find("Groups", 'displayName eq "RESEARCH"')] == [id_]
        assert (await idp.call("DELETE", path)).status == 204
        assert (await idp.owner("bob")).departments == ("Art",)
        await idp.call("DELETE", f"/Users/{bob}")
        assert len((await idp.call("GET", f"/Groups/{second.json['id']}")).json["members"]) == 1
        missing = {"op": "add", "path": "members", "value": [{"value": "nobody"}]}
        assert (await idp.patch(f"/Groups/{second.json['id']}", missing)).error == (400, "invalidValue")
        twin = {"schemas": [GROUP], "displayName": "art"}
        assert (await idp.call("POST", "/Groups", twin)).error == (409, "uniqueness")

    play(tmp_path, story, "groups")


@pytest.mark.parametrize(
    ("filter_", "found"),
    [
        ('userName eq "ALICE"', ["alice"]),
        ('externalId eq "x-alice"', ["alice"]),
        ('externalId eq "X-ALICE"', []),
        ('userName eq "alice" and active eq true', ["alice"]),
        ('userName eq "alice" and active eq false', []),
        ('userName sw "al" or displayName co "OB"', ["alice", "bob"]),
        ("not (active eq true)", ["bob"]),
        ("externalId pr and (active eq false)", ["bob"]),
        (f'{ENTERPRISE}:department eq "hr"', ["bob"]),
        (f'{USER}:userName eq "bob"', ["bob"]),
        ('name.familyName ew "ble"', ["alice"]),
        ('id eq "nobody"', []),
        ('userName ne "alice"', ["bob"]),
        ('userName eq "a\' OR 1=1 --"', []),
        ('userName eq "\\u0061lice"', ["alice"]),
        ('emails[type eq "work"]', []),
    ],
)
def test_filters_find_who_passes(tmp_path: Path, filter_: str, found: list[str]) -> None:
    async def story(idp: Provider) -> None:
        await idp.create("alice", externalId="x-alice", name={"familyName": "Able"})
        await idp.create(
            "bob", externalId="x-bob", displayName="Bob", active=False, **{ENTERPRISE: {"department": "HR"}}
        )
        assert sorted(one["userName"] for one in await idp.find("Users", filter_)) == found

    play(tmp_path, story)


def test_lists_come_in_pages(tmp_path: Path) -> None:
    async def story(idp: Provider) -> None:
        made = [(await idp.create(f"user{at}"))["id"] for at in range(7)]
        seen: list[str] = []
        for start in (1, 4, 7):
            page = (await idp.call("GET", "/Users", query=f"startIndex={start}&count=3")).json
            assert (page["totalResults"], page["startIndex"]) == (7, start)
            assert page["itemsPerPage"] == len(page["Resources"])
            seen += [one["id"] for one in page["Resources"]]
        assert sorted(seen) == sorted(made)
        none = (await idp.call("GET", "/Users", query="count=0")).json
        assert (none["totalResults"], none["Resources"]) == (7, [])
        odd = (await idp.call("GET", "/Users", query="startIndex=-5&count=99999")).json
        assert (odd["startIndex"], len(odd["Resources"])) == (1, 7)
        only = (await idp.call("GET", "/Users", query="attributes=userName&count=1")).json["Resources"][0]
        assert set(only) == {"schemas", "id", "meta", "userName"}

    play(tmp_path, story)


def test_versions_keep_two_writers_apart(tmp_path: Path) -> None:
    async def story(idp: Provider) -> None:
        made = await idp.create("alice")
        path, body = f"/Users/{made['id']}", {"schemas": [USER], "userName": "alice", "displayName": "A"}
        assert (await idp.call("GET", path, if_none_match='W/"1"')).status == 304
        assert (await idp.call("PUT", path, body, if_match='W/"1"')).headers["etag"] == 'W/"2"'
        assert (await idp.call("PUT", path, {**body, "displayName": "B"}, if_match='W/"1"')).error == (412, "")
        assert (await idp.call("DELETE", path, if_match='W/"1"')).status == 412
        same = await idp.call("PUT", path, body)
        assert same.headers["etag"] == 'W/"2"', "what changes nothing makes no version"
        assert (await idp.call("GET", path, if_none_match='W/"1"')).status == 200

    play(tmp_path, story)


def test_what_the_server_can_do_is_what_it_says(tmp_path: Path) -> None:
    async def story(idp: Provider) -> None:
        config = (await idp.call("GET", "/ServiceProviderConfig")).json
        assert config["patch"]["supported"] and config["filter"]["supported"] and config["etag"]["supported"]
        assert not config["bulk"]["supported"] and not config["sort"]["supported"]
        types = (await idp.call("GET", "/ResourceTypes")).json
        assert [one["id"] for one in types["Resources"]] == ["User", "Group"]
        assert (await idp.call("GET", "/ResourceTypes/User")).json["schemaExtensions"][0]["schema"] == ENTERPRISE
        schemas = (await idp.call("GET", "/Schemas")).json
        assert {one["id"] for one in schemas["Resources"]} == {USER, GROUP, ENTERPRISE}
        assert (await idp.call("GET", f"/Schemas/{USER}")).json["name"] == "User"
        assert (await idp.call("GET", "/Schemas/urn:x")).error == (404, "")

    play(tmp_path, story)


def test_only_a_live_token_is_heard(tmp_path: Path) -> None:
    async def story(idp: Provider) -> None:
        good = idp.token
        for bad in ("", "x", good[:-1], good + "x", "\u2603", "x" * 5000):
            idp.token = bad
            refused = await idp.call("GET", "/Users")
            assert refused.error == (401, "")
            assert refused.headers["www-authenticate"].startswith("Bearer")
        assert (await idp.call("GET", "/Users", authorization=f"Basic {good}")).status == 401
        idp.token = good
        assert (await idp.call("GET", "/Users")).status == 200
        with pytest.raises(Conflict):
            await idp.tokens.new("idp", actor=ADMIN)
        second = (await idp.tokens.new("second", actor=ADMIN))["token"]
        await idp.tokens.revoke("idp", actor=ADMIN)
        assert (await idp.call("GET", "/Users")).status == 401
        with pytest.raises(NotFound):
            await idp.tokens.revoke("idp", actor=ADMIN)
        idp.token = second
        assert (await idp.call("GET", "/Users")).status == 200
        assert [one["name"] for one in await idp.tokens.every()] == ["second"]
        idp.store.close()
        stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert good.encode() not in stored and second.encode() not in stored

    play(tmp_path, story)


def ops(*operations: Json) -> Json:
    return {"schemas": [PATCH], "Operations": list(operations)}


BAD: list[tuple[str, str, object, str, tuple[int, str]]] = [
    ("POST", "/Users", {"schemas": [USER]}, "", (400, "invalidValue")),
    ("POST", "/Users", {"userName": "x"}, "", (400, "invalidSyntax")),
    ("POST", "/Users", {"schemas": [GROUP], "userName": "x"}, "", (400, "invalidSyntax")),
    ("POST", "/Users", {"schemas": [USER], "userName": 5}, "", (400, "invalidValue")),
    ("POST", "/Users", {"schemas": [USER], "userName": "a b"}, "", (400, "invalidValue")),
    ("POST", "/Users", {"schemas": [USER], "userName": "x", "active": "maybe"}, "", (400, "invalidValue")),
    ("POST", "/Users", {"schemas": [USER], "userName": "x", "name": "x"}, "", (400, "invalidSyntax")),
    ("POST", "/Users", {"schemas": [USER], "userName": "x", "displayName": "a\u202eb"}, "", (400, "invalidValue")),
    ("POST", "/Users", {"schemas": [USER], "userName": "x", ENTERPRISE: {"department": 5}}, "", (400, "invalidValue")),
    ("POST", "/Users", [], "", (400, "invalidSyntax")),
    ("POST", "/Users", b"{", "", (400, "invalidSyntax")),
    ("POST", "/Users", b'{"schemas": [], "schemas": []}', "", (400, "invalidSyntax")),
    ("POST", "/Users", b"[" * 500 + b"]" * 500, "", (400, "invalidSyntax")),
    ("POST", "/Users", b"x" * 70_000, "", (413, "")),
    ("POST", "/Users", b"\xff\xfe", "", (400, "invalidSyntax")),
    ("POST", "/Users/.search", {"schemas": []}, "", (405, "")),
    ("POST", "/Bulk", {"schemas": []}, "", (404, "")),
    ("GET", "/Me", None, "", (404, "")),
    ("PATCH", "/Users/x", ops(), "", (400, "invalidSyntax")),
    ("PATCH", "/Users/x", {"Operations": [{"op": "add"}]}, "", (400, "invalidSyntax")),
    ("PATCH", "/Users/x", ops({"op": "move"}), "", (400, "invalidSyntax")),
    ("PATCH", "/Users/x", ops({"op": "remove"}), "", (400, "noTarget")),
    ("PATCH", "/Users/x", ops({"op": "add", "path": "a b"}), "", (400, "invalidPath")),
    ("PATCH", "/Users/x", ops({"op": "add", "path": "a[b"}), "", (400, "invalidPath")),
    ("PATCH", "/Users/x", ops({"op": "add", "path": 5}), "", (400, "invalidPath")),
    ("PATCH", "/Users/x", ops({"op": "add", "path": "active", "value": True}), "", (404, "")),
    ("PATCH", "/Groups/x", ops({"op": "add", "path": "members", "value": []}), "", (404, "")),
    ("GET", "/Users", None, "filter=", (400, "invalidFilter")),
    ("GET", "/Users", None, "filter=userName", (400, "invalidFilter")),
    ("GET", "/Users", None, "filter=userName%20is%20%22x%22", (400, "invalidFilter")),
    ("GET", "/Users", None, "filter=userName%20eq%20x", (400, "invalidFilter")),
    ("GET", "/Users", None, "filter=userName%20eq%20%22x", (400, "invalidFilter")),
    ("GET", "/Users", None, "filter=" + "(" * 900, (400, "invalidFilter")),
    ("GET", "/Users", None, "filter=" + quote("not (" * 100 + "a pr" + ")" * 100), (400, "invalidFilter")),
    ("GET", "/Users", None, "filter=" + "a" * 3000, (400, "invalidFilter")),
    ("GET", "/Users", None, "startIndex=x", (400, "invalidValue")),
    ("GET", "/Users", None, "count=" + "9" * 40, (400, "invalidValue")),
    ("GET", "/Users", None, "filter=%ff", (400, "invalidSyntax")),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "query", "error"), BAD)
def test_bad_requests_get_a_typed_error_and_change_nothing(
    tmp_path: Path, method: str, path: str, body: object, query: str, error: tuple[int, str]
) -> None:
    async def story(idp: Provider) -> None:
        assert (await idp.call(method, path, body, query)).error == error
        assert await idp.store.read(owners.every) == []

    play(tmp_path, story)


PATCHES: list[tuple[Json, str]] = [
    ({"op": "replace", "path": "shoeSize", "value": 43}, "invalidPath"),
    ({"op": "replace", "path": "urn:x:y:active", "value": False}, "invalidPath"),
    ({"op": "replace", "path": f"{ENTERPRISE}:rank", "value": "x"}, "invalidPath"),
    ({"op": "replace", "path": 'active[value eq "x"]', "value": False}, "invalidPath"),
    ({"op": "replace", "path": "active", "value": "perhaps"}, "invalidValue"),
    ({"op": "replace", "value": "x"}, "invalidValue"),
    ({"op": "replace", "path": "userName", "value": ""}, "invalidValue"),
    ({"op": "remove", "path": "userName"}, "mutability"),
    ({"op": "remove", "path": "active"}, "mutability"),
    ({"op": "replace", "path": "name", "value": []}, "invalidValue"),
]


@pytest.mark.parametrize(("operation", "scim_type"), PATCHES)
def test_a_patch_that_cannot_be_done_does_none_of_its_operations(
    tmp_path: Path, operation: Json, scim_type: str
) -> None:
    async def story(idp: Provider) -> None:
        made = await idp.create("alice")
        done = await idp.patch(
            f"/Users/{made['id']}", {"op": "replace", "path": "displayName", "value": "New"}, operation
        )
        assert done.error == (400, scim_type)
        assert (await idp.call("GET", f"/Users/{made['id']}")).json == made

    play(tmp_path, story)


def test_there_are_never_more_users_than_the_site_allows(tmp_path: Path) -> None:
    async def story(idp: Provider) -> None:
        for at in range(50):
            await idp.create(f"user{at}")
        assert (await idp.call("POST", "/Users", {"schemas": [USER], "userName": "more"})).status == 400

    play(tmp_path, story)
