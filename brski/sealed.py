"""The signed form of vouchers and voucher-requests, by media type (RFC 8366, section 5.4; RFC 8995, section 5.6).

One table of codecs: JSON signed by CMS (here) or by JWS (`brski.jws`); another format is one more row. Chains are not
checked here.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

from cryptography import x509

from brski import jws, paths
from brski.dialect import STRICT, Dialect
from brski.errors import (
    BrskiError,
    FormatNotAcceptable,
    JwsMalformed,
    JwsNotAccepted,
    JwsSignatureInvalid,
    MediaTypeUnsupported,
)
from est import cms, transfer
from est.errors import CmsSignatureInvalid, EstError
from est.signer import Signer

MAX_BYTES = 262_144


@dataclass(frozen=True, slots=True)
class Unsealed:
    """Content whose signature was verified with the key of `signer`.

    `certificates` are all that came along, signer first; `signing_time` is the signer's word. `body` is the signed
    artefact itself, `is_base64` says that it came as base64 text (a dialect).
    """

    content: bytes
    signer: x509.Certificate
    certificates: tuple[x509.Certificate, ...]
    signing_time: datetime | None = None
    body: bytes = field(default=b"", repr=False)
    is_base64: bool = False


class Codec(Protocol):
    """A signed form.

    `unseal` raises est's refusals and those of `brski.jws`; CmsSignatureInvalid or JwsSignatureInvalid where the
    signature does not verify. `is_binary` says that the artefact is octets, which a dialect may wrap into base64.
    """

    is_binary: bool

    def seal(
        self,
        content: bytes,
        *,
        signer: Signer,
        certificate: x509.Certificate,
        certificates: Sequence[x509.Certificate],
        now: datetime,
    ) -> bytes:
        """Sign."""
        ...

    def unseal(self, body: bytes, *, accept_id_data: bool) -> Unsealed:
        """Verify and open."""
        ...


class CmsJson:
    """JSON inside CMS SignedData.

    Sent with eContentType id-ct-animaJSONVoucher. Every example in RFC 8995 has id-data instead, so that is read too,
    unless `accept_id_data` is off.
    """

    is_binary = True

    def seal(
        self,
        content: bytes,
        *,
        signer: Signer,
        certificate: x509.Certificate,
        certificates: Sequence[x509.Certificate],
        now: datetime,
    ) -> bytes:
        return cms.seal(
            content,
            content_type=cms.ID_CT_ANIMA_JSON_VOUCHER,
            signer=signer,
            certificate=certificate,
            certificates=certificates,
            signing_time=now,
        )

    def unseal(self, body: bytes, *, accept_id_data: bool) -> Unsealed:
        kinds = (cms.ID_CT_ANIMA_JSON_VOUCHER, cms.ID_DATA) if accept_id_data else (cms.ID_CT_ANIMA_JSON_VOUCHER,)
        opened = cms.unseal(body, content_types=kinds, max_bytes=MAX_BYTES)
        return Unsealed(opened.content, opened.signer, opened.certificates, opened.signing_time, body)


class JwsJson:
    """JSON inside a JWS in General JSON serialisation; it carries no time of signing and no content type."""

    is_binary = False

    def seal(
        self,
        content: bytes,
        *,
        signer: Signer,
        certificate: x509.Certificate,
        certificates: Sequence[x509.Certificate],
        now: datetime,
    ) -> bytes:
        return jws.seal(content, signer=signer, certificate=certificate, certificates=certificates)

    def unseal(self, body: bytes, *, accept_id_data: bool) -> Unsealed:
        opened = jws.unseal(body, max_bytes=MAX_BYTES)
        return Unsealed(opened.content, opened.certificates[0], opened.certificates, None, body)


CODECS: Mapping[str, Codec] = MappingProxyType({paths.VOUCHER_CMS_JSON: CmsJson(), paths.VOUCHER_JWS_JSON: JwsJson()})
EVERY_FORMAT = frozenset(CODECS)


def seal(
    content: bytes,
    media_type: str,
    *,
    signer: Signer,
    certificate: x509.Certificate,
    certificates: Sequence[x509.Certificate] = (),
    now: datetime,
) -> bytes:
    """`content` signed by the key of `certificate`; `certificates` travel along. Raises MediaTypeUnsupported."""
    codec = _codec(media_type)
    return codec.seal(content, signer=signer, certificate=certificate, certificates=certificates, now=now)


def unseal(
    body: bytes,
    media_type: str,
    *,
    malformed: type[BrskiError],
    invalid: type[BrskiError],
    accept_id_data: bool = True,
    dialect: Dialect = STRICT,
) -> Unsealed:
    """Verify and open a signed artefact.

    Raises MediaTypeUnsupported, `invalid` where the signature does not verify, `malformed` for everything else that is
    wrong with the bytes.
    """
    codec = _codec(media_type)
    try:
        artefact = body
        if codec.is_binary and dialect.base64_bodies:
            artefact = transfer.decode_base64(body, max_bytes=MAX_BYTES)
        opened = codec.unseal(artefact, accept_id_data=accept_id_data)
    except (CmsSignatureInvalid, JwsSignatureInvalid) as cause:
        raise invalid(cause.detail) from cause
    except (EstError, JwsMalformed, JwsNotAccepted) as cause:
        raise malformed(cause.detail, because=cause.reason) from cause
    return opened if artefact is body else replace(opened, is_base64=True)


def wrap(artefact: bytes, media_type: str, *, in_base64: bool) -> bytes:
    """The HTTP body that carries a signed artefact: the artefact itself, or its base64 where a dialect has that."""
    return base64.b64encode(artefact) if in_base64 and _codec(media_type).is_binary else artefact


def read_media_type(media_type: str, accept: str = "", *, formats: Collection[str] = EVERY_FORMAT) -> str:
    """The bare media type of a request whose sender accepts an answer in the same format, which is one of `formats`.

    Request and answer share one format (RFC 8995, section 5.6). Raises MediaTypeUnsupported, FormatNotAcceptable.
    """
    bare = paths.bare(media_type)
    if bare not in CODECS or bare not in formats:
        supported = tuple(one for one in CODECS if one in formats)
        raise MediaTypeUnsupported("vouchers are read as " + ", ".join(supported), supported=supported)
    if not paths.is_acceptable(accept, bare):
        raise FormatNotAcceptable("the answer would come in the request's format, which Accept excludes", format=bare)
    return bare


def media_type_of(body: bytes) -> str:
    """The media type of an artefact that we made or accepted and kept: JWS is JSON text, CMS DER or its base64."""
    return paths.VOUCHER_JWS_JSON if body.lstrip()[:1] == b"{" else paths.VOUCHER_CMS_JSON


def _codec(media_type: str) -> Codec:
    codec = CODECS.get(paths.bare(media_type))
    if codec is None:
        raise MediaTypeUnsupported("vouchers are read as " + ", ".join(CODECS), supported=tuple(CODECS))
    return codec
