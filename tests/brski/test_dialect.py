"""Dialects: names, text form, strict by default."""

from __future__ import annotations

import base64
import json
from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brski import (
    Assertion,
    BrskiError,
    MasaPolicy,
    PledgePolicy,
    VoucherMalformed,
    VoucherRequestMalformed,
    leaves,
    paths,
    voucher,
    voucher_request,
)
from brski.dialect import STRICT, SWITCHES, Dialect, read_dialect, write_dialect
from brski.errors import DialectUnknown
from tests.brski.trio import Trio, content_of, with_leaf
from tests.support import NOW

dialects = st.builds(Dialect, **{one.name: st.booleans() for one in fields(Dialect)})


@given(dialects)
def test_dialects_survive_writing_and_reading(dialect: Dialect) -> None:
    assert read_dialect(write_dialect(dialect)) == dialect


def test_every_switch_has_a_meaning_and_nothing_else_has() -> None:
    assert list(SWITCHES) == [one.name.replace("_", "-") for one in fields(Dialect)]


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_nothing_written_is_the_strict_dialect(text: str) -> None:
    assert read_dialect(text) == STRICT == Dialect()


def test_order_and_blanks_do_not_matter() -> None:
    assert read_dialect(" legacy-key , base64-bodies") == Dialect(base64_bodies=True, legacy_key=True)


@pytest.mark.parametrize("text", ["base64", "legacy_key", "LEGACY-KEY", "legacy-key,", ",", "legacy-key;base64-bodies"])
def test_unknown_switch_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(DialectUnknown) as refused:
        read_dialect(text)
    assert refused.value.fields["known"] == list(SWITCHES)


def trio(text: str, **changes: object) -> Trio:
    """A dialogue in which all three speak the dialect."""
    dialect = read_dialect(text)
    made = Trio(pledge_policy=PledgePolicy(dialect=dialect), masa_policy=MasaPolicy(dialect=dialect), **changes)  # type: ignore[arg-type]
    made.manufacturer = replace(made.manufacturer, dialect=dialect)
    return made


@pytest.mark.parametrize("text", ["", "base64-bodies", "legacy-key", ",".join(SWITCHES)])
@pytest.mark.parametrize("media_type", paths.VOUCHER_FORMATS.values(), ids=list(paths.VOUCHER_FORMATS))
def test_a_whole_dialogue_in_a_dialect(text: str, media_type: str) -> None:
    world = trio(text, media_type=media_type)
    assert world.run().assertion is Assertion.PROXIMITY
    exchange = world.consider()
    assert exchange.read_audit_log(world.masa.audit_log(exchange.audit_log_call, world, now=NOW)).events


@pytest.mark.parametrize("text", ["base64-bodies", "legacy-key"])
def test_what_one_dialect_sends_the_strict_one_refuses(text: str) -> None:
    odd, strict = trio(text), Trio()
    with pytest.raises(VoucherRequestMalformed):
        strict.consider(odd.ask())
    with pytest.raises(VoucherRequestMalformed):
        strict.issue(odd.consider().call)


def test_pledges_are_answered_in_the_form_they_asked_in() -> None:
    world = trio("base64-bodies")
    for sent, is_base64 in ((world.ask(), True), (Trio().ask(), False)):
        exchange = world.consider(sent)
        answer = exchange.reply(exchange.conclude(world.issue(exchange.call).reply, NOW))
        der = base64.b64decode(answer.body, validate=True) if is_base64 else answer.body
        assert voucher.unseal(der, paths.VOUCHER_CMS_JSON)[0].sealed == der


def test_base64_may_be_wrapped_and_is_strict_otherwise() -> None:
    dialect = read_dialect("base64-bodies")
    der = Trio().ask().body
    text = base64.b64encode(der)
    wrapped = base64.encodebytes(der).replace(b"\n", b"\r\n")
    for body in (der, text, text + b"\n", wrapped, b"  " + text):
        assert voucher_request.unseal(body, paths.VOUCHER_CMS_JSON, dialect=dialect)[0].sealed == der
    for body in (b"", text[:-2], text + b"=", base64.urlsafe_b64encode(der) + b"-", b"-----BEGIN CMS-----\n" + text):
        with pytest.raises(VoucherRequestMalformed):
            voucher_request.unseal(body, paths.VOUCHER_CMS_JSON, dialect=dialect)


@pytest.mark.req("B-424")
@pytest.mark.parametrize(
    "text", ["2026-01-01 12:00:00Z", "2026-01-01T12:00:00", "2026-01-01t12:00:00z", "2026-01-01 13:00:00.000+01:00"]
)
def test_loose_dates_are_read_where_the_dialect_has_them(text: str) -> None:
    document = json.dumps(with_leaf(content_of(Trio().ask().body), created_on=text)).encode()
    assert voucher_request.read(document, read_dialect("loose-dates")).created_on == datetime(
        2026, 1, 1, 12, tzinfo=UTC
    )
    with pytest.raises(VoucherRequestMalformed):
        voucher_request.read(document)


@given(st.text(max_size=40) | st.from_regex(r"\d{4}-\d\d-\d\d.\d\d:\d\d:\d\d.{0,8}"))
def test_loose_dates_are_dates_or_refused(text: str) -> None:
    try:
        assert leaves.read_loose_date(text).tzinfo is UTC
    except ValueError:
        return


@pytest.mark.req("B-255")
def test_long_nonces_are_taken_where_the_dialect_has_them() -> None:
    content = with_leaf(content_of(Trio().ask().body), nonce=leaves.write_binary(bytes(45)))
    for text, is_taken in (("", False), ("long-nonces", True)):
        world = trio(text)
        if is_taken:
            assert world.consider(world.pledge_call(content)).request.nonce == leaves.write_binary(bytes(45))
        else:
            with pytest.raises(BrskiError) as refused:
                world.consider(world.pledge_call(content))
            assert refused.value.reason == "nonce-invalid"


@pytest.mark.req("B-421", "T-21")
def test_legacy_keys_do_not_turn_a_voucher_into_a_request_or_back() -> None:
    world = trio("legacy-key")
    dialect = read_dialect("legacy-key")
    exchange = world.consider()
    granted = world.issue(exchange.call).reply.body
    for body in (world.ask().body, exchange.call.body):
        with pytest.raises(VoucherMalformed):
            voucher.unseal(body, paths.VOUCHER_CMS_JSON, dialect=dialect)
    with pytest.raises(VoucherRequestMalformed):
        voucher_request.unseal(granted, paths.VOUCHER_CMS_JSON, dialect=dialect)
