"""The snapshot's two parts: a change costs the few, and nothing is lost when they are gathered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from appliance.access.snapshot import MAX_RECENT, Credentials
from radius import Credential

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ONE = Credential("dual", "spiffe://a.example/agent/1", "o", 1, "agents", "issued", NOW, NOW + timedelta(hours=1))


def test_a_changed_credential_is_found_changed_and_older_snapshots_keep_what_they_had():
    first = Credentials({("aa", 1): ONE})
    second = first.with_changes({("aa", 1): replace(ONE, state="revoked")})
    assert first.get(("aa", 1)) == ONE
    assert second.get(("aa", 1)) == replace(ONE, state="revoked")
    assert second.get(("aa", 2)) is None and len(second) == 1


def test_many_changes_are_gathered_without_losing_one():
    credentials = Credentials()
    for serial in range(3 * MAX_RECENT + 7):
        credentials = credentials.with_changes({("aa", serial): replace(ONE, serial=serial)})
        assert len(credentials.recent) <= MAX_RECENT
    found = [credentials.get(("aa", serial)) for serial in range(3 * MAX_RECENT + 7)]
    assert [one.serial for one in found if one is not None] == list(range(3 * MAX_RECENT + 7))
    assert len(credentials) == 3 * MAX_RECENT + 7
