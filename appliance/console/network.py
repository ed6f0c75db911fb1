"""Operations about network access: policy, NAS, the decision log, FreeRADIUS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography import x509

from appliance.access.freeradius import FreeRadius
from appliance.access.nas import NasService
from appliance.access.policies import PolicyService, outcome
from appliance.access.service import AccessService
from appliance.audit import Actor
from appliance.errors import NotFound, RequestMalformed
from est.chains import ski_of


class PolicyOperations:
    """appliance policy ..."""

    def __init__(self, policies: PolicyService, actor: Actor, issuers: dict[str, x509.Certificate]) -> None:
        self._policies = policies
        self._actor = actor
        self._issuers = issuers

    async def show(self) -> dict[str, Any]:
        return await self._policies.show()

    async def validate(self, text: str) -> dict[str, Any]:
        return self._policies.validate(text)

    async def publish(self, text: str, comment: str = "") -> dict[str, Any]:
        return await self._policies.publish(text, comment, self._actor)

    async def explain(
        self, certificate_pem: str = "", serial: str = "", issuer: str = "agents", nas: str = ""
    ) -> dict[str, Any]:
        if certificate_pem:
            try:
                certificate = x509.load_pem_x509_certificates(certificate_pem.encode())[0]
            except (ValueError, IndexError) as cause:
                raise RequestMalformed("the file holds no certificate") from cause
            return outcome(self._policies.explain_certificate(certificate, nas=nas))
        if issuer not in self._issuers:
            raise NotFound(f"no CA role {issuer}; there are {', '.join(sorted(self._issuers))}")
        try:
            number = int(serial.replace(":", ""), 16)
        except ValueError as cause:
            raise RequestMalformed("a serial number is given in hex") from cause
        aki = ski_of(self._issuers[issuer]) or b""
        return outcome(self._policies.explain_serial(aki.hex(), number, nas=nas))


class NasOperations:
    """appliance nas ..."""

    def __init__(self, nas: NasService, actor: Actor) -> None:
        self._nas = nas
        self._actor = actor

    async def add(self, name: str, address: str, secret: str = "") -> dict[str, Any]:
        return await self._nas.add(name, address, secret, self._actor)

    async def list_(self) -> list[dict[str, Any]]:
        return await self._nas.every()

    async def remove(self, name: str) -> dict[str, Any]:
        return await self._nas.remove(name, self._actor)


class AccessOperations:
    """appliance access ..."""

    def __init__(self, access: AccessService) -> None:
        self._access = access

    async def log(self, limit: int = 50) -> list[dict[str, Any]]:
        return await self._access.newest(limit)


class RadiusOperations:
    """appliance radius ..."""

    def __init__(self, freeradius: FreeRadius, actor: Actor) -> None:
        self._freeradius = freeradius
        self._actor = actor

    async def render(self, folder: str) -> dict[str, Any]:
        return await self._freeradius.render(Path(folder), self._actor)

    async def check(self, folder: str = "") -> dict[str, Any]:
        return await self._freeradius.check(Path(folder) if folder else None, self._actor)
