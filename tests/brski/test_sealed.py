"""The signed form: what arrives broken, doubled or mislabelled stays outside."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import cms as asn1
from cryptography.hazmat.primitives.serialization import Encoding

from brski import (
    MediaTypeUnsupported,
    VoucherMalformed,
    VoucherRequestMalformed,
    VoucherRequestSignatureInvalid,
    VoucherSignatureInvalid,
    paths,
    sealed,
    voucher,
    voucher_request,
)
from lab.factory import Identity
from lab.mock_masa import tamper
from tests.brski.trio import Trio, campus, device, factory, seal

PVR = Trio().ask().body
RVR = Trio().consider().call.body
VOUCHER = Trio().issue(Trio().consider().call).reply.body


def unseal(body: bytes) -> Any:
    return voucher_request.unseal(body, paths.VOUCHER_CMS_JSON)


def rebuilt(change: Any) -> bytes:
    info = asn1.ContentInfo.load(PVR)
    change(info["content"])
    body = info.dump(force=True)
    assert isinstance(body, bytes)
    return body


def with_two_signers(signed: Any) -> None:
    signed["signer_infos"].append(signed["signer_infos"][0].copy())


def with_no_signer(signed: Any) -> None:
    signed["signer_infos"] = asn1.SignerInfos([])


def without_signed_attributes(signed: Any) -> None:
    signed["signer_infos"][0]["signed_attrs"] = None


def without_certificates(signed: Any) -> None:
    signed["certificates"] = None


def without_content(signed: Any) -> None:
    signed["encap_content_info"]["content"] = None


def with_other_content_type_attribute(signed: Any) -> None:
    for attribute in signed["signer_infos"][0]["signed_attrs"]:
        if attribute["type"].native == "content_type":
            attribute["values"] = ["data"]


@pytest.mark.req("B-401", "B-404", "B-405", "B-409", "T-18", "T-19", "T-20")
@pytest.mark.parametrize(
    "change",
    [
        with_two_signers,
        with_no_signer,
        without_signed_attributes,
        without_certificates,
        without_content,
        with_other_content_type_attribute,
    ],
)
def test_changed_frame_is_refused(change: Any) -> None:
    assert rebuilt(lambda signed: None) == PVR
    with pytest.raises((VoucherRequestMalformed, VoucherRequestSignatureInvalid)):
        unseal(rebuilt(change))


@pytest.mark.req("B-411")
@pytest.mark.parametrize(
    "body",
    [
        PVR + b"\x00",
        PVR[:-1],
        b"\x30\x80" + PVR[4:] + b"\x00\x00",
        PVR * 2,
        b"",
        device().certificate.public_bytes(Encoding.DER),
    ],
)
def test_trailing_bytes_indefinite_lengths_and_other_objects_are_refused(body: bytes) -> None:
    with pytest.raises(VoucherRequestMalformed):
        unseal(body)


@pytest.mark.req("B-421", "T-21")
def test_voucher_is_no_request_and_request_is_no_voucher() -> None:
    with pytest.raises(VoucherRequestMalformed):
        unseal(VOUCHER)
    for body in (PVR, RVR):
        with pytest.raises(VoucherMalformed):
            voucher.unseal(body, paths.VOUCHER_CMS_JSON)


@pytest.mark.req("B-212")
def test_format_without_codec_is_refused_in_both_directions() -> None:
    with pytest.raises(MediaTypeUnsupported):
        voucher.unseal(VOUCHER, "application/voucher-cose+cbor")
    with pytest.raises(MediaTypeUnsupported):
        sealed.seal(b"{}", "text/plain", signer=device().signer, certificate=device().certificate, now=Trio().now)


@pytest.mark.req("B-405")
def test_kind_of_refusal_follows_the_artefact() -> None:
    with pytest.raises(VoucherRequestSignatureInvalid):
        unseal(tamper(PVR))
    with pytest.raises(VoucherSignatureInvalid):
        voucher.unseal(tamper(VOUCHER), paths.VOUCHER_CMS_JSON)


@pytest.mark.req("T-23", "B-411")
def test_artefact_with_a_thousand_certificates_is_refused() -> None:
    crowd = Identity(device().key, device().certificate, tuple(_crowd(40)))
    with pytest.raises(VoucherRequestMalformed):
        unseal(seal(b"{}", crowd))


def _crowd(size: int) -> list[Any]:
    maker = factory("Crowd")
    return [maker.make_device(f"C-{i}", now=Trio().now).certificate for i in range(size)]


@pytest.mark.interop
@pytest.mark.req("B-401", "B-402", "B-405", "B-406", "B-407", "B-408", "B-412")
@pytest.mark.parametrize(
    ("name", "body", "anchor"),
    [
        ("pvr", PVR, factory().device_root),
        ("rvr", RVR, campus().root),
        ("voucher", VOUCHER, factory().voucher_root),
    ],
)
def test_openssl_accepts_what_we_sign(name: str, body: bytes, anchor: Identity, tmp_path: Path) -> None:
    artefact, root, content = tmp_path / f"{name}.cms", tmp_path / "root.pem", tmp_path / "content"
    artefact.write_bytes(body)
    root.write_bytes(anchor.chain_pem)
    command = ["openssl", "cms", "-verify", "-purpose", "any", "-inform", "DER", "-binary", "-attime", "1767268800"]
    try:
        done = subprocess.run(
            [*command, "-in", artefact, "-CAfile", root, "-out", content], capture_output=True, timeout=30, text=True
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert done.returncode == 0, done.stderr
    key = "ietf-voucher:voucher" if name == "voucher" else "ietf-voucher-request:voucher"
    assert content.read_bytes().startswith(b'{"' + key.encode() + b'"')
    printed = subprocess.run(
        ["openssl", "asn1parse", "-inform", "DER", "-in", artefact], capture_output=True, timeout=30, text=True
    ).stdout
    assert "id-smime-ct-40" in printed or "1.2.840.113549.1.9.16.1.40" in printed or "id-ct-" in printed


@pytest.mark.parametrize("media_type", list(sealed.CODECS))
def test_the_form_of_a_kept_artefact_is_known_by_its_beginning(media_type: str) -> None:
    body = Trio(media_type=media_type).ask().body
    assert sealed.media_type_of(body) == media_type
    if media_type == paths.VOUCHER_JWS_JSON:  # blanks before JSON mean nothing, however many
        assert sealed.media_type_of(b" \r\n\t" * 100 + body) == media_type
    else:
        assert sealed.media_type_of(base64.encodebytes(body)) == media_type
