"""How the appliance listens, stores, audits and logs: [web], [store], [audit], [log]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from appliance.settings.section import Section


class WebSettings(Section):
    """[web]"""

    host: str = Field("127.0.0.1", description="Address the device, console and PKI ports listen on.")
    names: tuple[str, ...] = Field(
        ("localhost", "127.0.0.1"), description="DNS names and addresses put into the server certificates."
    )
    device_port: int = Field(
        8443, ge=0, le=65535, description="BRSKI, EST, agent and owner API (0 = pick one and say which)."
    )
    console_port: int = Field(9443, ge=0, le=65535, description="Console and manual.")
    decision_host: str = Field("127.0.0.1", description="Address of the decision port.")
    decision_port: int = Field(8444, ge=0, le=65535, description="Decision port for RADIUS servers.")
    identity_port: int = Field(
        8445, ge=0, le=65535, description="Agent and owner API of the processes of identity.workers, if there are any."
    )
    pki_port: int = Field(8080, ge=0, le=65535, description="CRLs, OCSP and CA certificates over plain HTTP.")
    handshake_seconds: float = Field(10.0, gt=0, description="Deadline for a TLS handshake.")
    header_seconds: float = Field(5.0, gt=0, description="Deadline for the header block of a request.")
    request_seconds: float = Field(10.0, gt=0, description="Deadline for a whole request; BRSKI requests have 30 s.")
    keepalive_seconds: float = Field(15.0, gt=0, description="How long an idle connection is kept.")
    max_connections: int = Field(2000, gt=0, description="Open connections on the device port, all addresses together.")
    max_connections_per_address: int = Field(
        256, gt=0, description="Open connections on the device port from one address."
    )
    address_rate: float = Field(
        5.0, gt=0, description="Requests per second that an address may make without a known certificate."
    )
    address_burst: int = Field(20, gt=0, description="Burst for address_rate.")
    pki_rate: float = Field(100.0, gt=0, description="OCSP requests per second that an address may make.")
    pki_burst: int = Field(1000, gt=0, description="Burst for pki_rate.")
    identity_rate: float = Field(
        50.0, gt=0, description="Requests per second that one certificate of ours, or one local user, may make."
    )
    identity_burst: int = Field(200, gt=0, description="Burst for identity_rate.")


class StoreSettings(Section):
    """[store]"""

    url: str = Field("", description="SQLAlchemy URL; empty = SQLite file HOME/appliance.db.")
    free_bytes: int = Field(
        16_000_000,
        ge=0,
        description="Refuse to issue when the disk has fewer free bytes than this; its log beside it may grow to"
        " some 8 MB.",
    )


class AuditSettings(Section):
    """[audit]"""

    checkpoint_seconds: float = Field(
        60.0, gt=0, description="A signed checkpoint follows this long after an audit entry at the latest, seconds."
    )
    checkpoint_entries: int = Field(1000, gt=0, description="After so many audit entries it follows at once.")
    checkpoint_file: str = Field(
        "",
        description="File that every checkpoint is added to; best on another device. "
        "Empty = HOME/audit-checkpoints.jsonl.",
    )


class LogSettings(Section):
    """[log]"""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level written.")
    format: Literal["text", "json"] = Field("text", description="Shape of log lines on standard error.")
