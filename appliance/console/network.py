"""Operations about network access: policy, NAS, the decision log, FreeRADIUS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography import x509

from appliance.access.explaining import Explainer, outcome
from appliance.access.forwarding import LogForwarding
from appliance.access.freeradius import FreeRadius
from appliance.access.log_reader import DecisionReader
from appliance.access.nas import NasService
from appliance.access.nas_certificates import NasCertificates
from appliance.access.open_sessions import OpenSessions
from appliance.access.policies import PolicyService
from appliance.access.session_views import as_json
from appliance.access.sessions import SessionService, SessionUnknown
from appliance.audit import Actor
from appliance.errors import NotFound, RequestMalformed
from est.certificates import pem_certificates
from est.chains import ski_of


class PolicyOperations:
    """appliance policy ..."""

    def __init__(
        self,
        policies: PolicyService,
        explainer: Explainer,
        open_sessions: OpenSessions,
        actor: Actor,
        issuers: dict[str, x509.Certificate],
    ) -> None:
        self._policies = policies
        self._open = open_sessions
        self._explainer = explainer
        self._actor = actor
        self._issuers = issuers

    async def show(self, revision: int = 0) -> dict[str, Any]:
        return await self._policies.show(revision)

    async def list_(self, limit: int = 100) -> list[dict[str, Any]]:
        return await self._policies.list_(limit)

    async def diff(self, first: int, second: int = 0) -> dict[str, Any]:
        return await self._policies.diff(first, second)

    async def validate(self, text: str) -> dict[str, Any]:
        return await self._policies.validate(text)

    async def publish(self, text: str, comment: str = "") -> dict[str, Any]:
        return await self._policies.publish(text, comment, self._actor)

    async def rollback(self, revision: int, comment: str = "") -> dict[str, Any]:
        return await self._policies.rollback(revision, comment, self._actor)

    async def impact(self, text: str, days: int = 7) -> dict[str, Any]:
        return await self._explainer.impact(text, days) | await self._open.impact(text)

    async def explain(
        self,
        certificate_pem: str = "",
        serial: str = "",
        issuer: str = "agents",
        nas: str = "",
        port: str = "",
        called: str = "",
        log: int = 0,
    ) -> dict[str, Any]:
        if log:
            return await self._explainer.row(log)
        place = {"nas": nas, "nas_port": port, "called_station": called}
        if certificate_pem:
            try:
                certificate = pem_certificates(certificate_pem.encode())[0]
            except (ValueError, IndexError) as cause:
                raise RequestMalformed("the file holds no certificate") from cause
            return outcome(self._explainer.certificate(certificate, **place))
        if issuer not in self._issuers:
            raise NotFound(f"no CA role {issuer}; there are {', '.join(sorted(self._issuers))}")
        try:
            number = int(serial.replace(":", ""), 16)
        except ValueError as cause:
            raise RequestMalformed("a serial number is given in hex") from cause
        aki = ski_of(self._issuers[issuer]) or b""
        return outcome(self._explainer.serial(aki.hex(), number, **place))


class NasOperations:
    """appliance nas ..."""

    def __init__(self, nas: NasService, certificates: NasCertificates, actor: Actor) -> None:
        self._nas = nas
        self._certificates = certificates
        self._actor = actor

    async def add(
        self,
        name: str,
        address: str,
        secret: str = "",
        site: str = "",
        coa_port: int = 3799,
        profile: str = "generic-disconnect",
    ) -> dict[str, Any]:
        return await self._nas.add(name, address, secret, self._actor, site=site, coa_port=coa_port, profile=profile)

    async def set_(self, name: str, coa_port: int = 0, profile: str = "") -> dict[str, Any]:
        return await self._nas.change(name, self._actor, coa_port=coa_port, profile=profile)

    async def rotate_secret(self, name: str, overlap_seconds: float, secret: str = "") -> dict[str, Any]:
        return await self._nas.rotate_secret(name, self._actor, overlap_seconds=overlap_seconds, secret=secret)

    async def list_(self) -> list[dict[str, Any]]:
        return await self._nas.every()

    async def remove(self, name: str) -> dict[str, Any]:
        return await self._nas.remove(name, self._actor)

    async def certify(self, name: str, csr_pem: str) -> dict[str, Any]:
        return await self._certificates.certify(name, csr_pem, self._actor)


class SessionOperations:
    """appliance sessions ..."""

    def __init__(self, sessions: SessionService, actor: Actor) -> None:
        self._sessions = sessions
        self._actor = actor

    async def list_(
        self, owner: str = "", agent: str = "", nas: str = "", mac: str = "", vlan: str = "", everything: bool = False
    ) -> list[dict[str, Any]]:
        found = await self._sessions.search(
            owner=owner, agent=agent, nas=nas, mac=mac, vlan=vlan, everything=everything
        )
        return [as_json(one) for one in found]

    async def show(self, session_id: str) -> dict[str, Any]:
        found = await self._sessions.search(session_id=session_id, everything=True)
        if not found:
            raise SessionUnknown("there is no session of this id")
        return as_json(found[0], await self._sessions.changes(session_id))

    async def disconnect(
        self, session_id: str = "", agent: str = "", owner: str = "", mac: str = "", reauthenticate: bool = False
    ) -> list[dict[str, Any]]:
        if not (session_id or agent or owner or mac):
            raise RequestMalformed("say which sessions: an id, an agent, an owner or a MAC address")
        found = await self._sessions.search(session_id=session_id, agent=agent, owner=owner, mac=mac, limit=100_000)
        changes = await self._sessions.order(found, "reauthenticate" if reauthenticate else "end", self._actor)
        by_id = {one.id: one for one in found}
        return [
            {"session": one.session_id, "want": one.want, "state": one.state, "nas": by_id[one.session_id].nas,
             "mac": by_id[one.session_id].mac, "port": by_id[one.session_id].port}
            for one in changes
        ]  # fmt: skip


class AccessOperations:
    """appliance access ..."""

    def __init__(self, reader: DecisionReader, explainer: Explainer, forwarding: LogForwarding) -> None:
        self._reader = reader
        self.forwarding = forwarding.status
        self.search = reader.search
        self._explainer = explainer

    async def log(self, limit: int = 50) -> list[dict[str, Any]]:
        return await self._reader.newest(limit)

    async def show(self, key: int) -> dict[str, Any]:
        return await self._explainer.row(key)

    async def export(self, format: str = "jsonl", after: int = 0, since: str = "") -> dict[str, Any]:
        return await self._reader.export(format, after, since)


class RadiusOperations:
    """appliance radius ..."""

    def __init__(self, freeradius: FreeRadius, actor: Actor) -> None:
        self._freeradius = freeradius
        self._actor = actor

    async def render(self, folder: str) -> dict[str, Any]:
        return await self._freeradius.render(Path(folder), self._actor)

    async def refresh(self, folder: str) -> dict[str, Any]:
        return {"changed": await self._freeradius.refresh(Path(folder), self._actor)}

    async def check(self, folder: str = "") -> dict[str, Any]:
        return await self._freeradius.check(Path(folder) if folder else None)
