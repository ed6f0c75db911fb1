"""Everything that can be configured, with default and description; the only module that reads files and environment.

Sections are the tree's folders. Precedence: flag, environment (APPLIANCE_<SECTION>__<KEY>), file, default.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from appliance.setting_types import (
    AttributeName,
    CommandLine,
    DomainId,
    HostName,
    LdapFilter,
    LdapUrl,
    OidArc,
    Organization,
    ServerId,
    TrustDomain,
)
from est.errors import LabelNotUsable, Refusal
from est.server import EstServer


class SettingsInvalid(Refusal):
    """A setting is unknown, mistyped or out of range."""

    reason: ClassVar[str] = "settings-invalid"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DomainSettings(_Section):
    """[domain]"""

    trust_domain: TrustDomain = Field(
        "campus.example", description="Trust domain: the authority part of every identifier issued here."
    )
    organization: Organization = Field("Campus", description="Organization name in the subjects of the CAs.")
    scheme: Literal["spiffe", "wimse"] = Field(
        "spiffe", description="URI scheme of identifiers; one per trust domain, never both."
    )


class WebSettings(_Section):
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


class StoreSettings(_Section):
    """[store]"""

    url: str = Field("", description="SQLAlchemy URL; empty = SQLite file HOME/appliance.db.")
    free_bytes: int = Field(
        16_000_000, ge=0, description="Refuse to issue when the disk has fewer free bytes than this."
    )


class AuditSettings(_Section):
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


class CaSettings(_Section):
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


class HsmSettings(_Section):
    """[hsm]"""

    module: Path | None = Field(
        None, description="PKCS#11 library whose token holds the keys of the issuing CAs and of OCSP; none = key files."
    )
    token: str = Field("campus", description="Label of the token.")
    pin_file: Path | None = Field(None, description="File with the PIN of the token's user, mode 0600.")
    label: str = Field("campus", description="How labels of our keys begin, so that a token can hold those of others.")


AuditRule = Literal[
    "foreign-domain",
    "foreign-nonceless",
    "before-purchase",
    "more-than-issued",
    "own-entry-missing",
    "entries-removed",
    "newer-version",
]


class RegistrarSettings(_Section):
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


class EstProfile(_Section):
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


Approvers = Annotated[int, Field(ge=0, le=8)]


class IdentitySettings(_Section):
    """[identity]"""

    workers: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes that serve the agent and owner API at web.identity_port, beside the device port, which "
        "serves it as ever. Rates count in each process.",
    )
    server_id: ServerId = Field(
        "", description="Audience of requests and approvals; empty = https://ids.<trust domain>/v1."
    )
    oid_arc: OidArc = Field(
        "1.3.6.1.4.1.32473.2026.1",
        description="OID arc of the two private extensions; replace the documentation number by your own.",
    )
    agent_hours: float = Field(8.0, gt=0, le=24, description="Longest life of an agent certificate, hours.")
    wit_minutes: float = Field(60.0, gt=0, description="Life of a WIT, minutes.")
    nonce_hours: float = Field(
        24.0, gt=0, description="Life of a nonce and use window of an approval, agent-mediated, hours."
    )
    challenge_seconds: int = Field(
        900, gt=0, le=900, description="How long an owner may take to answer a challenge, server-mediated, seconds."
    )
    challenge_policy_seconds: int = Field(
        30, gt=0, le=900, description="The same for an owner of kind policy, which is a program."
    )
    challenges_per_owner: int = Field(
        20, gt=0, le=100, description="Questions that may wait for one owner at a time, server-mediated."
    )
    denial_mute_seconds: int = Field(
        900, ge=0, description="How long an owner is not asked about an agent again after a no, seconds."
    )
    standing_days: float = Field(
        90.0,
        gt=0,
        le=90,
        description="Longest life of a standing approval, which covers renewals, days.",
    )
    evidence_seconds: int = Field(300, gt=0, description="Oldest evidence accepted at submission, seconds.")
    skew_seconds: int = Field(60, ge=0, description="Clock difference tolerated, seconds.")
    reserve_per_proxy: int = Field(
        1000, gt=0, description="Agent identifiers that one proxy may have reserved and not yet used."
    )
    proxy_rate: float = Field(50.0, gt=0, description="Requests per second of one proxy.")
    proxy_burst: int = Field(200, gt=0, description="Burst for proxy_rate.")
    appraisal_policy: Path | None = Field(None, description="Appraisal policy file; none = the built-in policy.")
    verifier_url: str = Field(
        "", max_length=300, description="https address of a verifier elsewhere; empty = evidence is appraised here."
    )
    verifier_anchors: Path | None = Field(
        None, description="PEM file with the anchors that the verifier's TLS certificate is held to; with verifier_url."
    )
    verifier_keys: Path | None = Field(
        None, description="PEM file with the public keys that may sign the verifier's results; with verifier_url."
    )
    verifier_seconds: float = Field(5.0, gt=0, le=20, description="Longest wait for the verifier's answer, seconds.")
    verifier_concurrency: int = Field(16, gt=0, le=256, description="Calls to the verifier at the same time.")
    approvers: dict[str, Approvers] = Field(
        {},
        description="How many of an owner's keys must approve for an agent class, a table [identity.approvers] with "
        "lines such as robot = 2; 0 = an agent of the class may also act for itself, without an owner. `default` is "
        "for classes that are not named; without it: 1.",
    )
    passkey_rp_id: str = Field(
        "", max_length=253, description="Relying party of owners' passkeys (WebAuthn); empty = the trust domain."
    )
    passkey_origin: str = Field(
        "", max_length=300, description="Origin that owners' passkeys are used from; empty = https://<relying party>."
    )
    allow_software_owner_keys: bool = Field(True, description="Accept approvals signed by owner keys kept in software.")


class AccessSettings(_Section):
    """[access]"""

    stale_seconds: float = Field(
        30.0, gt=0, description="Age of the decision snapshot past which the policy's stale rule applies."
    )
    decision_log_days: int = Field(30, gt=0, description="How long rows of the decision log are kept, days.")
    decision_log_rows: int = Field(
        2_000_000, ge=1000, description="How many rows of the decision log are kept at most; the oldest go first."
    )
    reply_message: bool = Field(True, description="Put the reason in Reply-Message.")
    session_stale_minutes: float = Field(
        60.0, gt=0, description="A session that its NAS accounted for and then fell silent about is shown as stale."
    )
    session_days: int = Field(30, gt=0, description="How long ended sessions are kept, days.")


class DirectorySettings(_Section):
    """[directory]"""

    source: Literal["none", "csv", "ldap"] = Field(
        "none", description="What is read on a schedule to learn of owners; SCIM clients need no setting but a token."
    )
    interval_minutes: float = Field(
        15.0, gt=0, le=1440, description="How often the source is read, minutes; by chance up to a tenth later."
    )
    stale_hours: float = Field(
        24.0, gt=0, description="Age of the last whole reading past which when_stale applies to the source's owners."
    )
    when_stale: Literal["keep", "guest", "reject"] = Field(
        "guest", description="What decisions do with owners of a source that was not read for too long."
    )
    max_owners: int = Field(100_000, gt=0, description="More entries than this in one source are refused.")
    max_bytes: int = Field(268_435_456, gt=0, description="More octets than this from a directory are refused.")
    csv_file: Path | None = Field(None, description="File that is read (source csv), as `owners import` takes it.")
    ldap_url: LdapUrl = Field(
        "", description="Directory server, ldaps://HOST[:PORT] or ldap://HOST[:PORT] (source ldap)."
    )
    ldap_start_tls: bool = Field(
        True, description="StartTLS on an ldap:// connection; without it, only a server on this machine is spoken to."
    )
    ldap_ca_file: Path | None = Field(
        None, description="CA certificates that the directory's certificate must chain to, PEM; no others count."
    )
    ldap_bind_dn: str = Field("", description="Account to read with; empty = anonymous.")
    ldap_password_file: Path | None = Field(None, description="File with that account's password, mode 0600.")
    ldap_base: str = Field("", description="Name of the entry below which people are.")
    ldap_filter: LdapFilter = Field("(objectClass=person)", description="Filter (RFC 4515) that people's entries pass.")
    ldap_ref: AttributeName = Field("uid", description="Attribute with the owner's ref; sAMAccountName at AD.")
    ldap_name: AttributeName = Field("cn", description="Attribute with the name for people; displayName at AD.")
    ldap_key: AttributeName = Field(
        "entryUUID", description="Attribute that names an entry for good, also when it is renamed; objectGUID at AD."
    )
    ldap_departments: tuple[AttributeName, ...] = Field(
        ("departmentNumber",), description="Attributes with departments, the first first; department at AD."
    )
    ldap_groups: AttributeName = Field(
        "", description="Attribute with names of groups that count as departments, such as memberOf; empty = none."
    )
    ldap_group_base: str = Field("", description="Only groups below this name count; empty = all.")
    ldap_page: int = Field(500, ge=1, le=1000, description="Entries per page (RFC 2696).")
    ldap_timeout_seconds: int = Field(10, ge=1, le=60, description="How long the directory may take for one answer.")
    ldap_total_seconds: int = Field(50, ge=1, le=100, description="How long one reading may take.")
    scim_base_url: str = Field(
        "",
        description="Scheme and address under which SCIM clients find the console port; empty ="
        " https://<web.names[0]>:<console_port>.",
    )
    scim_departments: Literal["attribute", "groups", "both"] = Field(
        "attribute", description="What SCIM owners' departments are: the enterprise attribute, group names, or both."
    )
    scim_rate: float = Field(50.0, gt=0, description="SCIM requests per second that an address may make.")
    scim_burst: int = Field(200, gt=0, description="Burst for scim_rate.")


class RadiusSettings(_Section):
    """[radius]"""

    engine: Literal["embedded", "freeradius", "none"] = Field(
        "embedded", description="Who speaks RADIUS: the embedded server, a supervised FreeRADIUS, or nobody."
    )
    host: str = Field("127.0.0.1", description="Address RADIUS listens on.")
    port: int = Field(1812, ge=0, le=65535, description="Authentication port, UDP (0 = pick one and say which).")
    accounting_port: int = Field(
        1813,
        ge=0,
        le=65535,
        description="Accounting port, UDP (0 = pick one and say which; so if radius.port is 0).",
    )
    workers: int = Field(
        0, ge=0, le=64, description="Processes of the embedded server; 0 = the appliance's own process does it all."
    )
    server_name: HostName = Field(
        "", description="dNSName of the RADIUS server certificate; empty = radius.<trust domain>."
    )
    tls_min: Literal["1.2", "1.3"] = Field("1.2", description="Lowest TLS version of EAP-TLS.")
    tls_max: Literal["1.2", "1.3"] = Field("1.3", description="Highest TLS version of EAP-TLS.")
    session_seconds: float = Field(30.0, gt=0, description="Life of an unfinished EAP conversation.")
    max_sessions: int = Field(4096, gt=0, description="EAP conversations under way at once.")
    fragment_bytes: int = Field(1000, ge=200, le=4000, description="TLS bytes in one EAP-TLS fragment.")
    more_hosts: tuple[str, ...] = Field((), description="More addresses that FreeRADIUS listens on, such as ::1.")
    radsec_host: str = Field(
        "", description="Address that FreeRADIUS listens on for RADIUS over TLS; empty = no RadSec."
    )
    radsec_port: int = Field(2083, ge=1, le=65535, description="RadSec port, TCP.")
    fail_mode: Literal["closed", "guest", "last-known-good"] = Field(
        "closed",
        description="What FreeRADIUS does with a login while the appliance is silent: reject it, the guest VLAN of the "
        "policy, or what was decided last about the same certificate, else the guest VLAN.",
    )
    last_known_good_seconds: int = Field(
        120,
        ge=1,
        le=300,
        description="For how long FreeRADIUS remembers a decision, fail_mode last-known-good, seconds.",
    )
    user: str = Field("freerad", description="User that FreeRADIUS runs as where the appliance is root.")


class ProxySettings(_Section):
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


class JoinSettings(_Section):
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


class OwnerSettings(_Section):
    """[owner]"""

    allow_long_lives: bool = Field(False, description="Let review sign lives over 24 h.")


class LogSettings(_Section):
    """[log]"""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level written.")
    format: Literal["text", "json"] = Field("text", description="Shape of log lines on standard error.")


class Settings(_Section):
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


FILE_NAME = "appliance.toml"
_SECTIONS: Mapping[str, type[_Section]] = {
    name: info.annotation  # type: ignore[misc]
    for name, info in Settings.model_fields.items()
    if name != "home"
}


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings together with where each value came from: `flag`, `environment`, `file` or `default`."""

    settings: Settings
    origins: Mapping[str, str]


