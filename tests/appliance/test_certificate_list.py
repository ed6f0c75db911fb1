"""The inventory of certificates: found by what people know, in pages that miss nothing, revoked with a reason."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from appliance.audit import Actor
from appliance.ca import CertificateAuthority
from appliance.certificate_list import CertificateList
from appliance.errors import CertificateUnknown, Conflict, NotFound, NotPermitted, RequestMalformed
from appliance.store import Store, certificate_search, certificates
from appliance.store.owners import ACTIVE, Owner
from appliance.store.owners import add as add_owner
from tests.appliance.authority import authority, issue_ldevid, issuing
from tests.stores import open_store
from tests.support import NOW, FixedClock

ORIGIN = "spiffe://campus.example"
ADMINISTRATOR = Actor("administrator", "local")
AKI = b"\xaa" * 20
ALICE, BOB = f"{ORIGIN}/owner/alice", f"{ORIGIN}/owner/bob"


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def store(tmp_path: Path, clock: FixedClock) -> Iterator[Store]:
    made = open_store(f"sqlite:///{tmp_path / 'a.db'}", clock)
    yield made
    made.close()


@pytest.fixture
def campus(store: Store, clock: FixedClock) -> CertificateList:
    """Twelve certificates: agents 1 to 8 of alice and bob in turn, LDevIDs 9 and 10, one pending, a CA's."""

    def fill(tx: Any) -> None:
        for name, ref, department in ((ALICE, "alice", "R&D"), (BOB, "bob", "HR")):
            add_owner(tx, Owner(ref, name, ref, ref, "person", department, ACTIVE, tx.now, tx.now))
        for serial in range(1, 9):
            agent = f"{ORIGIN}/agent/{serial}"
            add(tx, serial, "agents", "agent", agent_id=agent, subject_id=agent, proxy_id=f"{ORIGIN}/proxy/p1",
                owner_id=ALICE if serial % 2 else BOB)  # fmt: skip
        for serial in (9, 10):
            add(tx, serial, "devices", "ldevid", hours=90 * 24, proxy_id=f"{ORIGIN}/proxy/p{serial}")
        add(tx, 11, "agents", "agent", issued=False, agent_id=f"{ORIGIN}/agent/11", owner_id=ALICE)
        add(tx, 12, "root", "ca", hours=90 * 24)

    def add(
        tx: Any, serial: int, role: str, profile: str, *, hours: int = 8, issued: bool = True, **columns: Any
    ) -> None:
        row = certificates.Pending(role, AKI, serial, b"t" * 32, bytes([serial]) * 32, tx.now,
                                   tx.now + timedelta(hours=hours), {"profile": profile, **columns})  # fmt: skip
        row_id = certificates.add(tx, row)
        if issued:
            certificates.issue(tx, row_id, b"der", b"c" * 32)

    store.write_sync(fill)
    for serial in (3, 4, 9):
        store.write_sync(lambda tx, serial=serial: certificates.revoke(tx, AKI, serial, "superseded"))  # type: ignore[misc]
    root, cas = issuing()
    ca = CertificateAuthority(root=root, issuing=cas, store=store, clock=clock)
    return CertificateList(origin=ORIGIN, ca=ca, store=store, clock=clock)


def serials(campus: CertificateList, **given: Any) -> list[int]:
    return [int(one["serial"], 16) for one in asyncio.run(campus.search(**given))["certificates"]]


