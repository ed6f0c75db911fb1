"""The agent request: possession, shape, and each fact a server checks, changed and signed again one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.binding import jws, renewal, request
from appliance.binding.errors import BindingError, CsrKeyMismatch, Malformed, SignatureInvalid
from est import csr
from est.errors import EstError
from est.signer import KeySigner
from tests.appliance.binding.example import (
    AGENT,
    AT,
    EXAMPLE,
    KEYS,
    NONCE,
    ORIGIN,
    OTHER_AGENT,
    OTHER_OWNER,
    OTHER_PROXY,
    OWNER,
    PROXY,
    SERVER,
    flips,
    private,
    resign,
    signer,
)

TOKEN = EXAMPLE["agent_request"]
NOW = EXAMPLE["now"]
CSR_DER = jws.unbase64url(EXAMPLE["csr_der_b64u"], "csr")


def _check(token: str = TOKEN, **facts: object) -> request.AgentRequest:
    found = request.unseal(token)
    given = {
        "csr": csr.read(CSR_DER),
        "nonce": NONCE,
        "server_id": SERVER,
        "origin": ORIGIN,
        "proxy_id": PROXY,
        "now": AT,
        **facts,
    }
    request.check(found, **given)
    return found


def _reason(token: str = TOKEN, **facts: object) -> str:
    with pytest.raises(BindingError) as refusal:
        _check(token, **facts)
    return refusal.value.reason


@pytest.mark.req("A-13", "A-15")
def test_the_published_request_passes_at_its_clock() -> None:
    found = _check()
    assert (found.sub, found.owner, found.jkt) == (AGENT, OWNER, EXAMPLE["jkt"]["agent"])
    assert found.profiles == ("x509", "wit") and found.ttl == 3600 and found.model == "agent-mediated"


@pytest.mark.req("A-13", "A-101")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sub": OTHER_AGENT}, "request-for-other-agent"),
        ({"sub": AGENT.replace("spiffe", "wimse")}, "origin-mismatch"),
        ({"sub": AGENT.replace("campus", "other")}, "origin-mismatch"),
        ({"sub": OWNER}, "identifier-kind-wrong"),
        ({"sub": AGENT.upper()}, "identifier-malformed"),
        ({"owner": OTHER_OWNER}, "agent-owner-mismatch"),
        ({"owner": OWNER.replace("campus", "other")}, "origin-mismatch"),
        ({"owner": AGENT}, "identifier-kind-wrong"),
        ({"aud": "https://ids.other.example/v1"}, "request-wrong-audience"),
        ({"aud": [SERVER]}, "claim-malformed"),
        ({"iat": NOW + 70, "exp": NOW + 300}, "request-not-yet-valid"),
        ({"exp": NOW + 86_401}, "request-window-too-long"),
        ({"iat": NOW - 400, "exp": NOW - 60}, "request-expired"),
        ({"exp": NOW}, "claim-malformed"),
        ({"iat": str(NOW)}, "claim-malformed"),
        ({"iat": True}, "claim-malformed"),
        ({"iat": NOW + 0.5}, "claim-malformed"),
        ({"exp": 10**18}, "claim-malformed"),
        ({"jti": "short"}, "token-id-too-short"),
        ({"jti": "with space and more text"}, "claim-malformed"),
        ({"nonce": "B" * 43}, "nonce-unknown"),
        ({"nonce": "short"}, "claim-malformed"),
        ({"model": "server-mediated"}, "model-not-offered"),
        ({"model": "standing"}, "claim-malformed"),
        ({"purpose": "renew"}, "renewal-proof-missing"),
        ({"purpose": "revoke"}, "claim-malformed"),
        ({"prev": "a.b.c"}, "renewal-proof-not-expected"),
        ({"profiles": ["wit"]}, "csr-not-expected"),
        ({"profiles": []}, "claim-malformed"),
        ({"profiles": ["x509", "x509"]}, "claim-malformed"),
        ({"profiles": ["x509", "ssh"]}, "claim-malformed"),
        ({"profiles": "x509"}, "claim-malformed"),
        ({"ttl": 0}, "claim-malformed"),
        ({"ttl": -1}, "claim-malformed"),
        ({"ttl": 91 * 86_400}, "claim-malformed"),
        ({"ttl": "3600"}, "claim-malformed"),
        ({"csr_s256": jws.s256(b"another")}, "csr-mismatch"),
        ({"csr_s256": "short"}, "claim-malformed"),
        ({"label": "x" * 65}, "claim-malformed"),
        ({"label": "two\nlines"}, "claim-malformed"),
        ({"label": "ünicode"}, "claim-malformed"),
        ({"label": "\u202etxt.exe"}, "claim-malformed"),
        ({"label": "zero\u200bwidth"}, "claim-malformed"),
        ({"txn": "a b"}, "claim-malformed"),
        ({"vlan": "20"}, "claim-unknown"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_each_claim_changed_and_signed_again_has_its_own_refusal(changes: Mapping[str, object], reason: str) -> None:
    assert _reason(resign(TOKEN, "agent", changes), agent_owner=OWNER) == reason


@pytest.mark.parametrize("claim", ["sub", "aud", "iat", "exp", "jti", "nonce", "model", "purpose", "profiles", "ttl"])
def test_each_required_claim_taken_away_is_missing(claim: str) -> None:
    with pytest.raises(BindingError) as refusal:
        _check(resign(TOKEN, "agent", without=(claim,)))
    assert refusal.value.reason == "claim-missing" and refusal.value.fields["claim"] == claim


def test_csr_hash_taken_away_from_a_request_for_a_certificate() -> None:
    assert _reason(resign(TOKEN, "agent", without=("csr_s256",))) == "csr-missing"


@pytest.mark.req("A-13")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "nonce-unknown"),
        ({"value": "C" * 43}, "nonce-unknown"),
        ({"jkt": EXAMPLE["jkt"]["owner"]}, "nonce-for-other-key"),
        ({"proxy_id": OTHER_PROXY}, "nonce-for-other-proxy"),
        ({"purpose": "renew"}, "nonce-for-other-purpose"),
        ({"agent_id": OTHER_AGENT}, "request-for-other-agent"),
        ({"is_spent": True}, "nonce-spent"),
        ({"expires_at": AT}, "nonce-expired"),
    ],
)
def test_each_fact_of_the_nonce_has_its_own_refusal(change: Mapping[str, object] | None, reason: str) -> None:
    assert _reason(nonce=None if change is None else replace(NONCE, **change)) == reason


@pytest.mark.req("A-13")
@pytest.mark.parametrize(("seconds", "reason"), [(-65.5, "request-not-yet-valid"), (360.5, "request-expired")])
def test_request_outside_its_window_is_refused_by_the_clock(seconds: float, reason: str) -> None:
    assert _reason(now=AT + timedelta(seconds=seconds - 5)) == reason


@pytest.mark.req("A-1")
def test_key_that_somebody_already_has_is_refused() -> None:
    assert _reason(key_holder="the proxy's key") == "key-reuse"


@pytest.mark.req("A-96", "E-122")
def test_registered_agent_keeps_its_owner() -> None:
    assert _reason(agent_owner=OTHER_OWNER) == "agent-owner-mismatch"
    _check(agent_owner=OWNER)


@pytest.mark.req("A-14")
def test_every_flipped_bit_is_signature_invalid_or_malformed() -> None:
    for damaged in flips(TOKEN):
        with pytest.raises((SignatureInvalid, Malformed)):
            request.unseal(damaged)


@pytest.mark.req("A-13")
def test_key_in_the_header_must_be_the_one_that_signed() -> None:
    with pytest.raises(SignatureInvalid):
        request.unseal(resign(TOKEN, "stranger"))
    with pytest.raises(Malformed):
        request.unseal(resign(TOKEN, "agent", header={"jwk": None}))


# CSR


def _csr(key: str = "agent", san: list[x509.GeneralName] | None = None) -> bytes:
    names = x509.SubjectAlternativeName(san) if san else None
    return csr.build(subject=x509.Name([]), key=KeySigner(private(key)), san=names)


def _with_csr(der: bytes | None) -> dict[str, object]:
    token = resign(TOKEN, "agent", {"csr_s256": jws.s256(der)} if der is not None else None)
    return {"token": token, "csr": csr.read(der) if der is not None else None}


def test_csr_of_another_key_is_refused() -> None:
    with pytest.raises(CsrKeyMismatch):
        _check(**_with_csr(_csr("stranger")))


def test_csr_without_names_passes() -> None:
    _check(**_with_csr(_csr()))


@pytest.mark.req("W-3")
@pytest.mark.parametrize(
    "names",
    [
        [x509.UniformResourceIdentifier(OTHER_AGENT)],
        [x509.UniformResourceIdentifier(AGENT), x509.UniformResourceIdentifier(OWNER)],
        [x509.UniformResourceIdentifier(AGENT), x509.UniformResourceIdentifier(AGENT)],
        [x509.UniformResourceIdentifier(AGENT), x509.DNSName("radius.campus.example")],
        [x509.DNSName("radius.campus.example")],
    ],
)
def test_csr_that_names_anybody_else_is_refused(names: list[x509.GeneralName]) -> None:
    assert _reason(**_with_csr(_csr(san=names))) == "csr-names-mismatch"


def test_csr_that_is_missing_or_not_asked_for_is_refused() -> None:
    assert _reason(csr=None) == "csr-missing"
    wit_only = resign(TOKEN, "agent", {"profiles": ["wit"]}, without=("csr_s256",))
    assert _reason(wit_only) == "csr-not-expected"
    _check(wit_only, csr=None)


@pytest.mark.req("A-14")
def test_every_flipped_byte_of_the_csr_is_refused() -> None:
    found = request.unseal(TOKEN)
    for at in range(len(CSR_DER)):
        damaged = CSR_DER[:at] + bytes((CSR_DER[at] ^ 1,)) + CSR_DER[at + 1 :]
        with pytest.raises((EstError, BindingError)):
            request.check_csr(found, csr.read(damaged))


# Renewal


def _renewal(key: str = "stranger", **changes: object) -> str:
    claims = {"sub": AGENT, "jkt": EXAMPLE["jkt"]["agent"], "nonce": EXAMPLE["nonce"], "aud": SERVER}
    claims |= {"iat": NOW, "exp": NOW + 300, **changes}
    return renewal.seal(signer(key), **claims)


def _renew(prev: str, **facts: object) -> request.AgentRequest:
    token = resign(TOKEN, "agent", {"purpose": "renew", "prev": prev})
    facts = {"nonce": replace(NONCE, purpose="renew"), "live_key": private("stranger").public_key(), **facts}
    return _check(token, **facts)


@pytest.mark.req("A-106")
def test_renewal_with_the_live_key_s_word_passes() -> None:
    assert _renew(_renewal()).purpose == "renew"


@pytest.mark.req("A-106")
@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"sub": OTHER_AGENT}, "sub"),
        ({"jkt": EXAMPLE["jkt"]["owner"]}, "cnf"),
        ({"nonce": "B" * 43}, "nonce"),
        ({"aud": "https://other.example"}, "aud"),
        ({"iat": NOW + 100}, "iat"),
        ({"iat": NOW - 600, "exp": NOW - 100}, "exp"),
        ({"exp": NOW + 90_000}, "exp"),
    ],
)
def test_renewal_proof_about_anything_else_is_refused(changes: Mapping[str, object], claim: str) -> None:
    with pytest.raises(BindingError) as refusal:
        _renew(_renewal(**changes))
    assert refusal.value.reason == "renewal-proof-mismatch" and refusal.value.fields["claim"] == claim


@pytest.mark.req("A-106")
def test_renewal_proof_by_another_key_or_of_another_type_is_refused() -> None:
    with pytest.raises(SignatureInvalid):
        _renew(_renewal("agent"))
    with pytest.raises(BindingError) as refusal:
        _renew(resign(TOKEN, "stranger"))
    assert refusal.value.reason == "token-type-wrong"
    with pytest.raises(BindingError) as refusal:
        _renew(_renewal(), live_key=None)
    assert refusal.value.reason == "renewal-proof-missing"


@pytest.mark.req("A-92")
def test_short_code_is_forty_bits_of_the_request_hash() -> None:
    code = request.short_code(request.unseal(TOKEN).rqh)
    assert len(code) == 9 and code[4] == "-"
    assert code != request.short_code(jws.s256(TOKEN + "x"))


@pytest.mark.req("A-91")
def test_label_of_64_printable_characters_passes() -> None:
    assert _check(resign(TOKEN, "agent", {"label": "~" * 64, "txn": "job-7"})).label == "~" * 64


def test_sealing_writes_what_unsealing_reads() -> None:
    given = request.unseal(TOKEN)
    again = request.seal(
        signer("agent"), sub=given.sub, owner=given.owner, aud=given.aud, iat=given.iat, exp=given.exp, jti=given.jti,
        nonce=given.nonce, profiles=given.profiles, ttl=given.ttl, csr_der=CSR_DER,
    )  # fmt: skip
    assert again.rpartition(".")[0] == TOKEN.rpartition(".")[0]
    assert request.unseal(again) == given._replace(token=again, rqh=jws.s256(again))
    assert given.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == KEYS["agent"].public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
