"""The snapshot's mappings: a change costs the few, older ones keep what they had, and nothing is lost."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from appliance.access import packed
from appliance.access.packed import Credentials
from appliance.access.spread import PARTS, Spread
from radius import Credential
from tests.support import NOW

TEXT = st.one_of(
    st.text(max_size=60),
    st.uuids().map(str),
    st.uuids().map(lambda one: f"spiffe://campus.example/agent/{one}"),
    st.uuids().map(lambda one: f"X{str(one).upper()}"),
)
MOMENT = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))
CREDENTIAL = st.builds(
    Credential, kind=st.sampled_from(["dual", "ldevid"]), agent_id=TEXT, owner_id=st.none() | TEXT,
    serial=st.one_of(st.integers(0, 300), st.integers(0, (1 << 160) - 1)), issuer_role=st.just("agents"),
    state=st.sampled_from(["issued", "revoked"]), not_before=MOMENT, not_after=MOMENT, model=st.just("m"), txn=TEXT,
    tier=st.sampled_from(["", "hardware"]),
)  # fmt: skip


def credential(serial: int, state: str = "issued") -> Credential:
    agent = f"spiffe://campus.example/agent/{uuid.UUID(int=serial % 7)}"
    return Credential("dual", agent, None, serial, "agents", state, NOW, NOW + timedelta(hours=8))


@given(st.lists(st.tuples(st.sampled_from(["aa", "bb"]), CREDENTIAL), max_size=40), st.integers(0, 40))
def test_packed_credentials_are_what_a_plain_mapping_would_be(given_: list[tuple[str, Credential]], cut: int) -> None:
    entries = [((aki, one.serial), one) for aki, one in given_]
    first = Credentials(dict(entries[:cut]))
    for key, one in entries[:cut]:
        first.put(key, one)
    before = dict(first)
    second = first.with_changes(dict(entries[cut:]))
    assert before == dict(first) == dict(entries[:cut])
    assert dict(second) == dict(entries) and len(second) == len(dict(entries))
    assert all(second[key] == one for key, one in dict(entries).items())
    assert second.get(("cc", 1)) is None and second.get(("aa", 1 << 160)) is None and second.get(("aa", -1)) is None


def test_a_key_that_stands_across_two_others_is_nobodys() -> None:
    """Zeros at the end of one serial number and the beginning of the next spell a third."""
    one = 5 << 80
    place = packed._place(0, one)[:2]
    other = next(at for at in range(1 << 120, 1 << 121) if packed._place(0, at)[:2] == place)
    entries = Credentials({("aa", one): credential(one), ("aa", other): credential(other)})
    found = b"".join(keys for keys, _, _ in entries.parts())
    for at in range(1, len(found) - 22):
        serial = int.from_bytes(found[at + 2 : at + 22])
        assert (entries.get(("aa", serial)) is None) == (serial not in (one, other))


def test_changes_of_packed_credentials_touch_only_their_parts_and_revoke_at_once() -> None:
    first = Credentials({("aa", serial): credential(serial) for serial in range(20_000)})
    second = first.with_changes({("aa", 7): credential(7, "revoked")})
    assert sum(one is not two for one, two in zip(first.parts(), second.parts(), strict=True)) == 1
    assert (first["aa", 7].state, second["aa", 7].state) == ("issued", "revoked")
    assert second["aa", 7] == first["aa", 7]._replace(state="revoked") and len(second) == 20_000


def test_whatever_requesters_write_before_a_uuid_fits_in() -> None:
    """A transaction name is a requester's own text; each may begin with another word."""
    named = [credential(at)._replace(txn=f"wf:{at}:{uuid.UUID(int=at)}") for at in range(packed.MAX_PREFIXES + 100)]
    entries = Credentials({("aa", one.serial): one for one in named})
    assert all(entries["aa", one.serial] == one for one in named)
    assert len(entries._tables.prefixes) == packed.MAX_PREFIXES


def test_a_packed_credential_takes_a_tenth_of_its_object() -> None:
    entries = Credentials({("aa", (1 << 126) + at): credential((1 << 126) + at) for at in range(10_000)})
    octets = sum(len(piece) for part in entries.parts() for piece in part)
    assert octets / 10_000 < 80


def test_a_changed_entry_is_found_changed_and_older_ones_keep_what_they_had():
    first = Spread({("aa", 1): "issued"})
    second = first.with_changes({("aa", 1): "revoked", ("aa", 2): "issued"})
    assert first.get(("aa", 1)) == "issued" and first.get(("aa", 2)) is None and len(first) == 1
    assert second[("aa", 1)] == "revoked" and len(second) == 2
    assert second.get(("bb", 1), "none") == "none" and ("bb", 1) not in second
    assert dict(second) == {("aa", 1): "revoked", ("aa", 2): "issued"}


def test_many_changes_lose_nothing_and_copy_only_what_they_touch():
    entries: Spread[int, int] = Spread()
    for number in range(3000):
        before = entries
        entries = entries.with_changes({number: number})
        assert sum(one is not two for one, two in zip(before._parts, entries._parts, strict=True)) == 1
    assert sorted(entries.values()) == list(range(3000))
    assert all(entries[number] == number for number in range(3000))


def test_one_that_is_taken_apart_is_freed_in_steps_and_leaves_others_alone():
    first = Spread({number: number for number in range(1000)})
    other = Spread(dict(first))
    assert sum(1 for _ in first.take_apart()) == PARTS
    assert len(first) == 0 and len(other) == 1000
