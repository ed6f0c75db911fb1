"""All sections as one model, and what follows from them together."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from appliance.settings.access import AccessSettings, DirectorySettings, RadiusSettings
from appliance.settings.enrolment import EstSettings, RegistrarSettings
from appliance.settings.hosts import JoinSettings, OwnerSettings, ProxySettings
from appliance.settings.identity import IdentitySettings
from appliance.settings.pki import CaSettings, DomainSettings, HsmSettings
from appliance.settings.section import Section
from appliance.settings.serving import AuditSettings, LogSettings, StoreSettings, WebSettings


class Settings(Section):
    """All sections; what a composition root is given."""

    home: Path = Field(default=Path(), description="The state folder.")
    domain: DomainSettings = DomainSettings()
    web: WebSettings = WebSettings()
    store: StoreSettings = StoreSettings()
    audit: AuditSettings = AuditSettings()
    ca: CaSettings = CaSettings()
    hsm: HsmSettings = HsmSettings()
    registrar: RegistrarSettings = RegistrarSettings()
    est: EstSettings = EstSettings()
    identity: IdentitySettings = IdentitySettings()
    access: AccessSettings = AccessSettings()
    directory: DirectorySettings = DirectorySettings()
    radius: RadiusSettings = RadiusSettings()
    proxy: ProxySettings = ProxySettings()
    join: JoinSettings = JoinSettings()
    owner: OwnerSettings = OwnerSettings()
    log: LogSettings = LogSettings()

    @property
    def server_id(self) -> str:
        """Audience of agent requests and owner approvals."""
        return self.identity.server_id or f"https://ids.{self.domain.trust_domain}/v1"

    @property
    def origin(self) -> str:
        """Scheme and trust domain of every identifier, as `spiffe://campus.example`."""
        return f"{self.domain.scheme}://{self.domain.trust_domain}"

    @property
    def passkey_place(self) -> tuple[str, str]:
        """Relying party and origin of owners' passkeys."""
        rp_id = self.identity.passkey_rp_id or self.domain.trust_domain
        return rp_id, self.identity.passkey_origin or f"https://{rp_id}"

    @property
    def radius_server_name(self) -> str:
        """The dNSName that supplicants pin together with the root."""
        return self.radius.server_name or f"radius.{self.domain.trust_domain}"

    @property
    def store_url(self) -> str:
        return self.store.url or f"sqlite:///{self.home / 'appliance.db'}"