def default_home() -> Path:
    """`$APPLIANCE_HOME`, else a per-user state folder."""
    if named := os.environ.get("APPLIANCE_HOME"):
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "appliance"


def load_settings(
    home: Path | None = None, assignments: Sequence[str] = (), *, file: Path | None = None
) -> LoadedSettings:
    """Settings of a home.

    `assignments` are `section.key=value` texts from the command line; `file` replaces HOME/appliance.toml.
    Raises SettingsInvalid naming the key, and for an unknown key its nearest known neighbour.
    """
    home = (home or default_home()).absolute()
    values: dict[str, dict[str, Any]] = {}
    origins = {f"{section}.{key}": "default" for section, model in _SECTIONS.items() for key in model.model_fields}

    def put(section: str, key: str, value: Any, origin: str) -> None:
        dotted = f"{section}.{key}"
        if dotted not in origins:
            near = difflib.get_close_matches(dotted, origins, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsInvalid(f"unknown setting {dotted} (from {origin}){hint}", key=dotted)
        values.setdefault(section, {})[key] = value
        origins[dotted] = origin

    path = file or home / FILE_NAME
    if path.exists():
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as cause:
            raise SettingsInvalid(f"{path.name}: {cause}", file=str(path)) from cause
        for section, table in document.items():
            if not isinstance(table, dict):
                raise SettingsInvalid(f"{path.name}: {section} must be a section", key=section)
            for key, value in table.items():
                put(section, key, value, "file")
    elif file is not None:
        raise SettingsInvalid(f"settings file {path} does not exist", file=str(path))
    for name, value in os.environ.items():
        if name.startswith("APPLIANCE_") and "__" in name:
            section, _, key = name.removeprefix("APPLIANCE_").lower().partition("__")
            put(section, key, _from_text(section, key, value), "environment")
    for assignment in assignments:
        dotted, equals, value = assignment.partition("=")
        section, dot, key = dotted.strip().partition(".")
        if not (equals and dot):
            raise SettingsInvalid(f"--set wants section.key=value, not {assignment!r}", key=dotted)
        put(section, key, _from_text(section, key, value), "flag")
    try:
        settings = Settings.model_validate({"home": home, **values})
    except ValidationError as cause:
        first = cause.errors()[0]
        dotted = ".".join(str(part) for part in first["loc"])
        raise SettingsInvalid(f"setting {dotted}: {first['msg']}", key=dotted) from cause
    return LoadedSettings(settings, origins)


def _from_text(section: str, key: str, value: str) -> Any:
    """A list-valued setting is comma-separated in flags and environment; the model converts the rest."""
    model = _SECTIONS.get(section)
    if model is not None and key in model.model_fields and isinstance(model.model_fields[key].default, tuple):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def describe_settings() -> list[tuple[str, str, str]]:
    """(dotted name, default as text, description) of every setting; reference page and sample file are made of it."""
    rows = []
    for section, model in _SECTIONS.items():
        for key, info in model.model_fields.items():
            default = info.default
            text = ", ".join(map(str, default)) if isinstance(default, tuple | dict) else str(default)
            rows.append((f"{section}.{key}", "" if default is None else text, info.description or ""))
    return rows


def sample_file(chosen: Mapping[str, object] | None = None) -> str:
    """A complete settings file: every setting with its meaning, commented out unless `chosen` sets it."""
    lines = ["# Settings of the appliance. Uncomment what you change; `appliance check` validates this file.", ""]
    for section, model in _SECTIONS.items():
        lines.append(f"[{section}]")
        for key, info in model.model_fields.items():
            value = (chosen or {}).get(f"{section}.{key}")
            mark = "" if value is not None else "# "
            shown = info.default if value is None else value
            lines.append(f"# {info.description}")
            lines.append(f"{mark}{key} = {_toml(shown)}")
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
    text = "" if value is None else str(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
