"""The trust domain, its CAs and where their keys are: [domain], [ca], [hsm]."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from appliance.setting_types import Organization, TrustDomain
from appliance.settings.section import Section


class DomainSettings(Section):
    """[domain]"""

    trust_domain: TrustDomain = Field(
        "campus.example", description="Trust domain: the authority part of every identifier issued here."
    )
    organization: Organization = Field("Campus", description="Organization name in the subjects of the CAs.")
    scheme: Literal["spiffe", "wimse"] = Field(
        "spiffe", description="URI scheme of identifiers; one per trust domain, never both."
    )


class CaSettings(Section):
    """[ca]"""

    pki_base_url: str = Field(
        "",
        description="Base URL of CRL, OCSP and CA addresses in certificates; empty = http://<web.names[0]>:<pki_port>.",
    )
    root_days: int = Field(3650, gt=0, description="Life of the root certificate, days.")
    issuing_days: int = Field(1825, gt=0, description="Life of an issuing CA certificate, days.")
    server_days: int = Field(
        397, gt=0, description="Life of the registrar's and the RADIUS server's certificate, days."
    )
    ldevid_days: int = Field(90, gt=0, description="Life of a proxy's LDevID, days.")
    backdate_seconds: int = Field(300, ge=0, description="How far notBefore lies before issuance, seconds.")
    crl_hours: float = Field(
        24.0, gt=0, description="Life of a CRL, hours; rebuilt at half of it and after each revocation."
    )
    ocsp_minutes: float = Field(
        60.0, ge=1, description="Life of an OCSP answer, minutes; what caches elsewhere may keep after a revocation."
    )
    ocsp_signer_days: float = Field(14.0, ge=1, description="Life of an OCSP signer's certificate, days.")
    ocsp_kept: int = Field(10_000, ge=0, description="Signed OCSP answers kept in memory, about 1.5 kB each.")
    weak_keys: tuple[Path, ...] = Field(
        (), description="Lists of RSA keys that are never certified, in the form of Debian's openssl-blacklist."
    )


class HsmSettings(Section):
    """[hsm]"""

    module: Path | None = Field(
        None, description="PKCS#11 library whose token holds the keys of the issuing CAs and of OCSP; none = key files."
    )
    token: str = Field("campus", description="Label of the token.")
    pin_file: Path | None = Field(None, description="File with the PIN of the token's user, mode 0600.")
    label: str = Field("campus", description="How labels of our keys begin, so that a token can hold those of others.")
