"""Owners from a real slapd: what comes in, what a broken, lying or vanished directory cannot do (fault row F14)."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from appliance import audit
from appliance.access.directory import OwnerDirectory
from appliance.access.sources.errors import (
    DirectoryAnswerUnusable,
    DirectoryFrozen,
    DirectoryIncomplete,
    DirectoryLoginRefused,
    DirectoryNotConfigured,
    DirectoryReferral,
    DirectoryTooLarge,
    DirectoryUnreachable,
    DirectoryUntrusted,
)
from appliance.access.sources.ldap_source import LdapSource
from appliance.access.sources.sync import DirectorySync
from appliance.audit import APPLIANCE, Actor
from appliance.settings import DirectorySettings
from appliance.store import owners
from appliance.store.owners import Owner
from tests.interop.slapd import BASE, WHY_NOT, Rogue, Slapd, make_ca, person, relay
from tests.stores import open_store
from tests.support import FixedClock

pytest.importorskip("ldap3", reason="ldap3 is not installed: pip install campus-appliance[ldap]")
pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.interop,
    pytest.mark.xdist_group("slapd"),
]
ADMIN = Actor("administrator", "ada")
ORIGIN = "spiffe://campus.example"
PEOPLE = [person(f"user{at:02}", "R&D" if at % 2 else "HR") for at in range(20)]
HOSTILE = ("%{exec:touch /tmp/pwned}", '"; DROP TABLE owners; --', "${jndi:ldap://x}", "*)(uid=*", "<script>x</script>")


class Site:
    """A store, and a reader of one directory into it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.clock = FixedClock()
        self.store = open_store(f"sqlite:///{folder / 'appliance.db'}", self.clock)
        self.directory = OwnerDirectory(origin=ORIGIN, store=self.store, clock=self.clock)
        self.tell(**settings)

    def tell(self, **settings: Any) -> None:
        """Other settings from now on."""
        chosen = DirectorySettings(**settings)
        self.sync = DirectorySync(
            chosen, origin=ORIGIN, store=self.store, clock=self.clock, directory=self.directory,
            source=LdapSource(chosen), chance=lambda: 0.0,
        )  # fmt: skip

    async def owners(self) -> dict[str, Owner]:
        return {one.ref: one for one in await self.store.read(owners.every)}

    async def events(self) -> list[tuple[str, str]]:
        rows = await self.store.read(lambda tx: list(audit.rows(tx)))
        return [(row.event, row.entry["fields"].get("ref", "")) for row in rows]