@pytest.mark.req("A-113")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
        ({"agent": f"{ORIGIN}/agent/5"}, [5]),
        ({"agent": "5"}, [5]),
        ({"owner": "alice"}, [11, 7, 5, 3, 1]),
        ({"owner": BOB}, [8, 6, 4, 2]),
        ({"department": "R&D"}, [11, 7, 5, 3, 1]),
        ({"department": "Nowhere"}, []),
        ({"proxy": "p1"}, [8, 7, 6, 5, 4, 3, 2, 1]),
        ({"serial": "0x0C"}, [12]),
        ({"serial": "00:0c"}, [12]),
        ({"key": "07" * 32}, [7]),
        ({"key": ":".join(["07"] * 32)}, [7]),
        ({"state": "revoked"}, [9, 4, 3]),
        ({"state": "pending"}, [11]),
        ({"state": "expired"}, []),
        ({"state": "live"}, [12, 10, 8, 7, 6, 5, 2, 1]),
        ({"state": "revoked", "owner": "bob"}, [4]),
        ({"state": "revoked", "department": "R&D"}, [3]),
        ({"expires_before": "1d"}, [11, 8, 7, 6, 5, 4, 3, 2, 1]),
        ({"expires_after": "12h"}, [12, 10, 9]),
        ({"expires_after": "2026-01-02", "expires_before": "2026-12-31T00:00:00+01:00"}, [12, 10, 9]),
        ({"expires_before": "1d", "state": "live", "proxy": "p1"}, [8, 7, 6, 5, 2, 1]),
    ],
    ids=str,
)
def test_certificates_are_found_by_what_people_know_of_them(
    campus: CertificateList, given: Mapping[str, Any], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serials(campus, **given) == expected
    monkeypatch.setattr(certificate_search, "_NEWEST", 2)  # what is not among the newest comes by an index
    assert serials(campus, **given) == expected


def test_states_follow_the_clock(campus: CertificateList, clock: FixedClock) -> None:
    clock.advance(9 * 3600)
    assert serials(campus, state="expired") == [8, 7, 6, 5, 2, 1]
    assert serials(campus, state="live") == [12, 10]
    assert serials(campus, state="revoked") == [9, 4, 3]
    row = asyncio.run(campus.search(serial="5"))["certificates"][0]
    assert (row["state"], row["department"], row["not_after"]) == ("expired", "R&D", "2026-01-01T20:00:00Z")


@pytest.mark.parametrize("given", [{}, {"owner": "alice"}, {"department": "HR"}, {"state": "live"}], ids=str)
def test_pages_go_on_where_the_last_one_ended_whatever_comes_in_between(
    campus: CertificateList, store: Store, given: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = serials(campus, **given)
    monkeypatch.setattr(certificate_search, "_NEWEST", 3)
    found: list[int] = []
    cursor: int | None = 0
    while cursor is not None:
        page = asyncio.run(campus.search(**given, limit=3, before=cursor))
        found += [int(one["serial"], 16) for one in page["certificates"]]
        cursor = page["next"]
    assert found == whole


@pytest.mark.parametrize(
    "given",
    [
        {"limit": 0},
        {"limit": 10_001},
        {"before": -1},
        {"state": "lost"},
        {"serial": "xyz"},
        {"serial": "1" * 41},
        {"key": "12"},
        {"expires_before": "soon"},
        {"expires_after": "30 days"},
    ],
    ids=str,
)
def test_odd_questions_are_refused_in_words(campus: CertificateList, given: Mapping[str, Any]) -> None:
    with pytest.raises(RequestMalformed):
        asyncio.run(campus.search(**given))


def test_an_owner_that_does_not_exist_is_said_to_be_unknown(campus: CertificateList) -> None:
    with pytest.raises(NotFound):
        asyncio.run(campus.search(owner="carol"))


def test_a_revocation_needs_a_reason_that_crls_know_and_is_final(campus: CertificateList) -> None:
    done = asyncio.run(campus.revoke("0A", reason="keyCompromise", actor=ADMINISTRATOR))
    assert (done["state"], done["reason"], done["revoked_at"]) == ("revoked", "keyCompromise", "2026-01-01T12:00:00Z")
    with pytest.raises(Conflict):
        asyncio.run(campus.revoke("0a", actor=ADMINISTRATOR))
    for reason in ("boredom", "certificateHold"):
        with pytest.raises(RequestMalformed, match="keyCompromise"):
            asyncio.run(campus.revoke("8", reason=reason, actor=ADMINISTRATOR))
    with pytest.raises(NotPermitted):
        asyncio.run(campus.revoke("0c", actor=ADMINISTRATOR))
    with pytest.raises(CertificateUnknown):
        asyncio.run(campus.revoke("ffff", actor=ADMINISTRATOR))
    assert serials(campus, state="revoked") == [10, 9, 4, 3]


def test_two_cas_with_one_serial_number_are_kept_apart(campus: CertificateList, store: Store) -> None:
    row = certificates.Pending(
        "devices", b"\xbb" * 20, 8, b"t" * 32, b"s" * 32, NOW, NOW + timedelta(1), {"profile": "x"}
    )
    store.write_sync(lambda tx: certificates.add(tx, row))
    with pytest.raises(Conflict, match="agents, devices"):
        asyncio.run(campus.show("8"))
    assert asyncio.run(campus.show("8", issuer="devices"))["state"] == "pending"


def test_a_certificate_is_shown_with_what_it_says_itself(tmp_path: Path) -> None:
    async def act(ca: Any, store: Store) -> None:
        issued = await issue_ldevid(ca)
        listed = CertificateList(origin=ORIGIN, ca=ca, store=store, clock=FixedClock())
        shown = await listed.show(format(issued.serial, "x"))
        assert x509.load_pem_x509_certificate(shown["pem"].encode()) == issued.certificate
        assert (shown["names"], shown["profile"], shown["proxy"]) == ("CN=proxy", "ldevid", "proxy")
        (row,) = (await listed.search(with_pem=True))["certificates"]
        assert row["pem"] == shown["pem"]

    with authority(tmp_path) as (ca, store):
        asyncio.run(act(ca, store))
