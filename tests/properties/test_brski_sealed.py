"""Signed forms under hypothesis: round trips, and only our own errors for whatever else comes."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brski import BrskiError, Dialect, jws, paths, sealed, voucher, voucher_request
from est import cms, jose
from est.errors import EstError
from est.exchange import Reply
from est.keys import spki_sha256
from lab.factory import Identity
from tests.brski.trio import Trio, device, factory
from tests.properties.test_brski_artefacts import json_values, mutants
from tests.support import NOW, examples

JWS = paths.VOUCHER_JWS_JSON
TRIO = Trio(media_type=JWS)
SENT = TRIO.ask()
EXCHANGE = TRIO.consider(SENT)
REPLY = TRIO.issue(EXCHANGE.call).reply
dialects = st.builds(Dialect, **{one.name: st.booleans() for one in fields(Dialect)})
media_types = st.sampled_from(list(paths.VOUCHER_FORMATS.values()))
SIGNERS: dict[str, Identity] = {"device": device(), "masa": factory().masa}


@given(st.binary(max_size=500), media_types, st.sampled_from(list(SIGNERS)))
def test_what_is_sealed_is_unsealed(content: bytes, media_type: str, who: str) -> None:
    by = SIGNERS[who]
    body = sealed.seal(
        content, media_type, signer=by.signer, certificate=by.certificate, certificates=by.issuers, now=NOW
    )
    opened = sealed.unseal(
        body, media_type, malformed=voucher.VoucherMalformed, invalid=voucher.VoucherSignatureInvalid
    )
    assert (opened.content, opened.signer, opened.body) == (content, by.certificate, body)
    assert set(opened.certificates) == {by.certificate, *by.issuers}
    assert sealed.media_type_of(body) == media_type


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()), media_types, dialects)
def test_readers_of_signed_forms_raise_refusals_only(body: bytes, media_type: str, dialect: Dialect) -> None:
    for read in (voucher.unseal, voucher_request.unseal):
        with pytest.raises(BrskiError):
            read(body, media_type, dialect=dialect)  # type: ignore[operator]
    with pytest.raises((BrskiError, EstError)):
        jws.unseal(body)
    with pytest.raises(EstError):
        cms.unseal(body, content_types=[cms.ID_DATA])


names = st.sampled_from(
    ["payload", "signatures", "protected", "header", "signature", "alg", "typ", "x5c", "crit", "kid"]
)
texts = st.sampled_from(["", "e30", "e30=", "ES256", "none", "HS256", jws.TYP, "AAAA", "\ud7ff"])
inner = st.recursive(texts | st.none() | st.integers(0, 3), lambda one: st.lists(one, max_size=2), max_leaves=3)
members = st.dictionaries(names, inner, max_size=4)


@given(members, st.lists(members, max_size=2))
def test_objects_that_look_like_a_jws_raise_refusals_only(
    document: dict[str, object], signatures: list[object]
) -> None:
    for body in (document, {**document, "signatures": signatures}, {"payload": "", "signatures": signatures}):
        with pytest.raises((BrskiError, EstError)):
            jws.unseal(json.dumps(body).encode())


@given(st.dictionaries(names, inner | json_values, max_size=4), st.booleans())
def test_signed_headers_of_anybody_raise_refusals_only(header: dict[str, object], has_chain: bool) -> None:
    by = device()
    good = json.loads(jose.unbase64url(json.loads(SENT.body)["signatures"][0]["protected"].encode()))
    octets = json.dumps({**(good if has_chain else {}), **header}).encode()
    protected = jose.base64url(octets)
    signature = jose.base64url(jose.write_ecdsa(by.signer.sign(f"{protected}.".encode()), 32))
    body = json.dumps({"payload": "", "signatures": [{"protected": protected, "signature": signature}]}).encode()
    try:
        assert jws.unseal(body).content == b""
    except (BrskiError, EstError):
        return
    assert has_chain


@pytest.mark.req("B-135", "T-23")
@examples(200)
@given(mutants(SENT.body))
def test_registrar_refuses_every_damaged_request_in_jws(body: bytes) -> None:
    try:
        taken = TRIO.consider(replace(SENT, body=body))
    except BrskiError:
        return
    assert taken.request.nonce == EXCHANGE.request.nonce


@examples(200)
@given(mutants(EXCHANGE.call.body))
def test_masa_refuses_every_damaged_request_in_jws(body: bytes) -> None:
    try:
        grant = TRIO.masa.issue(replace(EXCHANGE.call, body=body), TRIO, now=NOW)
    except BrskiError:
        return
    # unlike CMS, the chain is under the signature: what is pinned cannot change at all
    assert grant.voucher.nonce == EXCHANGE.request.nonce
    assert spki_sha256(grant.voucher.pin()) == spki_sha256(TRIO.campus.chain[0])


@pytest.mark.req("B-135", "B-321")
@examples(200)
@given(mutants(REPLY.body))
def test_pledge_refuses_every_damaged_voucher_in_jws(body: bytes) -> None:
    reply = Reply(200, JWS, body=body)
    for take in (lambda: EXCHANGE.conclude(reply, NOW), lambda: TRIO.accept(reply, SENT)):
        try:
            taken = take()
        except BrskiError:
            continue
        assert taken.nonce == EXCHANGE.request.nonce
