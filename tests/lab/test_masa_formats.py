"""The mock MASA over real HTTPS, asked in JWS: it answers in the format asked, and misbehaves in it too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from brski import Assertion, VoucherSignatureInvalid, jws, paths
from tests.lab.test_mock_masa import KNOBS, Desk, with_desk

JWS = paths.VOUCHER_JWS_JSON


def in_jws(at: Desk) -> Desk:
    at.media_type = JWS
    return at


@pytest.mark.req("B-201", "B-202", "B-204", "B-211", "B-441", "B-447")
def test_masa_answers_in_jws_when_asked_in_jws(tmp_path: Path) -> None:
    async def story(at: Desk) -> None:
        sent, exchange = in_jws(at).ask()
        answer = await at.send(exchange.call)
        assert (answer.status, answer.media_type) == (200, JWS)
        assert jws.unseal(answer.body).algorithm == "ES256"
        granted = exchange.conclude(answer, at.now)
        accepted = at.pledge.accept_voucher(exchange.reply(granted), sent, at.domain.tls_chain, now=at.now)
        assert accepted.assertion is Assertion.PROXIMITY
        assert len(exchange.read_audit_log(await at.send(exchange.audit_log_call)).events) == 1

    with_desk(tmp_path, story)


@pytest.mark.req("B-226", "B-227", "B-228")
def test_format_and_label_go_together(tmp_path: Path) -> None:
    async def story(at: Desk) -> None:
        _, exchange = in_jws(at).ask()
        call = exchange.call
        for wrong, status in [
            (replace(call, media_type=paths.VOUCHER_CMS_JSON, headers={}), 400),
            (replace(call, media_type="application/voucher-cose+cbor"), 415),
            (replace(call, media_type="application/jose+json"), 415),
            (replace(call, headers={"accept": paths.VOUCHER_CMS_JSON}), 406),
            (replace(call, body=b"{}"), 400),
        ]:
            assert (await at.send(wrong)).status == status
        assert (await at.send(replace(call, headers={"accept": f"{paths.VOUCHER_CMS_JSON}, {JWS}"}))).status == 200

    with_desk(tmp_path, story)


@pytest.mark.req("B-313", "B-321", "B-444")
@pytest.mark.parametrize("knob", ["foreign-signer", "tampered", "wrong-serial", "wrong-nonce", "expired", "wrong-pin"])
def test_misbehaviour_in_vouchers_is_noticed_in_jws_as_well(knob: str, tmp_path: Path) -> None:
    story, noticed = KNOBS[knob]

    async def told(at: Desk) -> object:
        return await story(in_jws(at))

    assert with_desk(tmp_path, told, knob) == noticed


def test_tampered_means_the_signature_and_not_the_frame(tmp_path: Path) -> None:
    async def story(at: Desk) -> None:
        _, exchange = in_jws(at).ask()
        answer = await at.send(exchange.call)
        with pytest.raises(VoucherSignatureInvalid):
            exchange.conclude(answer, at.now)

    with_desk(tmp_path, story, "tampered")
