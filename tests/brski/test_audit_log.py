"""The audit log: form, pruning, and the registrar's judgement."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from brski import (
    Assertion,
    AuditLog,
    AuditLogMalformed,
    AuditPolicy,
    Concern,
    DeviceHistoryRefused,
    LogEntry,
    Voucher,
    appraise,
    audit_log,
)
from brski.audit_log import EVERYTHING, Truncation, prune
from lab.factory import make_leaf
from tests.brski.trio import LONG_AGO, campus
from tests.support import NOW

OURS, THEIRS = b"\x01" * 20, b"\x02" * 32


def entry(domain: bytes = OURS, nonce: str | None = "n1", days: int = 0, truncated: int = 0) -> LogEntry:
    return LogEntry(NOW + timedelta(days=days), domain, nonce, "logged", truncated)


def log(*events: LogEntry, **changes: Any) -> AuditLog:
    return AuditLog(events, **changes)


DOCUMENT: dict[str, Any] = {
    "version": 1,
    "events": [
        {
            "date": "2026-01-01T12:00:00Z",
            "domainID": base64.b64encode(OURS).decode(),
            "nonce": "n1",
            "assertion": "logged",
            "truncated": 2,
        },
        {
            "date": "2026-01-02T12:00:00Z",
            "domainID": base64.b64encode(THEIRS).decode(),
            "nonce": None,
            "assertion": "logged",
        },
    ],
    "truncation": {"nonced duplicates": 2, "nonceless duplicates": 0, "arbitrary": 1},
}
VALUE = log(entry(truncated=2), entry(THEIRS, None, 1), truncation=Truncation(2, 0, 1))


def body(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.req("B-331", "B-332", "B-334")
def test_log_reads_and_writes() -> None:
    assert audit_log.read(body(DOCUMENT)) == VALUE
    assert json.loads(audit_log.write(VALUE)) == DOCUMENT


@pytest.mark.req("B-332", "T-28")
def test_numbers_may_be_strings_as_the_rfc_prints_them() -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["version"] = "1"
    document["truncation"] = {name: str(count) for name, count in DOCUMENT["truncation"].items()}
    document["events"][0]["truncated"] = "2"
    assert audit_log.read(body(document)) == VALUE


@pytest.mark.req("B-331", "T-28")
@pytest.mark.parametrize("truncation", [None, {}, {"arbitrary": 0}])
def test_missing_counters_are_zero(truncation: dict[str, Any] | None) -> None:
    document = {name: value for name, value in DOCUMENT.items() if name != "truncation"}
    if truncation is not None:
        document["truncation"] = truncation
    assert audit_log.read(body(document)).truncation == Truncation()


@pytest.mark.req("B-341", "T-28")
def test_later_version_with_more_members_is_read() -> None:
    document = DOCUMENT | {"version": 2, "more": {"a": 1}}
    document["events"] = [one | {"colour": "blue"} for one in document["events"]]
    assert audit_log.read(body(document)).version == 2


def with_event(**changes: Any) -> dict[str, Any]:
    return DOCUMENT | {"events": [DOCUMENT["events"][0] | changes]}


@pytest.mark.req("B-332")
@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        DOCUMENT | {"version": 0},
        DOCUMENT | {"version": "one"},
        DOCUMENT | {"version": True},
        DOCUMENT | {"version": None},
        DOCUMENT | {"events": None},
        DOCUMENT | {"events": {}},
        DOCUMENT | {"events": ["x"]},
        DOCUMENT | {"events": [DOCUMENT["events"][1]] * 5000},
        DOCUMENT | {"truncation": []},
        DOCUMENT | {"truncation": {"arbitrary": -1}},
        DOCUMENT | {"truncation": {"arbitrary": "١"}},
        DOCUMENT | {"truncation": {"arbitrary": 1.5}},
        with_event(date="yesterday"),
        with_event(domainID="not base64"),
        with_event(domainID=None),
        with_event(domainID=""),
        with_event(nonce=7),
        with_event(assertion=None),
        with_event(truncated=-1),
        with_event(truncated=10**12),
    ],
)
def test_what_is_no_log_is_refused(document: object) -> None:
    with pytest.raises(AuditLogMalformed):
        audit_log.read(body(document))


@pytest.mark.req("B-333")
def test_domain_id_is_the_key_identifier_or_the_hash_of_the_key() -> None:
    ca = campus().ca.certificate
    ski = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert audit_log.domain_id(ca) == ski
    bare = make_leaf(campus().ca, x509.Name([]), now=LONG_AGO).certificate
    spki = bare.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert len(audit_log.domain_id(bare)) == 32
    assert audit_log.domain_id(bare) == hashlib.sha256(spki).digest()


@pytest.mark.req("B-335")
def test_only_the_newest_of_each_kind_stays_and_the_rest_is_counted() -> None:
    full = log(
        entry(nonce="n1"),
        entry(nonce=None, days=1),
        entry(THEIRS, "t1", days=2),
        entry(nonce="n2", days=3, truncated=5),
        entry(nonce="n3", days=4),
        entry(nonce=None, days=5),
        truncation=Truncation(arbitrary=3),
    )
    short = prune(full)
    assert short.events == (
        entry(THEIRS, "t1", days=2),
        entry(nonce="n3", days=4, truncated=7),
        entry(nonce=None, days=5, truncated=1),
    )
    assert short.truncation == Truncation(2, 1, 3)
    assert prune(short) == short


@pytest.mark.req("B-335")
def test_counters_stop() -> None:
    short = prune(log(*[entry(nonce=f"n{i}", days=i) for i in range(3000)]))
    assert short.truncation.nonced_duplicates == audit_log.COUNTER_CEILING == short.events[0].truncated


CASES = [
    (log(), None, []),
    (log(entry()), None, []),
    (log(entry()), ["n1"], []),
    (log(entry(truncated=2)), ["n1", "n2", "n3"], []),
    (log(entry(nonce=None)), [None], []),
    (log(entry(THEIRS), entry()), None, [Concern.FOREIGN_DOMAIN]),
    (log(entry(THEIRS, None), entry()), None, [Concern.FOREIGN_NONCELESS]),
    (
        log(entry(), entry(THEIRS, None, 1), entry(b"\x03" * 20)),
        None,
        [Concern.FOREIGN_NONCELESS, Concern.FOREIGN_DOMAIN],
    ),
    (log(entry(truncated=1)), ["n1"], [Concern.MORE_THAN_ISSUED]),
    (log(entry(nonce="stolen")), ["n1"], [Concern.MORE_THAN_ISSUED]),
    (log(entry(nonce=None)), ["n1"], [Concern.MORE_THAN_ISSUED]),
    (log(entry(), truncation=Truncation(arbitrary=1)), None, [Concern.ENTRIES_REMOVED]),
    (log(entry(), truncation=Truncation(nonced_duplicates=9)), None, []),
    (log(entry(), version=2), None, [Concern.NEWER_VERSION]),
]


@pytest.mark.req("B-339", "B-341", "T-05", "T-12")
@pytest.mark.parametrize(("history", "nonces", "concerns"), CASES)
def test_history_is_judged(history: AuditLog, nonces: list[str | None] | None, concerns: list[Concern]) -> None:
    appraisal = appraise(history, AuditPolicy(), own_domain_ids={OURS}, own_nonces=nonces)
    assert [finding.concern for finding in appraisal.findings] == concerns
    refusing = [concern.value for concern in concerns if concern is not Concern.NEWER_VERSION]
    assert appraisal.is_accepted == (not refusing)
    if refusing:
        with pytest.raises(DeviceHistoryRefused) as refused:
            appraisal.check()
        assert refused.value.fields["concerns"] == tuple(refusing)
    else:
        appraisal.check()


@pytest.mark.req("B-339")
def test_history_before_purchase() -> None:
    policy = AuditPolicy(purchased_at=NOW)
    early = log(entry(days=-1), entry())
    assert [one.concern for one in appraise(early, policy, own_domain_ids={OURS}).findings] == [Concern.BEFORE_PURCHASE]
    assert appraise(log(entry()), policy, own_domain_ids={OURS}).is_accepted


@pytest.mark.req("B-339")
@pytest.mark.parametrize("nonce", ["n2", None])
def test_the_voucher_just_issued_has_to_be_in_the_log(nonce: str | None) -> None:
    issued = Voucher("PX-1", Assertion.LOGGED, created_on=NOW, nonce=nonce)

    def found(*entries: LogEntry) -> list[Concern]:
        nonces = ["n1", nonce]
        judged = appraise(log(*entries), AuditPolicy(), own_domain_ids={OURS}, own_nonces=nonces, issued=issued)
        return [one.concern for one in judged.findings]

    assert found(entry(), entry(nonce=nonce)) == found(entry(nonce=nonce)) == []
    for entries in ((), (entry(),), (entry(THEIRS, nonce=nonce),)):
        assert Concern.OWN_ENTRY_MISSING in found(*entries)


@pytest.mark.req("B-339")
def test_known_other_domains_are_in_order() -> None:
    policy = AuditPolicy(known_domains=frozenset({THEIRS}))
    assert appraise(log(entry(THEIRS), entry()), policy, own_domain_ids={OURS}).is_accepted


@pytest.mark.req("B-342")
def test_history_is_ignored_by_explicit_configuration_only_and_still_reported() -> None:
    history = log(entry(THEIRS, None), entry())
    assert not appraise(history, AuditPolicy(), own_domain_ids={OURS}).is_accepted
    ignored = appraise(history, AuditPolicy(overridden=frozenset({EVERYTHING})), own_domain_ids={OURS})
    assert ignored.is_accepted
    assert [finding.concern for finding in ignored.findings] == [Concern.FOREIGN_NONCELESS]


@pytest.mark.req("B-339", "B-341")
def test_each_concern_can_be_tolerated_or_refused() -> None:
    history = log(entry(THEIRS), entry(), version=2)
    tolerant = AuditPolicy(refuse=frozenset())
    strict = AuditPolicy(refuse=frozenset({Concern.NEWER_VERSION}))
    assert appraise(history, tolerant, own_domain_ids={OURS}).is_accepted
    findings = appraise(history, strict, own_domain_ids={OURS}).findings
    assert [(one.concern, one.is_refusing) for one in findings] == [
        (Concern.NEWER_VERSION, True),
        (Concern.FOREIGN_DOMAIN, False),
    ]


@pytest.mark.req("B-339")
def test_domain_that_copies_our_key_identifier_is_found_by_counting() -> None:
    history = log(entry(nonce="n1"), entry(nonce="mallory", days=1))
    assert appraise(history, AuditPolicy(), own_domain_ids={OURS}).is_accepted
    assert not appraise(history, AuditPolicy(), own_domain_ids={OURS}, own_nonces=["n1"]).is_accepted


@pytest.mark.req("B-342")
def test_an_override_names_findings_and_covers_no_others() -> None:
    history = AuditLog((entry(THEIRS), entry(THEIRS, nonce=None), entry(OURS)), Truncation(arbitrary=1))
    found = appraise(history, AuditPolicy(), own_domain_ids={OURS}).findings
    assert len({one.key for one in found}) == len(found) == 3
    for one in found:
        some = appraise(history, AuditPolicy(overridden=frozenset({one.key})), own_domain_ids={OURS})
        assert [two.key for two in some.findings if not two.is_refusing] == [one.key] and not some.is_accepted
    every = AuditPolicy(overridden=frozenset(one.key for one in found))
    assert appraise(history, every, own_domain_ids={OURS}).is_accepted
    # one more entry removed than a human knew of is a new finding
    worse = replace(history, truncation=Truncation(arbitrary=2))
    assert not appraise(worse, every, own_domain_ids={OURS}).is_accepted


def test_the_same_fact_is_found_once() -> None:
    history = AuditLog((entry(THEIRS), entry(THEIRS, nonce="other-nonce-of-it"), entry(OURS)))
    assert len(appraise(history, AuditPolicy(), own_domain_ids={OURS}).findings) == 1
