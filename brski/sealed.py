"""The signed form of vouchers and voucher-requests, by media type (RFC 8366, section 5.4; RFC 8995, section 5.6).

One table of codecs: CMS-signed JSON today; another format is one more row. Chains are not checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

from cryptography import x509

from brski import paths
from brski.errors import BrskiError, FormatNotAcceptable, MediaTypeUnsupported
from est import cms
from est.errors import CmsSignatureInvalid, EstError
from est.signer import Signer

MAX_BYTES = 262_144


@dataclass(frozen=True, slots=True)
class Unsealed:
    """Content whose signature was verified with the key of `signer`.

    `certificates` are all that came along, signer first; `signing_time` is the signer's word.
    """

    content: bytes
    signer: x509.Certificate
    certificates: tuple[x509.Certificate, ...]
    signing_time: datetime | None = None


class Codec(Protocol):
    """A signed form. `unseal` raises est's refusals, CmsSignatureInvalid where the signature does not verify."""

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
        return Unsealed(opened.content, opened.signer, opened.certificates, opened.signing_time)


CODECS: Mapping[str, Codec] = MappingProxyType({paths.VOUCHER_CMS_JSON: CmsJson()})


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
) -> Unsealed:
    """Verify and open a signed artefact.

    Raises MediaTypeUnsupported, `invalid` where the signature does not verify, `malformed` for everything else that is
    wrong with the bytes.
    """
    codec = _codec(media_type)
    try:
        return codec.unseal(body, accept_id_data=accept_id_data)
    except CmsSignatureInvalid as cause:
        raise invalid(cause.detail) from cause
    except EstError as cause:
        raise malformed(cause.detail, because=cause.reason) from cause


def read_media_type(media_type: str, accept: str = "") -> str:
    """The bare media type of a request whose sender accepts an answer in the same format.

    Request and answer share one format (RFC 8995, section 5.6). Raises MediaTypeUnsupported, FormatNotAcceptable.
    """
    bare = paths.bare(media_type)
    _codec(bare)
    if not paths.is_acceptable(accept, bare):
        raise FormatNotAcceptable("the answer would come in the request's format, which Accept excludes", format=bare)
    return bare


def _codec(media_type: str) -> Codec:
    codec = CODECS.get(paths.bare(media_type))
    if codec is None:
        raise MediaTypeUnsupported("vouchers are read as " + ", ".join(CODECS), supported=tuple(CODECS))
    return codec
