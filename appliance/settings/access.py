"""Network access and whom it knows: [access], [directory], [radius]."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from appliance.setting_types import AttributeName, HostName, LdapFilter, LdapUrl, SyslogUrl
from appliance.settings.section import Section


class AccessSettings(Section):
    """[access]"""

    stale_seconds: float = Field(
        30.0, gt=0, description="Age of the decision snapshot past which the policy's stale rule applies."
    )
    decision_log_days: int = Field(30, gt=0, description="How long rows of the decision log are kept, days.")
    decision_log_rows: int = Field(
        2_000_000, ge=1000, description="How many rows of the decision log are kept at most; the oldest go first."
    )
    reply_message: bool = Field(True, description="Put the reason of a reject in Reply-Message.")
    session_stale_minutes: float = Field(
        60.0, gt=0, description="A session that its NAS accounted for and then fell silent about is shown as stale."
    )
    session_assumed_hours: float = Field(
        24.0, gt=0, description="A session that only its Access-Accept told of is taken to be over after so long."
    )
    forward_to: tuple[SyslogUrl, ...] = Field(
        (),
        description="Syslog receivers that get the decision log as it is written: udp://HOST:514, tcp://HOST:601 (octet"
        " counting, RFC 6587) or tls://HOST:6514 (RFC 5425).",
    )
    forward_format: Literal["syslog", "cef"] = Field(
        "syslog", description="What they get: RFC 5424 with structured data, or CEF behind the same header."
    )
    forward_ca_file: Path | None = Field(
        None, description="CA certificates that receivers over TLS must chain to, PEM; none = those of this machine."
    )
    forward_rows: int = Field(
        100_000,
        ge=100,
        description="How many rows wait for a receiver that is away; the oldest beyond are dropped, and counted.",
    )
    session_days: int = Field(30, gt=0, description="How long ended sessions are kept, days.")

    @field_validator("forward_to")
    @classmethod
    def _each_once(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(urls)) < len(urls):  # they would share one position
            raise ValueError("a receiver is named twice")
        return urls


class DirectorySettings(Section):
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


class RadiusSettings(Section):
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
