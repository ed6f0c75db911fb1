"""The PKI port: CRLs and CA certificates over plain HTTP; the answers are signed, so the transport need not be."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.serialization import Encoding

from appliance.ca import CertificateAuthority
from appliance.crl import CrlKeeper
from appliance.errors import NotFound
from appliance.hierarchy import ROLES, ROOT
from appliance.web.peer import Peer
from appliance.web.routes import Handler
from est.exchange import Call, Reply


class PkiRoutes:
    """Endpoint functions of the PKI port (RFC 2585)."""

    def __init__(self, ca: CertificateAuthority, crls: CrlKeeper) -> None:
        self._crls = crls
        self._certificates = {role: ca.issuing(role).certificate for role in ROLES} | {ROOT: ca.root}

    def endpoints(self) -> dict[str, Handler]:
        """By endpoint name of the route table."""
        return {"pki.crl": self.crl, "pki.ca": self.certificate}

    async def crl(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """GET /crl/{role}.crl: the current list of an issuing CA, DER."""
        return Reply(200, "application/pkix-crl", {"cache-control": "max-age=60"}, await self._crls.crl(params["role"]))

    async def certificate(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """GET /ca/{role}.cer: the certificate of an issuing CA or the root, DER."""
        certificate = self._certificates.get(params["role"])
        if certificate is None:
            raise NotFound("there is no CA of this name")
        headers = {"cache-control": "max-age=3600"}
        return Reply(200, "application/pkix-cert", headers, certificate.public_bytes(Encoding.DER))
