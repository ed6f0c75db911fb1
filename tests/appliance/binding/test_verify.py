"""Offline verification of the worked example: it holds at its clock, and every changed fact has its own refusal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.binding import dual_identity, jws, verify
from appliance.binding.errors import Malformed, SignatureInvalid
from appliance.binding.facts import Limits, Model, OwnerKey, OwnerRecord
from est.chains import EndEntityPolicy, TrustAnchors, check_end_entity
from est.errors import Refusal
from tests.appliance.binding.example import (
    AGENT,
    AT,
    CA,
    DOMAIN,
    EXAMPLE,
    KEYS,
    LEAF,
    ORIGIN,
    OTHER_AGENT,
    OTHER_OWNER,
    OTHER_PROXY,
    OWNER,
    OWNER_RECORD,
    PROXY,
    VECTORS,
    certificate,
    owners,
    resign,
)

NOW = EXAMPLE["now"]
STEPS = ["chain", "name", "extension", "owner", "approval", "binding"]


def _verify(leaf: x509.Certificate = LEAF, **facts: object) -> verify.Report:
    given = {"domain": DOMAIN, "owners": owners, "at": AT, "intermediates": (), **facts}
    return verify.verify_certificate(
        leaf, given.pop("intermediates"), given.pop("domain"), given.pop("owners"), **given
    )


def _refusal(leaf: x509.Certificate = LEAF, **facts: object) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        _verify(leaf, **facts)
    return refusal.value


def _approved(changes: Mapping[str, object], key: str = "owner", **header: object) -> x509.Certificate:
    """The certificate around an approval with these claims changed and signed again."""
    return certificate(dual={"approval": resign(EXAMPLE["approval"], key, changes, header=header)})


@pytest.mark.req("A-30", "A-34", "W-4", "W-11")
def test_the_worked_example_verifies_at_its_clock_step_by_step() -> None:
    report = _verify(ear=EXAMPLE["ear"])
    assert [name for name, _ in report.steps] == STEPS
    assert (report.agent_id, report.owner_id, report.model) == (AGENT, OWNER, Model.AGENT_MEDIATED)
    assert report.owner_key_jkt == EXAMPLE["jkt"]["owner"]
    assert report.approval is not None and report.approval.token == EXAMPLE["approval"]
    assert _verify(certificate()).agent_id == AGENT


@pytest.mark.req("A-30", "A-34", "A-101")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": OTHER_OWNER}, "approval-wrong-owner"),
        ({"sub": OTHER_AGENT}, "approval-for-other-agent"),
        ({"aud": "https://ids.other.example/v1"}, "approval-wrong-audience"),
        ({"iat": NOW + 10, "exp": NOW + 600}, "issued-outside-approval"),
        ({"iat": NOW - 900, "exp": NOW - 121}, "issued-outside-approval"),
        ({"exp": NOW - 1}, "claim-malformed"),
        ({"jti": "short"}, "token-id-too-short"),
        ({"nonce": "short"}, "claim-malformed"),
        ({"cnf": {"jkt": EXAMPLE["jkt"]["proxy"]}}, "approval-for-other-key"),
        ({"rqh": "short"}, "claim-malformed"),
        ({"purpose": "standing"}, "claim-malformed"),
        ({"model": "server-mediated"}, "approval-for-other-model"),
        ({"profiles": ["wit"]}, "profile-not-approved"),
        ({"ttl": 3599}, "lifetime-not-approved"),
        ({"decision": "deny"}, "approval-denied"),
        ({"proxy": "x"}, "identifier-malformed"),
        ({"department": "R&D"}, "claim-unknown"),
    ],
    ids=lambda value: re.sub(r"<.*? at 0x.*?>", "object", str(value))[:50],
)
def test_each_claim_changed_and_signed_again_has_its_own_refusal(changes: Mapping[str, object], reason: str) -> None:
    assert _refusal(_approved(changes)).reason == reason


def test_claims_that_only_the_server_can_compare_still_pass_offline() -> None:
    for changes in (
        {"jti": "A" * 22},
        {"nonce": "B" * 43},
        {"rqh": jws.s256("x")},
        {"proxy": OTHER_PROXY},
        {"ttl": 9000},
    ):
        _verify(_approved(changes))


@pytest.mark.req("A-30", "A-94", "A-101")
def test_approval_by_anyone_but_the_registered_key_is_refused() -> None:
    assert _refusal(_approved({}, "stranger")).reason == "signature-invalid"
    assert _refusal(_approved({}, typ="agent-request+jwt")).reason == "token-type-wrong"
    assert _refusal(_approved({}, kid=EXAMPLE["jkt"]["agent"])).reason == "key-id-mismatch"
    assert _refusal(_approved({}, crit=["x"])).reason == "critical-header-unknown"
    assert _refusal(certificate(dual={"approval": EXAMPLE["agent_request"]})).reason == "signature-invalid"


@pytest.mark.req("A-30", "W-11")
@pytest.mark.parametrize(
    ("dual", "reason", "step"),
    [
        ({"owner_id": OTHER_OWNER}, "owner-unknown", "owner"),
        ({"owner_key": KEYS["stranger"]}, "owner-key-unknown", "owner"),
        ({"owner_key": KEYS["agent"]}, "owner-key-unknown", "owner"),
        ({"model": Model.OWNER_MEDIATED}, "approval-for-other-model", "binding"),
        ({"model": Model.STANDING, "approval": bytes(32)}, "approval-not-inside", "approval"),
        ({"approval": "a.b.c"}, "malformed", "approval"),
    ],
    ids=lambda value: re.sub(r"<.*? at 0x.*?>", "object", str(value))[:50],
)
def test_each_field_of_the_extension_changed_and_issued_again(dual: dict, reason: str, step: str) -> None:
    refusal = _refusal(certificate(dual=dual))
    assert (refusal.reason, refusal.fields["step"]) == (reason, step)


@pytest.mark.req("A-21")
def test_attestation_result_is_the_one_that_the_certificate_names() -> None:
    assert _refusal(ear=resign(EXAMPLE["ear"], "verifier")).reason == "ear-digest-mismatch"
    assert _refusal(certificate(dual={"ear_digest": None}), ear=EXAMPLE["ear"]).reason == "ear-digest-mismatch"
    assert _refusal(certificate(dual={"ear_digest": bytes(32)}), ear=EXAMPLE["ear"]).reason == "ear-digest-mismatch"


@pytest.mark.req("A-2", "A-30")
def test_missing_extensions_are_told_apart() -> None:
    assert _refusal(certificate(extensions=[])).reason == "dual-identity-missing"
    big, small = (one for one, _ in dual_identity.extensions(dual_identity.of_certificate(LEAF)))
    assert _refusal(certificate(extensions=[big])).reason == "owner-ids-differ"
    broken = x509.UnrecognizedExtension(big.oid, big.value + b"\x00")
    assert _refusal(certificate(extensions=[broken, small])).reason == "malformed"


URI = x509.UniformResourceIdentifier


@pytest.mark.req("W-1", "W-3", "W-4")
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([URI(AGENT), URI(OWNER)], "certificate-names-wrong"),
        ([URI(AGENT), URI(AGENT)], "certificate-names-wrong"),
        ([URI(AGENT), x509.DNSName("radius.campus.example")], "certificate-names-wrong"),
        ([x509.DNSName("radius.campus.example")], "certificate-names-wrong"),
        ([URI(OWNER)], "identifier-kind-wrong"),
        ([URI(PROXY)], "identifier-kind-wrong"),
        ([URI(AGENT.replace("campus", "other"))], "origin-mismatch"),
        ([URI(AGENT.replace("spiffe", "wimse"))], "origin-mismatch"),
        ([URI(AGENT + "/x")], "identifier-malformed"),
        ([URI(AGENT.replace("agent/0b", "agent/%30b"))], "identifier-malformed"),
        ([URI(OTHER_AGENT)], "approval-for-other-agent"),
    ],
    ids=lambda value: re.sub(r"<.*? at 0x.*?>", "object", str(value)),
)
def test_certificate_names_exactly_one_agent_of_this_origin(names: list[x509.GeneralName], reason: str) -> None:
    assert _refusal(certificate(names=names)).reason == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": KEYS["proxy"]}, "approval-for-other-key"),
        ({"not_after": LEAF.not_valid_after_utc + timedelta(seconds=1)}, "lifetime-not-approved"),
        ({"not_before": datetime.fromtimestamp(NOW - 61, UTC)}, "issued-outside-approval"),
        ({"purposes": (ExtendedKeyUsageOID.CLIENT_AUTH,)}, "certificate-purpose-wrong"),
        ({"purposes": ()}, "certificate-purpose-wrong"),
        ({"usage_ca": True}, "certificate-purpose-wrong"),
        ({"crl_sign": True}, "certificate-usage-wrong"),
        ({"has_usage": False}, "certificate-usage-wrong"),
        ({"ca": "stranger"}, "signature-invalid"),
    ],
    ids=lambda value: re.sub(r"<.*? at 0x.*?>", "object", str(value)),
)
def test_each_field_of_the_certificate_changed_and_issued_again(changes: dict, reason: str) -> None:
    assert _refusal(certificate(**changes)).reason == reason


SVIDS = VECTORS / "wit" / "go-spiffe" / "x509svid"


@pytest.mark.parametrize("name", ["ca-true", "cert-sign", "no-digital-signature"])
def test_published_wrong_svid_is_no_end_entity(name: str) -> None:
    leaf = x509.load_pem_x509_certificate((SVIDS / f"wrong-leaf-{name}.pem").read_bytes())
    with pytest.raises(Refusal) as refusal:
        check_end_entity(leaf, EndEntityPolicy())
    assert refusal.value.reason == "certificate-purpose-wrong"


@pytest.mark.req("W-3")
def test_published_svid_without_a_name_is_refused() -> None:
    leaf = x509.load_pem_x509_certificate((SVIDS / "wrong-leaf-empty-id.pem").read_bytes())
    with pytest.raises(Refusal) as refusal:
        verify.agent_id_of(leaf)
    assert refusal.value.reason == "certificate-names-wrong"


@pytest.mark.req("W-3")
def test_published_svid_names_its_one_identity() -> None:
    for name in ("good-leaf-only", "good-cert-and-key", "good-leaf-and-intermediate"):
        leaf = x509.load_pem_x509_certificates((SVIDS / f"{name}.pem").read_bytes())[0]
        assert verify.agent_id_of(leaf) == "spiffe://example.org/workload-1"
    with pytest.raises(Malformed):
        verify.read_certificate((SVIDS / "corrupt-cert.pem").read_bytes())


@pytest.mark.req("A-94")
def test_credential_whose_owner_key_is_the_agent_s_own_is_refused() -> None:
    kid = EXAMPLE["jkt"]["agent"]
    record = replace(OWNER_RECORD, keys=(OwnerKey(kid, KEYS["agent"]),))
    approval = resign(EXAMPLE["approval"], "agent", header={"kid": kid})
    leaf = certificate(dual={"owner_key": KEYS["agent"], "approval": approval})
    assert _refusal(leaf, owners=lambda _: record).reason == "self-approval"


def _record(**changes: object) -> OwnerRecord:
    key = OwnerKey(EXAMPLE["jkt"]["owner"], KEYS["owner"])
    return replace(OWNER_RECORD, keys=(replace(key, **changes),))


@pytest.mark.req("A-32", "A-95", "W-11")
@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "owner-unknown"),
        (replace(OWNER_RECORD, owner_id=OTHER_OWNER), "owner-unknown"),
        (replace(OWNER_RECORD, state="suspended"), "owner-not-active"),
        (replace(OWNER_RECORD, keys=()), "owner-key-unknown"),
        (_record(public_key=KEYS["agent"]), "owner-key-unknown"),
        (_record(state="revoked"), "owner-key-not-valid"),
        (_record(not_after=datetime.fromtimestamp(NOW - 1, UTC)), "owner-key-not-valid"),
        (_record(not_before=datetime.fromtimestamp(NOW + 1, UTC)), "owner-key-not-valid"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_owner_is_believed_only_from_the_registry(record: OwnerRecord | None, reason: str) -> None:
    assert _refusal(owners=lambda _: record).reason == reason


@pytest.mark.req("A-32")
def test_retired_key_still_stands_behind_what_it_signed_before() -> None:
    _verify(owners=lambda _: _record(state="retired", not_after=datetime.fromtimestamp(NOW + 1, UTC)))


@pytest.mark.req("A-41")
def test_verifier_may_demand_hardware() -> None:
    assert _refusal(limits=Limits(software_owner_keys=False)).reason == "owner-key-in-software"


@pytest.mark.req("W-4", "A-6")
def test_anchor_and_server_are_chosen_by_the_verifier() -> None:
    assert _refusal(domain=replace(DOMAIN, anchors=TrustAnchors([]))).reason == "signature-invalid"
    assert _refusal(domain=replace(DOMAIN, anchors=TrustAnchors([])), intermediates=(CA,)).reason == "chain-not-trusted"
    assert _refusal(domain=replace(DOMAIN, origin="wimse://campus.example")).reason == "origin-mismatch"
    assert _refusal(domain=replace(DOMAIN, server_id=ORIGIN)).reason == "approval-wrong-audience"


@pytest.mark.parametrize("seconds", [-66, 3601])
def test_clock_outside_the_certificate_s_life(seconds: int) -> None:
    refusal = _refusal(at=AT + timedelta(seconds=seconds))
    assert (refusal.reason, refusal.fields["step"]) == ("certificate-outside-validity", "chain")


@pytest.mark.slow
@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_the_certificate_is_signature_invalid_or_malformed(bit: int) -> None:
    der = LEAF.public_bytes(Encoding.DER)
    for at in range(len(der)):
        damaged = der[:at] + bytes((der[at] ^ 1 << bit,)) + der[at + 1 :]
        with pytest.raises((SignatureInvalid, Malformed)):
            _verify(verify.read_certificate(damaged))


@pytest.mark.req("A-34")
def test_every_flipped_byte_of_the_approval_inside_is_signature_invalid_or_malformed() -> None:
    """Even where the CA itself signs around the damaged approval."""
    approval = EXAMPLE["approval"].encode()
    for at in range(0, len(approval), 5):
        damaged = approval[:at] + bytes((approval[at] ^ 1,)) + approval[at + 1 :]
        with pytest.raises((SignatureInvalid, Malformed)):
            _verify(certificate(dual={"approval": damaged.decode("ascii")}))
