"""Operations about certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.audit import Actor
from appliance.certificate_list import CertificateList
from appliance.evidence_package import EvidencePackages


class CertificateOperations:
    """appliance certs ..."""

    def __init__(self, certificates: CertificateList, packages: EvidencePackages, actor: Actor) -> None:
        self._certificates = certificates
        self.list_ = certificates.search
        self._packages = packages
        self._actor = actor

    async def evidence(self, serial: str) -> Any:
        return await self._packages.export(serial)

    async def show(self, serial: str, issuer: str = "") -> Any:
        return await self._certificates.show(serial, issuer=issuer)

    async def take_crl(self, file: str) -> Any:
        return await self._certificates.take_crl(Path(file), actor=self._actor)

    async def revoke(self, serial: str, reason: str = "unspecified", issuer: str = "") -> Any:
        return await self._certificates.revoke(serial, reason=reason, issuer=issuer, actor=self._actor)
