"""How devices come in and get certificates: [registrar], [est]."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from appliance.setting_types import DomainId
from appliance.settings.section import Section
from est.errors import LabelNotUsable
from est.server import EstServer

AuditRule = Literal[
    "foreign-domain",
    "foreign-nonceless",
    "before-purchase",
    "more-than-issued",
    "own-entry-missing",
    "entries-removed",
    "newer-version",
]


class RegistrarSettings(Section):
    """[registrar]"""

    admission: Literal["automatic", "listed", "manual"] = Field(
        "automatic",
        description="Who is admitted: every pledge of a known manufacturer, listed serials only, or by hand.",
    )
    announce: bool = Field(True, description="Announce the registrar by mDNS.")
    announce_interfaces: tuple[str, ...] = Field(
        ("127.0.0.1",),
        description="Interface names or addresses that mDNS announcements go out on; * = all but loopback.",
    )
    announce_as_proxy: bool = Field(
        True, description="Announce the registrar as join proxy too; off where pledges come through join proxies only."
    )
    masa_seconds: float = Field(10.0, gt=0, description="Deadline for one call to a MASA.")
    masa_concurrency: int = Field(4, gt=0, description="Calls under way to one MASA at once.")
    retry_after_seconds: int = Field(5, ge=1, description="Retry-After in a 202 answer, seconds.")
    accept_nonceless: bool = Field(False, description="Accept voucher-requests without a nonce.")
    accept_id_data: bool = Field(
        True, description="Accept voucher artefacts whose eContentType is id-data (every RFC 8995 example has it)."
    )
    voucher_formats: tuple[Literal["cms", "jws"], ...] = Field(
        ("cms", "jws"),
        min_length=1,
        description="Voucher formats that pledges may ask in: cms, jws. The MASA is asked in the pledge's.",
    )
    pledge_rate: float = Field(0.1, gt=0, description="Voucher-requests per second of one device; retries are free.")
    pledge_burst: int = Field(20, gt=0, description="Burst for pledge_rate.")
    maker_rate: float = Field(
        100.0, gt=0, description="Voucher-requests per second of all devices of one manufacturer, retries not counted."
    )
    maker_burst: int = Field(1000, gt=0, description="Burst for maker_rate.")
    request_rate: float = Field(200.0, gt=0, description="Voucher-requests per second of all devices together.")
    request_burst: int = Field(2000, gt=0, description="Burst for request_rate.")
    audit_refuse: tuple[AuditRule, ...] = Field(
        (
            "foreign-domain",
            "foreign-nonceless",
            "before-purchase",
            "more-than-issued",
            "own-entry-missing",
            "entries-removed",
        ),
        description="Rules over a device's history that keep it out; those left out are only reported.",
    )
    audit_known_domains: tuple[DomainId, ...] = Field(
        (), description="domainIDs, base64, whose entries in a device's history are in order."
    )
    max_ldevids: int = Field(8, ge=0, description="Live LDevIDs that one proxy may hold; 0 = any number.")
    prefetch: Literal["off", "nonceless-requests", "masa-silent"] = Field(
        "off",
        description="Vouchers without a nonce, fetched ahead: none; handed out to requests without a nonce; also to "
        "others while the MASA does not answer.",
    )


class EstProfile(Section):
    """The rules of one EST label: [est] for the path without one, [est.labels.NAME] for each other."""

    life_days: int = Field(0, ge=0, description="Life of certificates, days; 0 = ca.ldevid_days.")
    key: Literal["any", "p-256", "p-384"] = Field(
        "any",
        description="Keys that are taken: every one that the appliance takes (csrattrs says P-256), or one curve.",
    )
    linking: Literal["off", "when-present", "required"] = Field(
        "when-present",
        description="Binding of requests to their TLS session: not looked at, checked where there is one, or demanded.",
    )
    csrattrs: Literal["enforce", "tell"] = Field(
        "enforce", description="Whether a device that asked for CSR attributes is held to the answer."
    )
    approval: Literal["automatic", "manual"] = Field(
        "automatic", description="Whether a request is answered at once, or waits for a yes: appliance est pending."
    )
    approval_hours: float = Field(72.0, gt=0, description="How long a request waits, and a decision counts, hours.")
    approval_retry_seconds: int = Field(
        60, ge=1, le=86400, description="Retry-After that waiting clients are told, seconds."
    )
    requests_per_second: float = Field(
        0.0, ge=0, description="Requests for certificates per second under this label, from all clients; 0 = no limit."
    )
    requests_burst: int = Field(50, gt=0, description="Burst for requests_per_second.")
    renaming: Literal["refuse", "common-name"] = Field(
        "refuse", description="ChangeSubjectName in a request: refused, or it may set the common name."
    )
    authorities: bool = Field(
        False, description="Whether registration authorities may ask for others: appliance est ra."
    )
    serverkeygen: Literal["off", "encrypted", "plain"] = Field(
        "off",
        description="Keys made for clients: none, sent encrypted only, or in clear as well (inside TLS).",
    )
    serverkeygen_key: Literal["p-256", "rsa-2048", "rsa-3072"] = Field(
        "p-256", description="The keys that are made; libest reads RSA alone."
    )
    shared_keys_file: Path | None = Field(
        None,
        description="Symmetric keys that made keys may be encrypted with: lines of identifier and key, hex; mode 0600.",
    )

    @model_validator(mode="after")
    def _check_keygen(self) -> Self:
        if self.serverkeygen != "off" and self.key != "any" and self.key != self.serverkeygen_key:
            raise ValueError(f"serverkeygen_key is {self.serverkeygen_key}, but key takes {self.key} only")
        return self


class EstSettings(EstProfile):
    """[est]"""

    line_breaks: Literal["as-asked", "always", "never"] = Field(
        "as-asked",
        description="Whether base64 of more than 1000 bytes goes out in lines of 64: as a client wrote its own (for"
        " cacerts: if it is libest), or the same for all.",
    )
    labels: dict[str, EstProfile] = Field(
        {}, description="Labels with rules of their own, each a table [est.labels.NAME] with the keys above."
    )

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: dict[str, EstProfile]) -> dict[str, EstProfile]:
        try:
            EstServer(labels=labels)
        except LabelNotUsable as refusal:
            raise ValueError(refusal.detail) from refusal
        if "radius" in labels:
            raise ValueError("the label radius is kept for RADIUS servers (appliance radius enroll)")
        return labels
