"""Quotes of a TPM in software (swtpm), and the evidence that carries them through the appraisal."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
from collections.abc import Iterator

import pytest

from appliance import tpm
from appliance.binding import tpm_quote
from appliance.binding.tpm_quote import TpmQuote
from appliance.cli import run
from appliance.errors import TpmUnavailable
from appliance.proxy.tpm_quotes import TpmQuotes
from est.keys import spki_sha256
from tests.appliance.owner.test_tpm_key import start

pytestmark = [
    pytest.mark.interop,
    pytest.mark.xdist_group("tpm"),
    pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed (Debian: apt install swtpm)"),
]


@pytest.fixture(scope="module")
def tcti(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, found = start(tmp_path_factory.mktemp("quotes") / "a")
    yield found
    process.terminate()
    process.wait(10)


@pytest.mark.req("A-21", "A-23")
def test_the_quote_of_a_real_tpm_is_believed_for_its_request_alone(tcti: str) -> None:
    nonce, rqh = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    numbers = range(12)  # more than a TPM reads at a time
    made = tpm.quote(tcti, numbers, tpm_quote.qualifying_data(nonce, rqh))
    quote = TpmQuote(made.attest, made.signature, made.key, made.pcrs)
    tpm_quote.check(quote, nonce=nonce, rqh=rqh)
    assert sorted(quote.pcrs) == list(numbers)
    with pytest.raises(tpm_quote.TpmQuoteInvalid):
        tpm_quote.check(quote, nonce=nonce, rqh=nonce)


def test_the_key_is_the_same_every_time_and_another_one_in_another_tpm(
    tcti: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = {spki_sha256(tpm.quote(tcti, [0], b"x").key) for _ in range(2)}
    assert len(keys) == 1
    other, elsewhere = start(tmp_path_factory.mktemp("quotes") / "b")
    try:
        assert spki_sha256(tpm.quote(elsewhere, [0], b"x").key) not in keys
    finally:
        other.terminate()
        other.wait(10)


def test_the_verb_shows_what_a_policy_wants_to_know(tcti: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["proxy", "attestation-key", "--tpm", tcti, "--pcrs", "0,7", "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    made = tpm.quote(tcti, [0, 7], b"x")
    assert shown == {
        "attestation_key": spki_sha256(made.key).hex(),
        "pcrs": {str(number): value.hex() for number, value in made.pcrs.items()},
    }


def test_without_a_tpm_there_is_no_quote_and_the_proxy_goes_on(tcti: str) -> None:
    class Request:
        nonce, rqh = "n", "r"

    async def about(where: str) -> TpmQuote | None:
        return await TpmQuotes(where, (0, 7)).about(Request())  # type: ignore[arg-type]

    assert asyncio.run(about("swtpm:path=/nonexistent")) is None
    found = asyncio.run(about(tcti))
    assert found is not None
    tpm_quote.check(found, nonce="n", rqh="r")
    with pytest.raises(TpmUnavailable):
        tpm.quote("swtpm:path=/nonexistent", [0], b"")
