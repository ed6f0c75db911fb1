"""One ordered record per bootstrap: steps, durations, retries, artefacts, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.console.timeline import timeline_text
from appliance.registrar import errors as registrar_errors
from appliance.registrar import records
from appliance.registrar.hints import HINTS, hint
from appliance.registrar.maker_options import Options
from appliance.settings import describe_settings
from appliance.store.pledges import MAX_STEPS, PledgeRecord
from appliance.web.problems import all_leaves
from brski import errors as brski_errors
from brski.errors import MasaTimedOut
from est.exchange import Reply
from tests import reference
from tests.appliance.registrar.world import ADMIN, World, play
from tests.support import NOW


def record(state: str = "seen") -> PledgeRecord:
    return PledgeRecord("id", "ab", "PX-1", "cd", "acme", state, NOW, NOW)


@pytest.mark.req("B-257")
def test_a_whole_bootstrap_is_shown_in_order_with_its_artefacts(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.bootstrap()
        row = await world.row()
        assert [one["step"] for one in row["timeline"]] == [
            "request-received", "masa-asked", "voucher-granted", "voucher-confirmed", "audit-passed",
            "certificate-issued",
        ]  # fmt: skip
        assert {one["bootstrap"] for one in row["timeline"]} == {1}
        assert all(one["after_ms"] >= 0 for one in row["timeline"][1:]) and "ms" in row["timeline"][2]
        assert row["timeline"][2]["code"] == "proximity"
        found = row["artefacts"]
        assert found["pledge_voucher_request"]["assertion"] == "proximity"
        assert found["pledge_voucher_request"]["nonce"] == row["nonce"] == found["voucher"]["nonce"]
        assert "device PX-1" in found["pledge_voucher_request"]["signer"]
        assert found["registrar_voucher_request"]["idevid_issuer"] == row["issuer"]
        assert found["voucher"]["pinned"].startswith("CN=") and found["voucher"]["serial_number"] == "PX-1"
        assert row["history"]["accepted"] is True and row["history"]["events"] == 1
        assert row["what_to_do"] == ""
        text = timeline_text(row)
        for word in ("bootstrap 1", "voucher-granted", "the MASA's voucher", "pinned", "judged", "PX-1"):
            assert word in text
        assert "what to do" not in text

    play(tmp_path, story)


def test_a_second_bootstrap_follows_the_first_in_the_same_record(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.bootstrap()
        world.clock.advance(3600)
        await device.voucher()
        row = await world.row()
        assert [one["bootstrap"] for one in row["timeline"]] == [1] * 6 + [2] * 3
        assert "after_ms" not in row["timeline"][6]
        assert "bootstrap 2" in timeline_text(row)

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (Reply(401), "masa-authentication-required", "masa-client-certificate=FILE"),
        (Reply(404), "masa-refused", "was sold to you"),
        (Reply(500), "masa-unavailable", "wait, the pledge asks again"),
        (None, "masa-timed-out", "wait, the pledge asks again"),
    ],
)
def test_a_bootstrap_that_is_stuck_at_its_masa_says_what_to_do(
    tmp_path: Path, answer: Reply | None, code: str, words: str
) -> None:
    async def story(world: World) -> None:
        def fail(call: object) -> Reply:
            if answer is None:
                raise MasaTimedOut("the MASA did not answer in time")
            return answer

        world.masa.answer = fail
        device = world.device()
        call = device.request()
        for _ in range(3):
            await world.handle(call, device.peer)
        row = await world.row()
        last = row["timeline"][-1]
        assert (last["step"], last["code"], last["times"]) == ("masa-failed", code, 3)
        assert words in last["hint"] and row["what_to_do"] == last["hint"]
        (listed,) = await world.part.inventory.pledges()
        assert listed["what_to_do"] == last["hint"] and "timeline" not in listed
        text = timeline_text(row)
        assert text.splitlines()[-1] == f"what to do: {last['hint']}"

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (Reply(200, "text/html", body=b"<html>"), "the MASA answered in another format"),
        (Reply(307, "", {"location": "https://elsewhere.example/"}), "the MASA answered 307"),
    ],
)
def test_one_reason_with_many_causes_is_told_apart_in_the_timeline(tmp_path: Path, answer: Reply, detail: str) -> None:
    async def story(world: World) -> None:
        device = world.device()
        first, world.masa.answer = world.masa.answer, lambda call: answer
        call = device.request()
        await world.handle(call, device.peer)
        last = (await world.row())["timeline"][-1]
        assert (last["step"], last["code"]) == ("masa-failed", "masa-answer-invalid")
        assert last["facts"]["detail"] == detail
        assert f"masa-answer-invalid (detail {detail}" in timeline_text(await world.row())
        # the same where the voucher came, and then the history did not
        world.masa.answer = first
        assert (await world.handle(call, device.peer)).status == 200
        world.masa.answer = lambda call: answer
        await device.status()
        last = (await world.row())["timeline"][-1]
        assert (last["step"], last["facts"]["detail"]) == ("audit-log-unavailable", detail)

    play(tmp_path, story)


def test_a_pledge_that_took_its_voucher_and_fell_silent_is_called_so_after_a_while(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.device().voucher()
        assert (await world.row())["what_to_do"] == ""
        world.clock.advance(600)
        assert "MASA anchors" in (await world.row())["what_to_do"]

    play(tmp_path, story)


def test_a_refused_request_shows_what_was_claimed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        first, second = world.device("PX-1"), world.device("PX-2")
        await world.handle(second.request(), first.peer)
        (step,) = (await world.row())["timeline"]
        assert (step["step"], step["code"]) == ("request-refused", "request-signer-foreign")
        assert step["hint"].startswith("the request was signed by another key")
        await world.part.inventory.refuse("PX-1", actor=ADMIN)
        assert (await world.row())["what_to_do"] == "to let it in: appliance pledges admit PX-1"

    play(tmp_path, story)


def test_retries_in_turn_are_counted_and_never_fill_the_timeline() -> None:
    one = record()
    for _ in range(500):
        for step in ("masa-asked", "masa-failed"):
            one = records.noted(one, step, now=NOW, code="x")
    assert [(step.step, step.times) for step in one.steps] == [("masa-asked", 500), ("masa-failed", 500)]
    for number in range(200):
        one = records.noted(one, f"step-{number}", now=NOW)
    assert len(one.steps) == MAX_STEPS


def test_every_refusal_of_the_registrar_has_its_line() -> None:
    # the MASA's and the pledge's own refusals are for other people; these modules raise at the registrar
    elsewhere = {
        "announcement-invalid", "registrar-not-authorized", "registrar-unauthenticated", "registrar-chain-broken",
        "prior-request-invalid", "nonce-mismatch", "device-unknown", "device-claimed", "device-blocked", "never-owner",
        "pin-forbidden", "voucher-pending", "registrar-refused", "voucher-for-other-device",
        "voucher-for-other-request", "voucher-nonceless", "voucher-expired", "voucher-not-yet-valid",
        "assertion-not-acceptable", "domain-not-pinned",
    }  # fmt: skip
    # inside the reader of the second format; outside they are voucher-request-malformed and the like
    elsewhere |= {"jws-malformed", "jws-not-accepted", "jws-signature-invalid"}
    # what an administrator's own command is told says it in its detail
    commands = {
        "shared-keys-unusable",
        "manufacturer-unusable",
        "device-file-refused",
        "prefetch-not-possible",
        "dialect-unknown",
    }
    modules = (registrar_errors.__name__, brski_errors.__name__)
    reasons = {leaf.reason for leaf in all_leaves() if leaf.__module__ in modules}
    assert reasons - elsewhere - commands - set(HINTS) == set()
    for reason in HINTS:
        line = hint(reason, device="PX-1", maker="Acme")
        assert line and "\n" not in line and "{" not in line
    # and every command and setting in them exists
    text = "\n".join(hint(reason) for reason in HINTS)
    known = {" ".join(words) for words, _ in reference.commands()}
    assert set(re.findall(r"appliance (\w+ \w+)", text)) - known == set()
    assert {"pledges admit", "pledges override", "manufacturers set"} <= set(re.findall(r"appliance (\w+ \w+)", text))
    settings = {dotted for dotted, _, _ in describe_settings()}
    assert set(re.findall(r"registrar\.\w+", text)) - settings == set()
    options = {name.replace("_", "-") for name in Options.model_fields}
    assert set(re.findall(r"([a-z-]+)=[A-Za-z.]", text)) - options == set()


def test_a_hint_can_be_pasted_into_a_shell_whatever_a_certificate_says() -> None:
    line = hint("waiting-for-admission", device="$(rm -rf ~)'x\n", maker="Acme")
    assert "admit '$(rm -rf ~)'\\''x?'" in line and "\n" not in line
    assert "set 'Acme & Sons' masas" in hint("masa-not-allowed", maker="Acme & Sons")
    assert hint("no-such-reason").startswith("look up the reason at /problems/no-such-reason")
    assert hint("") == ""
