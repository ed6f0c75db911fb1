"""What you see is what you sign: the card comes from the request's own bytes and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from appliance.binding import approval, jws, request
from appliance.binding.errors import BindingError, Malformed, SignatureInvalid
from appliance.owner.review import ReviewCard, render, review
from est.errors import Refusal
from tests.appliance.binding.example import (
    AGENT,
    AT,
    EXAMPLE,
    KEYS,
    OTHER_OWNER,
    OTHER_PROXY,
    OWNER,
    PROXY,
    SERVER,
    flips,
    resign,
)

TOKEN = EXAMPLE["agent_request"]
NOW = EXAMPLE["now"]
CSR_DER = jws.unbase64url(EXAMPLE["csr_der_b64u"], "csr")
LAST = approval.unseal(EXAMPLE["approval"], KEYS["owner"])


def _review(token: bytes | str = TOKEN, **facts: object) -> ReviewCard:
    return review(token, **{"owner_id": OWNER, "now": AT, "csr_der": CSR_DER, "server_id": SERVER, **facts})


def _changed(**changes: object) -> str:
    return resign(TOKEN, "agent", changes)


@pytest.mark.req("A-90", "A-92")
def test_every_field_that_will_be_signed_is_on_the_card() -> None:
    card = _review(_changed(label="nightly notes", txn="job-7"), proxy=PROXY, network_class="VLAN rnd")
    text = render(card)
    named = (
        AGENT,
        EXAMPLE["jkt"]["agent"],
        OWNER,
        SERVER,
        PROXY,
        "agent-mediated",
        "VLAN rnd",
        "job-7",
        card.short_code,
    )
    for shown in (*named, "job-7", "X.509", "WIT", "1 h", "first credential", "2026-01-01 00:05:00 UTC", "checked"):
        assert shown in text
    assert 'claimed by agent   "nightly notes"' in text


@pytest.mark.req("A-92")
def test_short_code_is_the_one_that_the_other_side_computes() -> None:
    assert _review().short_code == request.short_code(request.unseal(TOKEN).rqh)


@pytest.mark.req("A-90")
def test_card_is_made_from_bytes_or_text_with_a_line_end() -> None:
    assert _review(TOKEN.encode() + b"\n") == _review()
    with pytest.raises(Malformed):
        _review(b"\xff\xfe")


@pytest.mark.req("A-90")
def test_nothing_is_shown_of_a_request_whose_possession_is_not_proven() -> None:
    for at, damaged in enumerate(flips(TOKEN)):
        if at % 7 == 0:
            with pytest.raises((SignatureInvalid, Malformed)):
                _review(damaged)
    with pytest.raises(SignatureInvalid):
        _review(resign(TOKEN, "stranger"))


@pytest.mark.req("A-90")
@pytest.mark.parametrize("text", [jws.s256(TOKEN), "0" * 64, "", EXAMPLE["approval"], EXAMPLE["evidence_eat"]])
def test_a_digest_or_another_object_cannot_be_reviewed(text: str) -> None:
    with pytest.raises(BindingError):
        _review(text)


@pytest.mark.req("A-91")
@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": "https://ids.campus.example/v1" + " " * 60 + "longest life       5 min"}, "request-wrong-audience"),
        ({"aud": "a" * 256}, "request-wrong-audience"),
        ({"sub": AGENT.replace("campus.example", "elsewhere.example")}, "origin-mismatch"),
    ],
)
def test_names_that_could_pass_for_other_lines_of_the_card_are_refused(claims: dict[str, str], reason: str) -> None:
    with pytest.raises(BindingError) as refused:
        _review(_changed(**claims), server_id=None, csr_der=None)
    assert refused.value.reason == reason


@pytest.mark.req("A-91")
@pytest.mark.parametrize(
    "label",
    [
        "\x1b[2Jcleared",
        "line\nowner: bob",
        "a\u202eb",
        "zero\u200bwidth",
        "ünicode",
        "x" * 65,
        "tab\there",
        "\x7f",
        7,
        ["x"],
        "",
    ],
)
def test_label_that_could_deceive_is_refused_before_it_is_shown(label: object) -> None:
    with pytest.raises(BindingError):
        _review(_changed(label=label))


@pytest.mark.req("A-91")
def test_label_cannot_become_a_link() -> None:
    text = render(_review(_changed(label="see https://evil.example/")))
    assert "://" not in text.split("claimed by agent")[1]


@pytest.mark.req("A-91")
def test_rendered_card_is_printable_ascii_and_line_feeds() -> None:
    card = _review(_changed(label="~ !\"#$%&'()<b>"))
    # even where a check were lost, a control character never reaches the terminal
    broken = replace(card, network_class="VLAN\x1b]0;\u202e\r\n owner: bob")
    for text in (render(card), render(broken)):
        assert all(character == "\n" or " " <= character <= "~" for character in text)
    assert len(render(broken).splitlines()) == len(render(card).splitlines())


@pytest.mark.req("A-61", "A-90")
@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"owner_id": OTHER_OWNER}, "owner-mismatch"),
        ({"owner_id": AGENT}, "identifier-kind-wrong"),
        ({"server_id": "https://ids.other.example/v1"}, "request-wrong-audience"),
        ({"now": AT + timedelta(seconds=400)}, "request-expired"),
        ({"now": AT - timedelta(seconds=70)}, "request-not-yet-valid"),
        ({"proxy": OWNER}, "identifier-kind-wrong"),
        ({"csr_der": CSR_DER[:-1] + bytes((CSR_DER[-1] ^ 1,))}, "proof-of-possession-failed"),
        ({"csr_der": b"junk"}, "body-malformed"),
    ],
)
def test_request_that_is_not_for_this_owner_server_or_time(facts: Mapping[str, object], reason: str) -> None:
    with pytest.raises(Refusal) as refusal:
        _review(**facts)
    assert refusal.value.reason == reason


def test_request_without_owner_is_nobody_s_to_approve() -> None:
    with pytest.raises(BindingError) as refusal:
        _review(resign(TOKEN, "agent", without=("owner",)))
    assert refusal.value.reason == "owner-mismatch"


@pytest.mark.req("A-92")
def test_card_tells_what_changed_since_the_last_approval_and_whether_it_widens() -> None:
    same = _review(last=LAST)
    assert same.changes == () and not same.widens
    longer = _review(_changed(ttl=7200), last=LAST)
    assert longer.widens and "longest life: 1 h -> 2 h" in render(longer) and "MORE than before" in render(longer)
    shorter = _review(_changed(ttl=600), last=LAST)
    assert not shorter.widens and "longest life: 1 h -> 10 min" in render(shorter)
    assert _review(last=LAST._replace(profiles=("wit",))).widens
    assert _review(last=LAST._replace(proxy=OTHER_PROXY), proxy=PROXY).widens
    assert not _review(last=LAST, proxy=PROXY).widens
    rotated = _review(last=LAST._replace(jkt=EXAMPLE["jkt"]["proxy"]))
    assert [change.field for change in rotated.changes] == ["agent key"] and not rotated.widens


def test_missing_csr_is_said() -> None:
    assert "not at hand" in render(_review(csr_der=None))