def play(folder: Path, story: Callable[[Site], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        site = Site(folder, **settings)
        try:
            await story(site)
        finally:
            site.store.close()

    asyncio.run(run())


@pytest.fixture
def slapd(tmp_path: Path) -> Iterator[Slapd]:
    with Slapd(tmp_path / "slapd").make(PEOPLE).running() as running:
        yield running


@pytest.mark.parametrize("how", ["StartTLS", "LDAPS"])
def test_people_come_in_by_pages_over_tls_with_a_pinned_ca(slapd: Slapd, tmp_path: Path, how: str) -> None:
    async def story(site: Site) -> None:
        done = await site.sync.sync(actor=ADMIN)
        assert (done["read"], done["added"], done["conflicts"]) == (20, 20, 0)
        found = await site.owners()
        assert {one.department for one in found.values()} == {"R&D", "HR"}
        first = found["user01"]
        assert (first.source, first.name, first.state) == ("ldap", "user01 of the campus", "active")
        assert uuid.UUID(first.source_key)
        again = await site.sync.sync(actor=APPLIANCE)
        assert (again["unchanged"], again["added"]) == (20, 0)
        assert [name for name, _ in await site.events()].count("directory-synced") == 1, "no news is not audited"
        (state,) = await site.sync.status()
        assert (state["present"], state["outcome"], state["stale"]) == (20, "done", False)

    url = {} if how == "StartTLS" else {"ldap_url": f"ldaps://localhost:{slapd.tls_port}"}
    play(tmp_path, story, **slapd.settings(ldap_page=3, **url))


def test_moves_renames_and_ends_are_taken_in_and_nobody_is_deleted(slapd: Slapd, tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        await site.sync.sync(actor=ADMIN)
        before = await site.owners()
        slapd.put("user00", departmentNumber=["Chemistry", "Physics"], cn=["Zoe"])
        slapd.remove("user01")
        planned = await site.sync.sync(actor=ADMIN, dry_run=True)
        assert planned["rows"]["changed"] == [
            {
                "ref": "user00",
                "name": ["user00 of the campus", "Zoe"],
                "departments": [["HR"], ["Chemistry", "Physics"]],
            }
        ]
        assert await site.owners() == before, "a dry run changes nothing"
        await site.sync.sync(actor=APPLIANCE)
        slapd.rename("user02", "married")
        await site.sync.sync(actor=APPLIANCE)
        after = await site.owners()
        assert after["user00"].departments == ("Chemistry", "Physics")
        assert (after["user01"].state, after["user01"].source_state) == ("suspended", "absent")
        assert after["married"].identifier == before["user02"].identifier
        assert len(after) == 20
        events = await site.events()
        assert ("owner-suspended", "user01") in events
        assert ("owner-changed", "user00") in events
        assert ("owner-changed", "married") in events

    play(tmp_path, story, **slapd.settings())


def test_who_comes_back_under_the_same_entry_is_active_again_and_a_namesake_is_not(
    slapd: Slapd, tmp_path: Path
) -> None:
    async def story(site: Site) -> None:
        await site.sync.sync(actor=ADMIN)
        site.tell(**slapd.settings(ldap_filter="(&(objectClass=person)(!(uid=user03)))"))
        await site.sync.sync(actor=APPLIANCE)
        assert (await site.owners())["user03"].state == "suspended"
        site.tell(**slapd.settings())
        done = await site.sync.sync(actor=APPLIANCE)
        assert (done["returned"], (await site.owners())["user03"].state) == (1, "active")
        assert ("owner-resumed", "user03") in await site.events()
        # the account is deleted and its name given to somebody else: another entry, another key
        slapd.remove("user03")
        slapd.add("user03", "Finance")
        done = await site.sync.sync(actor=APPLIANCE)
        assert done["rows"]["conflicts"] == [{"kind": "ref-of-other-person", "ref": "user03"}]
        found = (await site.owners())["user03"]
        assert (found.state, found.department) == ("suspended", "R&D")
        await site.directory.adopt("user03", "ldap", actor=ADMIN)
        await site.sync.sync(actor=APPLIANCE)
        found = (await site.owners())["user03"]
        assert (found.state, found.department) == ("active", "Finance")

    play(tmp_path, story, **slapd.settings())


def test_owners_of_other_sources_and_of_administrators_are_left_alone(slapd: Slapd, tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        await site.directory.add("user05", name="Local", kind="device", department="Plant", actor=ADMIN)
        await site.directory.add("guard", name="Guard", kind="person", department="Plant", actor=ADMIN)
        done = await site.sync.sync(actor=ADMIN)
        assert done["rows"]["conflicts"] == [{"kind": "ref-of-other-source", "ref": "user05"}]
        found = await site.owners()
        assert (found["user05"].department, found["user05"].source) == ("Plant", "local")
        assert found["guard"].state == "active"
        # an administrator's suspension outlives every reading, also one after a return
        await site.directory.suspend("user06", actor=ADMIN)
        site.tell(**slapd.settings(ldap_filter="(&(objectClass=person)(!(uid=user06)))"))
        await site.sync.sync(actor=APPLIANCE)
        site.tell(**slapd.settings())
        await site.sync.sync(actor=APPLIANCE)
        held = (await site.owners())["user06"]
        assert (held.state, held.source_state, held.held) == ("suspended", "present", True)
        await site.directory.resume("user06", actor=ADMIN)
        await site.directory.revoke("user07", actor=ADMIN)
        await site.sync.sync(actor=APPLIANCE)
        found = await site.owners()
        assert (found["user06"].state, found["user07"].state) == ("active", "revoked")

    play(tmp_path, story, **slapd.settings())


def test_active_directory_says_who_is_disabled_or_expired(tmp_path: Path) -> None:
    def account(name: str, **more: Any) -> Any:
        guid = uuid.uuid5(uuid.NAMESPACE_DNS, name).bytes_le
        return person(name, (), objectGUID=[guid], sAMAccountName=[name], department=["R&D"], **more)

    def filetime(when: datetime) -> str:
        return str(int((when - datetime(1601, 1, 1, tzinfo=UTC)).total_seconds()) * 10_000_000)

    group = "cn=Net\\2C Ops,ou=groups," + BASE
    people = [
        account("normal", userAccountControl=["512"], accountExpires=["9223372036854775807"]),
        account("disabled", userAccountControl=["514"]),
        account("expired", accountExpires=[filetime(datetime(2025, 12, 31, tzinfo=UTC))]),
        account("later", accountExpires=[filetime(datetime(2026, 12, 31, tzinfo=UTC))]),
        account("never", accountExpires=["0"], testMemberOf=[group, "cn=VPN,ou=other," + BASE]),
    ]
    slapd = Slapd(tmp_path / "slapd").make(people)
    names = {
        "ldap_ref": "sAMAccountName", "ldap_key": "objectGUID", "ldap_departments": ("department",),
        "ldap_groups": "testMemberOf", "ldap_group_base": "ou=groups," + BASE,
    }  # fmt: skip

    async def story(site: Site) -> None:
        await site.sync.sync(actor=ADMIN)
        found = await site.owners()
        assert set(found) == {"normal", "later", "never"}, "who is disabled and unknown becomes nobody's owner"
        assert found["never"].departments == ("R&D", "Net, Ops")
        assert found["normal"].source_key == str(uuid.uuid5(uuid.NAMESPACE_DNS, "normal"))
        slapd.put("normal", userAccountControl=["514"])
        await site.sync.sync(actor=APPLIANCE)
        now = (await site.owners())["normal"]
        assert (now.state, now.source_state) == ("suspended", "disabled")
        site.clock.advance(370 * 86_400)
        await site.sync.sync(actor=APPLIANCE)
        assert (await site.owners())["later"].state == "suspended", "the account's time is over"

    with slapd.running():
        play(tmp_path, story, **slapd.settings(**names))


def test_hostile_values_end_inert(tmp_path: Path) -> None:
    people = [person(f"evil{at}", name) for at, name in enumerate(HOSTILE)]
    people += [
        person("long", "x" * 300),
        person("bidi", "R\u202eD&"),
        person("nul", "R\0D"),
        person("rtl", "\u05de\u05d7\u05e7\u05e8"),
        person("many", [f"dep{at}" for at in range(40)]),
        person("octets", (), testOctets=[b"\xff\xfe\x00binary"]),
        person("name", cn=["a\nowner-added fake", "b"]),
    ]
    slapd = Slapd(tmp_path / "slapd").make(people)

    async def story(site: Site) -> None:
        done = await site.sync.sync(actor=ADMIN)
        found = await site.owners()
        for at, name in enumerate(HOSTILE):
            assert found[f"evil{at}"].departments == (name,), "kept as text, compared by equality alone"
        assert [found[one].departments for one in ("long", "bidi", "nul", "octets")] == [()] * 4
        assert found["rtl"].departments == ("\u05de\u05d7\u05e7\u05e8",)
        assert (len(found["many"].departments), found["name"].name) == (16, "b")
        assert done["defects"] == 6
        assert all("\n" not in one and "\u202e" not in one for one in done["rows"]["defects"])
        assert not Path("/tmp/pwned").exists()

    with slapd.running():
        play(tmp_path, story, **slapd.settings(ldap_departments=("departmentNumber", "testOctets")))


def test_a_lookup_finds_exactly_one_person_whatever_is_asked(slapd: Slapd, tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        found = await site.sync.lookup("user04")
        assert [one["refs"] for one in found["found"]] == [["user04"]]
        for asked in ("*", "user0*", "user04)(uid=*", "*)(objectClass=*", "user04\0", "\\2a", "(", "ü" * 50, ""):
            assert (await site.sync.lookup(asked))["found"] == [], asked

    play(tmp_path, story, **slapd.settings())


# -- fault row F14: unreachable, empty, malformed, ten times larger, half there


def test_an_unreachable_directory_leaves_everybody_and_says_so_once(slapd: Slapd, tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        await site.sync.sync(actor=ADMIN)
        before = await site.owners()
        slapd.stop(kill=True)
        for _ in range(3):
            site.clock.advance(900)
            with pytest.raises(DirectoryUnreachable):
                await site.sync.sync(actor=APPLIANCE)
        assert await site.owners() == before
        assert [name for name, _ in await site.events()].count("directory-sync-refused") == 1
        (state,) = await site.sync.status()
        assert (state["outcome"], state["age_seconds"], state["stale"]) == ("failed", 2700, False)
        assert state["detail"]["reason"] == "directory-unreachable"
        site.clock.advance(86_400)
        assert (await site.sync.status())[0]["stale"]
        slapd.start()
        await site.sync.sync(actor=APPLIANCE)
        assert (await site.sync.status())[0]["outcome"] == "done"

    play(tmp_path, story, **slapd.settings())


def test_an_empty_directory_freezes_the_owners(slapd: Slapd, tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        await site.sync.sync(actor=ADMIN)
        before = await site.owners()
        site.tell(**slapd.settings(ldap_filter="(objectClass=device)"))
        with pytest.raises(DirectoryFrozen, match="20 vanish"):
            await site.sync.sync(actor=APPLIANCE)
        assert await site.owners() == before
        (state,) = await site.sync.status()
        assert (state["outcome"], state["detail"]["vanished"]) == ("frozen", 20)
        with pytest.raises(DirectoryFrozen):
            await site.sync.look()
        await site.sync.sync(actor=ADMIN, confirm=True)
        assert {one.state for one in (await site.owners()).values()} == {"suspended"}

    play(tmp_path, story, **slapd.settings())


def test_more_than_a_tenth_waits_for_a_person_and_a_single_change_does_not(slapd: Slapd, tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        await site.sync.sync(actor=ADMIN)
        for at in range(2):
            slapd.put(f"user{at:02}", departmentNumber=["Moved"])
        assert (await site.sync.sync(actor=APPLIANCE))["changed"] == 2
        for at in range(2, 5):
            slapd.put(f"user{at:02}", departmentNumber=["Moved"])
        with pytest.raises(DirectoryFrozen) as frozen:
            await site.sync.sync(actor=APPLIANCE)
        assert frozen.value.fields["changed"] == 3
        assert (await site.owners())["user03"].department == "R&D"
        assert (await site.sync.sync(actor=ADMIN, confirm=True))["changed"] == 3

    play(tmp_path, story, **slapd.settings())


def test_a_directory_that_is_ten_times_larger_is_not_taken_in(tmp_path: Path) -> None:
    slapd = Slapd(tmp_path / "slapd").make([*PEOPLE, *(person(f"new{at:03}") for at in range(180))])

    async def story(site: Site) -> None:
        await site.sync.sync(actor=ADMIN)
        assert len(await site.owners()) == 20
        site.tell(**slapd.settings(max_owners=100))
        with pytest.raises(DirectoryTooLarge):
            await site.sync.sync(actor=APPLIANCE)
        site.tell(**slapd.settings())
        with pytest.raises(DirectoryFrozen, match="180 would be added"):
            await site.sync.sync(actor=APPLIANCE)
        site.tell(**slapd.settings(max_bytes=20_000))
        with pytest.raises(DirectoryTooLarge):
            await site.sync.sync(actor=APPLIANCE)
        assert len(await site.owners()) == 20

    with slapd.running():
        play(tmp_path, story, **slapd.settings(ldap_filter="(uid=user*)"))


def test_slapd_killed_between_pages_changes_nothing(tmp_path: Path) -> None:
    slapd = Slapd(tmp_path / "slapd").make([person(f"user{at:03}") for at in range(200)]).start()
    rogue = Rogue(relay(slapd.port, 20_000, lambda: slapd.stop(kill=True)))

    async def story(site: Site) -> None:
        with pytest.raises(DirectoryUnreachable):
            await site.sync.sync(actor=APPLIANCE)
        assert slapd.process is None, "it was killed in the middle"
        assert await site.owners() == {}

    try:
        play(tmp_path, story, **slapd.settings(ldap_page=5, ldap_url=f"ldap://localhost:{rogue.port}"))
    finally:
        rogue.close()
        slapd.stop()


def test_a_part_of_the_entries_is_never_taken_for_all(tmp_path: Path) -> None:
    slapd = Slapd(tmp_path / "slapd", size_limit="size.soft=5 size.hard=5 size.prtotal=5").make(PEOPLE)

    async def story(site: Site) -> None:
        with pytest.raises(DirectoryIncomplete):
            await site.sync.sync(actor=APPLIANCE)
        assert await site.owners() == {}

    with slapd.running():
        play(tmp_path, story, **slapd.settings())


def test_tls_to_another_ca_or_name_or_none_at_all_is_refused_before_a_password_is_sent(
    slapd: Slapd, tmp_path: Path
) -> None:
    make_ca(tmp_path, "other")
    ldaps = f"ldaps://localhost:{slapd.tls_port}"

    async def story(site: Site) -> None:
        for settings in (
            slapd.settings(ldap_ca_file=tmp_path / "other.pem"),
            slapd.settings(ldap_ca_file=tmp_path / "other.pem", ldap_url=ldaps),
            slapd.settings(ldap_url=f"ldap://127.0.0.2:{slapd.port}"),
        ):
            site.tell(**settings)
            with pytest.raises((DirectoryUntrusted, DirectoryUnreachable)) as refused:
                await site.sync.sync(actor=APPLIANCE)
            if "127.0.0.2" not in settings["ldap_url"]:
                assert refused.type is DirectoryUntrusted
        for settings in (
            slapd.settings(ldap_start_tls=False, ldap_url="ldap://directory.example"),
            slapd.settings(ldap_ca_file=None),
            slapd.settings(ldap_ca_file=tmp_path / "missing.pem"),
            slapd.settings(ldap_password_file=None),
        ):
            site.tell(**settings)
            with pytest.raises(DirectoryNotConfigured):
                await site.sync.sync(actor=APPLIANCE)
        (slapd.folder / "password").chmod(0o644)
        site.tell(**slapd.settings())
        with pytest.raises(DirectoryNotConfigured, match="0600"):
            await site.sync.sync(actor=APPLIANCE)
        assert await site.owners() == {}

    play(tmp_path, story, **slapd.settings())


def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    slapd = Slapd(tmp_path / "slapd", names=("other.example",)).make(PEOPLE)

    async def story(site: Site) -> None:
        with pytest.raises(DirectoryUntrusted, match=r"localhost|[Hh]ostname"):
            await site.sync.sync(actor=APPLIANCE)

    with slapd.running():
        play(tmp_path, story, **slapd.settings())


def test_a_refused_login_or_an_account_that_sees_nothing_is_said(slapd: Slapd, tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        (slapd.folder / "password").write_text("wrong")
        with pytest.raises(DirectoryLoginRefused, match="invalidCredentials"):
            await site.sync.sync(actor=APPLIANCE)
        (slapd.folder / "password").write_text("")
        with pytest.raises(DirectoryNotConfigured, match="no password"):
            await site.sync.sync(actor=APPLIANCE)

    play(tmp_path, story, **slapd.settings())


def test_referrals_are_counted_and_never_followed(tmp_path: Path) -> None:
    asked = threading.Event()
    elsewhere = Rogue(lambda client: asked.set())
    referral = (
        f"cn=elsewhere,ou=people,{BASE}",
        {
            "objectClass": ["referral", "extensibleObject"],
            "cn": ["elsewhere"],
            "ref": [f"ldap://127.0.0.1:{elsewhere.port}/{BASE}"],
        },
    )
    slapd = Slapd(tmp_path / "slapd").make([*PEOPLE, referral])

    async def story(site: Site) -> None:
        done = await site.sync.sync(actor=ADMIN)
        assert (done["read"], done["referrals"]) == (20, 1)
        site.tell(**slapd.settings(ldap_base=f"ou=x,cn=elsewhere,ou=people,{BASE}"))
        with pytest.raises(DirectoryReferral):
            await site.sync.sync(actor=APPLIANCE)
        assert len(await site.owners()) == 20

    try:
        with slapd.running():
            play(tmp_path, story, **slapd.settings())
    finally:
        elsewhere.close()
    assert not asked.is_set()


def _silent(client: Any) -> None:
    while client.recv(4096):
        pass


def _endless(client: Any) -> None:
    client.recv(4096)
    client.sendall(b"\x30\x84\x7f\xff\xff\xff\x02\x01\x01")
    while True:
        client.sendall(b"\x04" * 4096)


def _says(octets: bytes) -> Callable[[Any], None]:
    def script(client: Any) -> None:
        while client.recv(4096):
            client.sendall(octets)

    return script


_BIND_OK = b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00"


def _drips(client: Any) -> None:
    """One octet now and then: never silent, never done."""
    client.recv(4096)
    for octet in _BIND_OK * 1000:
        client.sendall(bytes([octet]))
        time.sleep(0.4)


@pytest.mark.parametrize(
    ("script", "refusal"),
    [
        pytest.param(_silent, DirectoryUnreachable, id="silent"),
        pytest.param(_endless, DirectoryTooLarge, id="endless"),
        pytest.param(_drips, DirectoryUnreachable, id="drips"),
        pytest.param(lambda client: client.recv(10), DirectoryUnreachable, id="hangs-up"),
        pytest.param(_says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), None, id="http"),
        pytest.param(_says(b"\x30\x03\x02\x01\x01"), None, id="short"),
        pytest.param(_says(b"\x30\x80\x00\x00"), None, id="indefinite"),
        pytest.param(_says(b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x7f\x04\x00"), None, id="length-lies"),
        pytest.param(_says(b"\x30\x05\x02\x01\x01\x7f\x00"), None, id="unknown-operation"),
        pytest.param(_says(struct.pack(">B", 0x30) * 4096), None, id="nested"),
        pytest.param(_says(_BIND_OK), None, id="bind-answer-to-everything"),
    ],
)
def test_a_directory_that_talks_nonsense_is_refused_in_bounded_time(
    tmp_path: Path, script: Callable[[Any], None], refusal: type[Exception] | None
) -> None:
    rogue = Rogue(script)
    (tmp_path / "password").write_text("x")
    (tmp_path / "password").chmod(0o600)

    async def story(site: Site) -> None:
        begun = time.monotonic()
        wanted = refusal or (DirectoryAnswerUnusable, DirectoryUnreachable, DirectoryLoginRefused)
        with pytest.raises(wanted):
            await site.sync.sync(actor=APPLIANCE)
        assert time.monotonic() - begun < 60  # silence and drips go on for ever
        assert await site.owners() == {}
        assert (await site.sync.status())[0]["outcome"] == "failed"

    try:
        play(
            tmp_path, story, source="ldap", ldap_url=f"ldap://127.0.0.1:{rogue.port}", ldap_start_tls=False,
            ldap_bind_dn="cn=x", ldap_password_file=tmp_path / "password", ldap_base=BASE, ldap_timeout_seconds=2,
            ldap_total_seconds=4, max_bytes=1_000_000,
        )  # fmt: skip
    finally:
        rogue.close()


def test_a_reading_ends_when_the_appliance_stops(tmp_path: Path) -> None:
    rogue = Rogue(_silent)

    async def story(site: Site) -> None:
        reading = asyncio.create_task(site.sync.sync(actor=APPLIANCE))
        assert await asyncio.to_thread(rogue.was_reached.wait, 60)
        begun = time.monotonic()
        site.sync.stop()
        with pytest.raises(DirectoryUnreachable):
            await reading
        assert time.monotonic() - begun < 30  # it would have waited for 50

    try:
        play(
            tmp_path, story, source="ldap", ldap_url=f"ldap://127.0.0.1:{rogue.port}", ldap_start_tls=False,
            ldap_base=BASE, ldap_timeout_seconds=60,
        )  # fmt: skip
    finally:
        rogue.close()
