"""What a TPM's quote is worth under an appraisal policy: machines by their keys and their registers."""

from __future__ import annotations

import pytest

from appliance.binding import evidence
from appliance.binding.ear import Tier, tier_of
from appliance.binding.evidence import Evidence
from appliance.binding.tpm_quote import TpmQuote
from appliance.identity.appraisal import check_tier, judge
from appliance.identity.appraisal_policy import AppraisalPolicy, read_appraisal_policy
from appliance.identity.errors import EvidenceContraindicated
from tests.appliance.binding.example import EXAMPLE, KEYS, PROXY
from tests.appliance.binding.test_tpm_quote import KEY, PCRS, attest, signed

QUOTE = signed(attest())
PLAIN = evidence.unseal(EXAMPLE["evidence_eat"], KEYS["proxy"])._replace(quote=None)
SHOWN = PLAIN._replace(quote=QUOTE)
OTHER_KEY = PLAIN._replace(quote=TpmQuote(QUOTE.attest, QUOTE.signature, KEYS["proxy"], QUOTE.pcrs))


def policy(rules: str, *, key: str = QUOTE.key_sha256.hex(), proxy: str = PROXY) -> AppraisalPolicy:
    return read_appraisal_policy(
        f'version = 1\nid = "urn:x"\n[default]\n{rules}\n[attestation_keys]\n"{proxy}" = "{key}"\n'
    )


def platform(seen: Evidence, by: AppraisalPolicy) -> dict[str, Tier]:
    return {claim: tier_of(value) for claim, value in judge(seen, "brski", by, "")["platform"].vector.items()}


GOOD_SEVEN = f'pcrs = {{ 7 = ["{PCRS[7].hex()}", "{"00" * 32}"] }}'
BAD_SEVEN = f'pcrs = {{ 7 = ["{"00" * 32}"] }}'
UNSEEN_NINE = f'pcrs = {{ 9 = ["{"00" * 32}"] }}'
A, W, C = Tier.AFFIRMING, Tier.WARNING, Tier.CONTRAINDICATED


@pytest.mark.req("A-21", "A-24")
@pytest.mark.parametrize(
    ("seen", "rules", "told"),
    [
        (PLAIN, "", {}),
        (SHOWN, "", {"hardware": A}),
        (OTHER_KEY, "", {}),
        (PLAIN, 'tpm = "warning"', {"hardware": W}),
        (OTHER_KEY, 'tpm = "warning"', {"hardware": W}),
        (SHOWN, 'tpm = "contraindicated"', {"hardware": A}),
        (SHOWN, GOOD_SEVEN, {"hardware": A, "configuration": A}),
        (SHOWN, BAD_SEVEN, {"hardware": A, "configuration": C}),
        (SHOWN, UNSEEN_NINE + '\nunknown_pcrs = "warning"', {"hardware": A, "configuration": W}),
        (PLAIN, GOOD_SEVEN, {"configuration": C}),
        (OTHER_KEY, GOOD_SEVEN, {"configuration": C}),
    ],
)
def test_machine(seen: Evidence, rules: str, told: dict[str, Tier]) -> None:
    assert platform(seen, policy(rules)) == {"instance-identity": A, **told}


def test_a_key_counts_for_the_proxy_that_it_is_listed_for_alone() -> None:
    elsewhere = policy('tpm = "contraindicated"', proxy=PROXY[:-1] + ("0" if PROXY[-1] != "0" else "1"))
    assert platform(SHOWN, elsewhere)["hardware"] is C
    with pytest.raises(EvidenceContraindicated) as caught:
        check_tier(judge(SHOWN, "brski", elsewhere, ""))
    assert caught.value.fields["claims"] == ["platform.hardware"]
    assert KEY.public_key() == QUOTE.key
