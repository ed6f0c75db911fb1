"""Endpoint functions of the PKI port: CRLs, OCSP and CA certificates for everybody, over plain HTTP.

Everything here is signed and public (RFC 5280, section 8; RFC 5019, section 5). Caches may keep an OCSP answer as long
as it says itself; of a CRL they have to ask each time, because a revocation replaces it before its time.
"""

from __future__ import annotations

import binascii
from collections.abc import Awaitable, Mapping
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from cryptography.hazmat.primitives.serialization import Encoding

from appliance.ca import CertificateAuthority
from appliance.clock import Clock
from appliance.crl import CrlKeeper
from appliance.ocsp import OcspAnswer, OcspResponder
from appliance.web.peer import Peer
from appliance.web.routes import Handler
from est import ocsp
from est.exchange import Call, Reply

_NO_STORE = {"cache-control": "no-store"}


class PkiRoutes:
    """Endpoint functions."""

    def __init__(self, ca: CertificateAuthority, crls: CrlKeeper, responder: OcspResponder, clock: Clock) -> None:
        self._ca = ca
        self._crls = crls
        self._responder = responder
        self._clock = clock

    @property
    def endpoints(self) -> dict[str, Handler]:
        """By the names of the route table."""
        return {"pki.crl": self.crl, "pki.ca": self.ca, "pki.ocsp": self.ocsp, "pki.ocsp_get": self.ocsp_get}

    async def crl(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """GET /crl/{role}.crl: the list itself, or 304 to whoever has it."""
        found = await self._crls.published(params["role"])
        headers = {
            "last-modified": _http_date(found.this_update.replace(microsecond=0)),
            "etag": f'"{found.sha256}"',
            "cache-control": "no-cache, no-transform",
        }
        if _has(call, found.sha256):
            return Reply(304, headers=headers)
        return Reply(200, "application/pkix-crl", headers, found.der)

    async def ca(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """GET /ca/{role}.cer by the label of a generation (the role, for the first), and /ca/root.cer"""
        role = params["role"]
        certificate = self._ca.root if role == "root" else self._ca.generation(role).certificate
        return Reply(200, "application/pkix-cert", body=certificate.public_bytes(Encoding.DER))

    def ocsp(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply | Awaitable[Reply]:
        """POST /ocsp: an OCSPRequest in DER; whatever is wrong with it is said by an OCSPResponse with status 200."""
        return self._respond(call, call.body)

    def ocsp_get(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply | Awaitable[Reply]:
        """GET /ocsp/{request}: the same in base64, percent-encoded or not (RFC 6960, appendix A.1)."""
        # Some write a slash between the address and the request though it ends in one; no request begins with a slash.
        text = unquote_to_bytes(params["request"]).lstrip(b"/")
        try:
            der = binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error:
            der = b""
        return self._respond(call, der)

    def _respond(self, call: Call, request: bytes) -> Reply | Awaitable[Reply]:
        answer = self._responder.respond(request)
        if isinstance(answer, OcspAnswer):
            return self._reply(call, answer)

        async def later(waited: Awaitable[OcspAnswer]) -> Reply:
            return self._reply(call, await waited)

        return later(answer)

    def _reply(self, call: Call, answer: OcspAnswer) -> Reply:
        if answer.this_update is None or answer.next_update is None:
            return Reply(200, ocsp.RESPONSE_TYPE, _NO_STORE, answer.der)
        headers = self._cached(answer.tag, answer.this_update, answer.next_update)
        if call.method != "POST" and _has(call, answer.tag):
            return Reply(304, headers=headers)
        return Reply(200, ocsp.RESPONSE_TYPE, headers, answer.der)

    def _cached(self, tag: str, this_update: datetime, next_update: datetime) -> dict[str, str]:
        """What caches need to know (RFC 5019, section 6.2)."""
        now = self._clock.now()
        left = max(0, int((next_update - now).total_seconds()))
        return {
            "date": _http_date(now.replace(microsecond=0)),
            "last-modified": _http_date(this_update.replace(microsecond=0)),
            "expires": _http_date(next_update.replace(microsecond=0)),
            "etag": f'"{tag}"',
            "cache-control": f"max-age={left}, public, no-transform, must-revalidate",
        }


@lru_cache(maxsize=1024)
def _http_date(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)


def _has(call: Call, tag: str) -> bool:
    return f'"{tag}"' in call.headers.get("if-none-match", "")
