"""Programs on other hosts, which have settings files of their own: [proxy], [join], [owner]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from appliance.setting_types import CommandLine
from appliance.settings.section import Section


class ProxySettings(Section):
    """[proxy] (of the identity proxy's own settings file)"""

    method: Literal["brski", "est"] = Field(
        "brski", description="How the proxy gets its first LDevID; fixed before discovery, never changed by a failure."
    )
    idevid_certificate: Path | None = Field(None, description="IDevID certificate with its chain, PEM (method brski).")
    idevid_key: Path | None = Field(None, description="IDevID key, PEM (method brski).")
    masa_anchors: Path | None = Field(
        None, description="Manufacturer's anchors that vouchers are checked against, PEM."
    )
    registrar_url: str = Field(
        "", description="Registrar location; empty = discover by mDNS (method brski); required for method est."
    )
    est_anchor: Path | None = Field(None, description="Server's trust anchor or certificate, PEM (method est).")
    est_fingerprint: str = Field(
        "", description="SHA-256 of the server's root certificate, hex (method est, instead of est_anchor)."
    )
    est_implicit_anchors: Path | None = Field(
        None,
        description="The machine's own trust anchors, PEM, as /etc/ssl/certs/ca-certificates.crt (method est, instead "
        "of est_anchor); the server must bear the name in registrar_url.",
    )
    est_label: str = Field("", description="EST label that the proxy enrols and renews under; empty = none.")
    est_secret_file: Path | None = Field(
        None, description="File with NAME:SECRET, the one-time enrolment secret (method est)."
    )
    interfaces: tuple[str, ...] = Field(
        ("*",), description="Interface names or addresses that discovery listens on; * = all but loopback."
    )
    discovery_listen_seconds: float = Field(
        0.5, ge=0, description="Discovery only listens, by chance up to so long, before it asks; 0 = ask at once."
    )
    socket: Path | None = Field(None, description="Agent API socket; empty = STATE/agent.sock.")
    socket_mode: int = Field(0o660, description="File mode of the socket.")
    allow_root_agents: bool = Field(False, description="Serve callers with uid 0; only for laboratories.")
    tpm: str = Field(
        "",
        max_length=200,
        description="TCTI of this machine's TPM, as device:/dev/tpmrm0; its quote goes into all evidence (extra tpm); "
        "empty = no quote.",
    )
    tpm_pcrs: tuple[Annotated[int, Field(ge=0, le=23)], ...] = Field(
        (0, 2, 4, 7), min_length=1, description="Registers (SHA-256 bank) that the quote speaks of."
    )
    spiffe_workloads: Path | None = Field(
        None,
        description="File of the workloads that the SPIFFE Workload API serves, TOML; empty = no such API. Their keys "
        "are made and held by the proxy.",
    )
    spiffe_socket: Path | None = Field(
        None, description="Socket of the SPIFFE Workload API, with the mode of socket_mode; empty = STATE/spiffe.sock."
    )
    voucher_format: Literal["cms", "jws"] = Field(
        "cms", description="Voucher format to ask in: JSON signed by CMS, or by JWS (method brski)."
    )
    accept_nonceless: bool = Field(False, description="Accept a nonceless voucher.")
    trust_clock: bool = Field(True, description="The machine's clock is right, so check every date; off: it has none.")
    give_up_seconds: float = Field(0, ge=0, description="Stop discovery after this long; 0 = never.")
    supplicant_command: CommandLine = Field(
        "",
        description="Command that tells the supplicant about STATE/wpa_supplicant.conf, after the first LDevID and "
        "every renewal; split into words, run without a shell; empty = none.",
    )


class JoinSettings(Section):
    """[join] (of the join proxy's own settings file)"""

    registrar: str = Field(
        "", description="Registrar as HOST:PORT; empty = found by mDNS among the neighbours on registrar_interfaces."
    )
    interfaces: tuple[str, ...] = Field(
        ("*",), description="Interface names or addresses of the pledges: announced there; * = all but loopback."
    )
    registrar_interfaces: tuple[str, ...] = Field(
        ("*",), description="Interface names or addresses on which registrars are looked for; * = all but loopback."
    )
    host: str = Field("0.0.0.0", description="Address to listen on; :: for IPv6.")  # noqa: S104 - pledges are anywhere
    port: int = Field(0, ge=0, le=65535, description="TCP port; 0 = any free one, announced as it is.")
    max_circuits: int = Field(128, ge=1, description="Connections of pledges at once.")
    max_per_address: int = Field(8, ge=1, description="Connections at once of one address (IPv6: one /64).")
    max_octets: int = Field(1_048_576, ge=1, description="Octets that one connection may carry in each direction.")
    idle_seconds: float = Field(90.0, gt=0, description="A connection without any octet for so long is closed.")
    total_seconds: float = Field(900.0, gt=0, description="Longest life of a connection.")


class OwnerSettings(Section):
    """[owner]"""

    allow_long_lives: bool = Field(False, description="Let review sign lives over 24 h.")
