"""Whatever arrives, only our own refusals come out; whatever we write, we read back."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brski import (
    Assertion,
    AuditLog,
    BrskiError,
    EnrollStatus,
    LogEntry,
    Voucher,
    VoucherRequest,
    VoucherStatus,
    audit_log,
    discovery,
    leaves,
    paths,
    telemetry,
    voucher,
    voucher_request,
)
from brski.audit_log import Truncation
from brski.errors import MasaUriInvalid
from brski.idevid import read_masa_address
from est.exchange import Reply
from est.keys import spki_sha256
from tests.brski.trio import Trio
from tests.support import NOW, examples

dates = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=0)
)
lines = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=64)
octets = st.binary(min_size=1, max_size=64)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(lines, inner, max_size=3),
    max_leaves=8,
)

vouchers = st.builds(
    Voucher,
    serial_number=lines,
    assertion=st.sampled_from(Assertion),
    pinned_domain_cert=st.none() | octets,
    created_on=st.none() | dates,
    nonce=st.none() | lines,
    idevid_issuer=st.none() | octets,
    domain_cert_revocation_checks=st.none() | st.booleans(),
)
requests = st.builds(
    VoucherRequest,
    serial_number=lines,
    nonce=st.none() | lines,
    assertion=st.none() | st.sampled_from(Assertion),
    created_on=st.none() | dates,
    idevid_issuer=st.none() | octets,
    proximity_registrar_cert=st.none() | octets,
    prior_signed_voucher_request=st.none() | octets,
)
entries = st.builds(
    LogEntry,
    date=dates,
    domain_id=octets,
    nonce=st.none() | lines,
    assertion=lines,
    truncated=st.integers(0, 1024),
)


@given(vouchers)
def test_vouchers_survive_writing_and_reading(value: Voucher) -> None:
    assert voucher.read(voucher.write(value)) == value


@given(requests)
def test_requests_survive_writing_and_reading(value: VoucherRequest) -> None:
    assert voucher_request.read(voucher_request.write(value)) == value


@given(st.lists(entries, max_size=8), st.tuples(*[st.integers(0, 1024)] * 3))
def test_logs_survive_writing_and_reading_and_pruning_twice(events: list[LogEntry], counts: tuple[int, ...]) -> None:
    log = AuditLog(tuple(events), Truncation(*counts))
    assert audit_log.read(audit_log.write(log)) == log
    short = audit_log.prune(log)
    assert audit_log.prune(short) == short
    kinds = [(entry.domain_id, entry.nonce is None) for entry in short.events]
    assert len(set(kinds)) == len(kinds)


@given(st.booleans(), lines, st.dictionaries(lines, json_values, max_size=3))
def test_status_messages_survive(status: bool, reason: str, context: dict[str, object]) -> None:
    for shape, read in (
        (VoucherStatus, telemetry.read_voucher_status),
        (EnrollStatus, telemetry.read_enroll_status),
    ):
        try:
            back = read(telemetry.write(shape(status, reason, context)))
        except BrskiError:
            continue  # a context nested more deeply than a reader takes
        assert back.status is status
        assert dict(back.reason_context) == context


@given(dates)
def test_dates_survive(moment: datetime) -> None:
    assert leaves.read_date(leaves.write_date(moment)) == moment


@given(st.binary(max_size=200) | json_values.map(lambda value: repr(value).encode()))
def test_readers_raise_refusals_only(body: bytes) -> None:
    for read in (
        voucher.read,
        voucher_request.read,
        audit_log.read,
        telemetry.read_voucher_status,
        telemetry.read_enroll_status,
    ):
        with pytest.raises(BrskiError):
            read(body)


@given(
    st.sampled_from(["ietf-voucher:voucher", "ietf-voucher-request:voucher", "events"]),
    st.dictionaries(
        st.sampled_from(
            [
                "created-on",
                "expires-on",
                "assertion",
                "serial-number",
                "idevid-issuer",
                "pinned-domain-cert",
                "nonce",
                "last-renewal-date",
                "prior-signed-voucher-request",
                "proximity-registrar-cert",
            ]
        ),
        json_values,
    ),
)
def test_well_formed_json_with_odd_leaves_raises_refusals_only(key: str, members: dict[str, object]) -> None:
    body = json.dumps({key: members}).encode()
    for read in (voucher.read, voucher_request.read, audit_log.read):
        try:
            read(body)
        except BrskiError:
            pass


@given(st.text(max_size=80))
def test_masa_addresses_are_read_or_refused_and_stable(text: str) -> None:
    try:
        address = read_masa_address(text)
    except MasaUriInvalid:
        return
    assert read_masa_address(address.authority).authority == address.authority


@given(st.dictionaries(st.binary(max_size=20), st.none() | st.binary(max_size=5), max_size=5))
def test_txt_records_of_anybody_are_read(record: dict[bytes, bytes | None]) -> None:
    assert discovery.read_txt(record)


TRIO = Trio()
SENT = TRIO.ask()
EXCHANGE = TRIO.consider(SENT)
REPLY = TRIO.issue(EXCHANGE.call).reply


def mutants(body: bytes) -> st.SearchStrategy[bytes]:
    flip = st.tuples(st.integers(0, len(body) - 1), st.integers(1, 255)).map(
        lambda change: body[: change[0]] + bytes([body[change[0]] ^ change[1]]) + body[change[0] + 1 :]
    )
    cut = st.integers(0, len(body) - 1).map(lambda at: body[:at])
    splice = st.tuples(st.integers(0, len(body)), st.binary(min_size=1, max_size=20)).map(
        lambda change: body[: change[0]] + change[1] + body[change[0] :]
    )
    drop = st.tuples(st.integers(0, len(body) - 1), st.integers(1, 30)).map(
        lambda change: body[: change[0]] + body[change[0] + change[1] :]
    )
    return st.one_of(flip, cut, splice, drop)


@pytest.mark.req("B-135", "T-23")
@examples(300)
@given(mutants(SENT.body))
def test_registrar_refuses_every_damaged_request(body: bytes) -> None:
    try:
        taken = TRIO.consider(replace(SENT, body=body))
    except BrskiError:
        return
    _still_what_was_signed(taken.request.nonce, EXCHANGE.request.nonce)


@examples(300)
@given(mutants(EXCHANGE.call.body))
def test_masa_refuses_every_damaged_request(body: bytes) -> None:
    try:
        grant = TRIO.masa.issue(replace(EXCHANGE.call, body=body), TRIO, now=NOW)
    except BrskiError:
        return
    # what is not under the signature may change: which CAs came along decides what is pinned
    assert grant.voucher.nonce == EXCHANGE.request.nonce
    # the bag of certificates is outside of the signature: what is pinned may be damaged, its key may not be another
    ours = {spki_sha256(one) for one in (TRIO.campus.certificate, *TRIO.campus.chain)}
    assert spki_sha256(grant.voucher.pin()) in ours


@pytest.mark.req("B-135", "B-321")
@examples(300)
@given(mutants(REPLY.body))
def test_pledge_refuses_every_damaged_voucher(body: bytes) -> None:
    reply = Reply(200, paths.VOUCHER_CMS_JSON, body=body)
    for take in (
        lambda: EXCHANGE.conclude(reply, NOW),
        lambda: TRIO.accept(reply, SENT),
    ):
        try:
            taken = take()
        except BrskiError:
            continue
        _still_what_was_signed(taken.nonce, EXCHANGE.request.nonce)


def _still_what_was_signed(one: object, other: object) -> None:
    """A mutant in the unsigned part (a certificate that is not needed) may pass, with the content unchanged."""
    assert one == other
