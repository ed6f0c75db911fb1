"""Endpoint functions of the admin socket and the PKI port."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cryptography.hazmat.primitives.serialization import Encoding

from appliance.ca import CertificateAuthority
from appliance.console.operations import Operations
from appliance.crl import CrlKeeper
from appliance.errors import NotFound, RequestMalformed
from appliance.hierarchy import ROLES
from appliance.web.peer import Peer
from est.exchange import Call, Reply
from est.transfer import read_json

MAX_OPERATION_BODY = 4 * 1024 * 1024


class AdminRoutes:
    """HOME/run/admin.sock: whoever may open the socket (mode 0600) is the administrator."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def operation(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """POST /v1/operations/{name}: JSON arguments in, JSON result out."""
        arguments = read_json(call.body or b"{}", max_bytes=MAX_OPERATION_BODY, max_depth=8)
        if not isinstance(arguments, dict):
            raise RequestMalformed("arguments are a JSON object")
        result = await self._operations.call(params["name"], arguments)
        return Reply(200, "application/json", body=json.dumps(result, ensure_ascii=False).encode())


class PkiRoutes:
    """CRLs and CA certificates for everybody, over plain HTTP: they are signed (RFC 5280, section 8)."""

    def __init__(self, ca: CertificateAuthority, crls: CrlKeeper) -> None:
        self._ca = ca
        self._crls = crls

    async def crl(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """GET /crl/{role}.crl"""
        return Reply(200, "application/pkix-crl", body=await self._crls.crl(params["role"]))

    async def ca(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """GET /ca/{role}.cer, and /ca/root.cer"""
        role = params["role"]
        if role == "root":
            certificate = self._ca.root
        elif found := next((known for known in ROLES if known == role), None):
            certificate = self._ca.issuing(found).certificate
        else:
            raise NotFound("there is no such CA")
        return Reply(200, "application/pkix-cert", body=certificate.public_bytes(Encoding.DER))
