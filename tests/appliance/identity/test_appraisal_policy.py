from __future__ import annotations

import pytest

from appliance.binding.ear import Tier
from appliance.identity.appraisal_policy import BUILT_IN, AppraisalPolicyInvalid, ClassPolicy, read_appraisal_policy

GOOD = """
version = 1
id = "urn:campus.example:appraisal:2"
[default]
required = ["executable_digest"]
methods = ["brski"]
debug = "warning"
[class.robot]
root = "contraindicated"
key_by_proxy = "contraindicated"
executables = ["%s"]
unknown_executable = "warning"
""" % ("ab" * 32)

PROXY = "spiffe://campus.example/proxy/11111111-1111-4111-8111-111111111111"


def test_a_class_says_only_what_differs_from_the_default() -> None:
    policy = read_appraisal_policy(GOOD)
    robot = policy.for_class("robot")
    assert policy.identifier == "urn:campus.example:appraisal:2"
    assert robot.required == policy.for_class("").required == {"executable_digest"}
    assert robot.methods == {"brski"}
    assert (robot.debug, robot.root, robot.unknown_executable) == (Tier.WARNING, Tier.CONTRAINDICATED, Tier.WARNING)
    assert policy.for_class("other").root is Tier.WARNING
    assert (robot.key_by_proxy, policy.for_class("other").key_by_proxy) == (Tier.CONTRAINDICATED, Tier.AFFIRMING)
    assert policy.for_class("other").executables == frozenset()


def test_the_built_in_policy_asks_for_nothing_special() -> None:
    assert BUILT_IN.for_class("anything") == ClassPolicy()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 2\nid = 'x'",
        "version = 1",
        "version = 1\nid = ''",
        "version = 1\nid = 3",
        "version = 1\nid = 'x'\nextra = 1",
        "version = 1\nid = 'x'\ndefault = 1",
        "version = 1\nid = 'x'\nclass = 1",
        "version = 1\nid = 'x'\n[class.'a b']\n",
        "version = 1\nid = 'x'\n[class.robot]\nunknown = 1",
        "version = 1\nid = 'x'\n[default]\nrequired = 'swname'",
        "version = 1\nid = 'x'\n[default]\nmethods = ['tofu']",
        "version = 1\nid = 'x'\n[default]\nexecutables = ['AB']",
        "version = 1\nid = 'x'\n[default]\nroot = 'none'",
        "version = 1\nid = 'x'\n[default]\nroot = 2",
        "version = 1\nid = 'x'\n[default]\nkey_by_proxy = 'never'",
        "version = 1\nid = 'x'\n[default]\nrequired = ['colour']",
        "version = 1\nid = 'x'\n[default]\nwarning_seconds = 0",
        "version = 1\nid = 'x'\n[default]\nwarning_seconds = true",
        "version = 1\nid = 'x'\n[default]\ntpm = 'perhaps'",
        "version = 1\nid = 'x'\n[default]\npcrs = ['ab']",
        "version = 1\nid = 'x'\n[default.pcrs]\n24 = []",
        "version = 1\nid = 'x'\n[default.pcrs]\n7 = ['ab']",
        "version = 1\nid = 'x'\n[default]\nunknown_pcrs = 1",
        "version = 1\nid = 'x'\nattestation_keys = 1",
        "version = 1\nid = 'x'\n[attestation_keys]\n'spiffe://campus.example/agent/x' = '%s'" % ("ab" * 32),
        "version = 1\nid = 'x'\n[attestation_keys]\n'" + PROXY + "' = 'ab'",
        "version = 1\nversion = 1",
        "a = " + "[" * 5000,
        "x" * 300_000,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(AppraisalPolicyInvalid):
        read_appraisal_policy(text)
