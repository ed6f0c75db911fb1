"""Every table of the appliance; the migrations make them, the repositories beside this file use them.

Ids are UUIDs as text unless said otherwise. Digests are lower-case hex (in certificates, octets), times integer
microseconds (columns.py). There are no foreign keys on purpose: deferred ones fail at COMMIT and would take a whole
commit group down. There are no Python-side defaults either: statements run as compiled text (statements.py) and every
value is given by its caller.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from appliance.store.columns import Hex, Json, Octets, Serial, Time

metadata = MetaData()


def _text(name: str, *, null: bool = False) -> Column[str]:
    return Column(name, Text, nullable=null)


def _hex(name: str, *, null: bool = True) -> Column[str]:
    return Column(name, Hex, nullable=null)


def _octets(name: str, *, null: bool = True) -> Column[str]:
    return Column(name, Octets, nullable=null)


def _time(name: str, *, null: bool = False) -> Column[object]:
    return Column(name, Time, nullable=null)


def _id() -> Column[str]:
    return Column("id", Text, primary_key=True)


meta = Table("meta", metadata, Column("key", Text, primary_key=True), _text("value"))

audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    _time("time"),
    _text("event"),
    _text("body"),
    Column("prev", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("size", Integer, primary_key=True, autoincrement=False),
    _time("time"),
    _text("token"),
    Column("peaks", LargeBinary, nullable=False),
)

rollovers = Table(
    "rollovers",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    _text("ca"),
    _text("label"),
    _text("state"),
    Column("made", Json, nullable=True),
    _time("started_at"),
    _time("changed_at"),
    _time("published_at", null=True),
)

foreign_campuses = Table(
    "foreign_campuses",
    metadata,
    Column("origin", Text, primary_key=True),
    _text("bundle"),
    _hex("sha256", null=False),
    _time("made_at"),
    _time("imported_at"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _time("time"),
    _text("topic"),
    _text("key"),
    Column("body", Json, nullable=False),
    sqlite_autoincrement=True,
)

certificates = Table(
    "certificates",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _text("issuer_role"),
    _octets("issuer_aki", null=False),
    Column("serial", Serial, nullable=False),
    _text("profile"),
    _text("subject_id", null=True),
    _text("agent_id", null=True),
    _text("owner_id", null=True),
    _text("proxy_id", null=True),
    _text("pledge_id", null=True),
    _text("state"),
    _octets("tbs_sha256", null=False),
    _octets("cert_sha256"),
    Column("der", LargeBinary, nullable=True),
    _octets("spki_sha256", null=False),
    _octets("csr_sha256"),
    _time("not_before"),
    _time("not_after"),
    _text("txn", null=True),
    _text("model", null=True),
    _time("created_at"),
    _time("revoked_at", null=True),
    _text("revocation_reason", null=True),
    _text("tier", null=True),
    UniqueConstraint("serial", "issuer_aki"),  # serial first: also found by role and serial
    Index("certificates_agent", "agent_id", sqlite_where=text("agent_id IS NOT NULL")),
    # With what searches by department ask of many owners' certificates, so that they need not look at the rows.
    Index("certificates_owner", "owner_id", "not_after", "revoked_at", sqlite_where=text("owner_id IS NOT NULL")),
    Index("certificates_proxy", "proxy_id", "csr_sha256"),
    Index("certificates_spki", "spki_sha256"),
    # What a CRL is made of, read from the index alone; rows that are not revoked cost it nothing.
    Index(
        "certificates_revoked",
        "issuer_role",
        "revoked_at",
        "not_after",
        "serial",
        "revocation_reason",
        "issuer_aki",
        sqlite_where=text("revoked_at IS NOT NULL"),
    ),
    Index("certificates_pending", "state", sqlite_where=text("state = 'pending'")),
    Index("certificates_expiry", "not_after"),
)

crls = Table(
    "crls",
    metadata,
    Column("role", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    _time("this_update"),
    _time("next_update"),
    Column("entries", Integer, nullable=False),
    Column("revoked", Integer, nullable=False),  # revocations known when it was made, listed or not
    _hex("sha256", null=False),
)

manufacturers = Table(
    "manufacturers",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    _text("anchors_pem"),
    _text("masa_url", null=True),
    _text("masa_tls_anchors_pem", null=True),
    Column("options", Json, nullable=True),
    _time("created_at"),
)

pledges = Table(
    "pledges",
    metadata,
    _id(),
    _hex("idevid_issuer", null=False),
    _text("serial"),
    _hex("idevid_sha256"),
    _text("manufacturer_id", null=True),
    _text("state"),
    _text("masa_url", null=True),
    _text("nonce", null=True),
    _hex("pvr_sha256"),
    _hex("voucher_sha256"),
    Column("voucher", LargeBinary, nullable=True),
    Column("rvr", LargeBinary, nullable=True),
    _text("assertion", null=True),
    _text("audit_verdict", null=True),
    _text("proxy_id", null=True),
    Column("timeline", Json, nullable=True),
    Column("history", Json, nullable=True),
    Column("history_override", Json, nullable=True),
    _time("created_at"),
    _time("updated_at"),
    UniqueConstraint("idevid_issuer", "serial"),
    Index("pledges_idevid", "idevid_sha256"),
)

listed_devices = Table(
    "listed_devices",
    metadata,
    _text("manufacturer_id"),
    _text("serial"),
    _text("label", null=True),
    _hex("idevid_issuer"),
    _time("delivered_at", null=True),
    _time("created_at"),
    PrimaryKeyConstraint("manufacturer_id", "serial"),
)

knocks = Table(
    "knocks",
    metadata,
    Column("fingerprint", Text, primary_key=True),
    _text("serial"),
    _text("maker"),
    _text("manufacturer_id", null=True),
    _text("address"),
    _text("reason"),
    _text("detail"),
    Column("times", Integer, nullable=False),
    _time("first_seen"),
    _time("last_seen"),
    Index("knocks_last_seen", "last_seen"),
    Index("knocks_address", "address"),
)

vouchers_ahead = Table(
    "vouchers_ahead",
    metadata,
    _id(),
    _text("manufacturer_id"),
    _text("serial"),
    _hex("idevid_issuer", null=False),
    _text("masa_url"),
    _text("media_type"),
    Column("rvr", LargeBinary, nullable=False),
    Column("voucher", LargeBinary, nullable=True),
    Column("history", LargeBinary, nullable=True),
    _time("asked_at"),
    _time("expires_at", null=True),
    _time("handed_at", null=True),
    Index("vouchers_ahead_device", "idevid_issuer", "serial"),
)

proxies = Table(
    "proxies",
    metadata,
    _id(),
    Column("identifier", Text, nullable=False, unique=True),
    _text("pledge_id", null=True),
    _text("method"),
    _text("name", null=True),
    _text("state"),
    _time("created_at"),
    _time("updated_at"),
    _text("label", null=True),
)

est_secrets = Table(
    "est_secrets",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    _hex("secret_sha256", null=False),
    _text("label", null=True),
    _time("expires_at"),
    _time("spent_at", null=True),
    _time("created_at"),
)

est_pending = Table(
    "est_pending",
    metadata,
    _id(),
    _text("proxy_id"),
    _text("identifier"),
    _text("label"),
    _text("operation"),
    _hex("asked_sha256", null=False),
    _hex("key_sha256", null=False),
    _text("subject"),
    _text("requester"),
    _text("state"),
    _text("reason"),
    _time("created_at"),
    _time("updated_at"),
    _time("expires_at"),
    UniqueConstraint("proxy_id", "label", "operation"),
)

owners = Table(
    "owners",
    metadata,
    _id(),
    Column("identifier", Text, nullable=False, unique=True),
    Column("ref", Text, nullable=False, unique=True),
    _text("name"),
    _text("kind"),
    _text("department", null=True),
    Column("more_departments", Json, nullable=True),
    _text("state"),
    Column("source", Text, nullable=False, server_default="local"),
    _text("source_key", null=True),
    Column("source_state", Text, nullable=False, server_default="present"),
    Column("held", Integer, nullable=False, server_default="0"),
    _time("created_at"),
    _time("updated_at"),
    Index("owners_source", "source", "source_key"),
)

directory_sources = Table(
    "directory_sources",
    metadata,
    Column("source", Text, primary_key=True),
    _time("attempted_at"),
    _time("confirmed_at", null=True),
    _text("outcome"),
    Column("detail", Json, nullable=True),
)

directory_tokens = Table(
    "directory_tokens",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("token_sha256", Hex, nullable=False, unique=True),
    _time("created_at"),
)

scim_users = Table(
    "scim_users",
    metadata,
    _id(),  # that of the owner
    _text("user_name"),
    Column("user_name_key", Text, nullable=True, unique=True),  # NULL once deleted
    _text("external_id", null=True),
    Column("body", Json, nullable=False),
    Column("version", Integer, nullable=False),
    _time("created_at"),
    _time("updated_at"),
    _time("deleted_at", null=True),
    Index("scim_users_external", "external_id"),
)

scim_groups = Table(
    "scim_groups",
    metadata,
    _id(),
    _text("display_name"),
    Column("name_key", Text, nullable=False, unique=True),
    _text("external_id", null=True),
    Column("version", Integer, nullable=False),
    _time("created_at"),
    _time("updated_at"),
)

scim_members = Table(
    "scim_members",
    metadata,
    Column("group_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    PrimaryKeyConstraint("group_id", "user_id"),
    Index("scim_members_user", "user_id"),
)

owner_keys = Table(
    "owner_keys",
    metadata,
    Column("jkt", Text, primary_key=True),
    _text("owner_id"),
    Column("spki", LargeBinary, nullable=False),
    _text("protection"),
    _text("state"),
    _time("not_before", null=True),
    _time("not_after", null=True),
    _hex("statement_sha256"),
    _time("created_at"),
    _text("rp_id", null=True),
    _text("origin", null=True),
    _text("credential", null=True),
    Column("sign_count", BigInteger, nullable=True),
    Column("counted_iat", BigInteger, nullable=True),  # when the signature with that count was made, seconds since 1970
    Index("owner_keys_owner", "owner_id"),
)

owner_proxies = Table(
    "owner_proxies",
    metadata,
    Column("owner_id", Text, nullable=False),
    Column("proxy_id", Text, nullable=False),
    PrimaryKeyConstraint("owner_id", "proxy_id"),
)

owner_clients = Table(
    "owner_clients",
    metadata,
    Column("jkt", Text, primary_key=True),
    _text("owner_id"),
    Column("spki_sha256", Hex, nullable=False, unique=True),
    _text("state"),
    _hex("statement_sha256"),
    _time("created_at"),
    _time("ended_at", null=True),
    Index("owner_clients_owner", "owner_id"),
)

owner_gateways = Table(
    "owner_gateways",
    metadata,
    Column("jkt", Text, primary_key=True),
    _text("owner_id"),
    _text("url"),
    Column("spki_sha256", Hex, nullable=False, unique=True),
    _text("state"),
    _hex("statement_sha256"),
    _time("created_at"),
    _time("ended_at", null=True),
    Index("owner_gateways_owner", "owner_id"),
)

agents = Table(
    "agents",
    metadata,
    _id(),
    Column("identifier", Text, nullable=False, unique=True),
    _text("owner_id", null=True),
    _text("proxy_id"),
    _text("jkt"),
    _text("class", null=True),
    _text("state"),
    _time("created_at"),
    _time("updated_at"),
    Index("agents_proxy", "proxy_id", "state"),
    Index("agents_jkt", "jkt"),
    Index("agents_owner", "owner_id"),
)

nonces = Table(
    "nonces",
    metadata,
    Column("nonce", Text, primary_key=True),
    _text("jkt", null=True),
    _text("purpose"),
    _text("agent_id", null=True),
    _text("proxy_id", null=True),
    _time("expires_at"),
    _time("spent_at", null=True),
    Index("nonces_expiry", "expires_at"),
)

spent = Table(
    "spent",
    metadata,
    Column("kind", Text, nullable=False),
    Column("value", Text, nullable=False),
    _time("expires_at"),
    PrimaryKeyConstraint("kind", "value"),
    Index("spent_expiry", "expires_at"),
)

org_material = Table(
    "org_material",
    metadata,
    Column("rqh", Text, primary_key=True),
    Column("material", Json, nullable=False),
    _time("created_at"),
)

requests = Table(
    "requests",
    metadata,
    Column("rqh", Text, primary_key=True),
    _text("txn"),
    _text("agent_id", null=True),
    _text("owner_id", null=True),
    _text("proxy_id", null=True),
    _text("state"),
    Column("result", Json, nullable=True),
    _text("request", null=True),
    _text("approval", null=True),
    _text("evidence", null=True),
    _text("ear", null=True),
    _time("created_at"),
    _time("updated_at"),
    Index("requests_agent", "agent_id"),
)

challenges = Table(
    "challenges",
    metadata,
    _id(),
    _text("rqh"),
    Column("seat", Integer, nullable=False),
    _text("txn"),
    _text("owner_id"),
    _text("agent_id"),
    _text("proxy_id"),
    _text("nonce"),
    _text("state"),
    _text("request"),
    Column("csr", LargeBinary, nullable=True),
    _text("challenge", null=True),
    _text("answer", null=True),
    _time("created_at"),
    _time("expires_at"),
    _time("updated_at"),
    UniqueConstraint("rqh", "seat"),
    Index("challenges_owner", "owner_id", "state"),
    Index("challenges_agent", "agent_id", "state"),
    Index("challenges_expiry", "expires_at"),
)

further_approvals = Table(
    "further_approvals",
    metadata,
    Column("certificate_id", Integer, primary_key=True, autoincrement=False),
    Column("owner_id", Text, primary_key=True),
    _text("kid"),
    _time("created_at"),
    Index("further_approvals_owner", "owner_id"),
)

standing_approvals = Table(
    "standing_approvals",
    metadata,
    Column("s256", Text, primary_key=True),
    _text("owner_id"),
    _text("agent_id"),
    _text("jti"),
    _text("kid"),
    _text("token"),
    _text("state"),
    Column("uses", Integer, nullable=False),
    Column("max_uses", Integer, nullable=True),
    _time("expires_at"),
    _time("created_at"),
    _time("used_at", null=True),
    _time("withdrawn_at", null=True),
    UniqueConstraint("owner_id", "jti"),
    Index("standing_approvals_agent", "agent_id", "state"),
)

policies = Table(
    "policies",
    metadata,
    Column("revision", Integer, primary_key=True, autoincrement=True),
    _text("text"),
    _hex("sha256", null=False),
    _text("comment", null=True),
    _time("published_at"),
    sqlite_autoincrement=True,
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _time("time"),
    _text("verdict"),
    _text("vlan", null=True),
    _text("reason"),
    _text("nas", null=True),
    _text("port", null=True),
    _text("mac", null=True),
    _text("session", null=True),
    _text("agent_id", null=True),
    _text("owner_id", null=True),
    _text("department", null=True),
    _text("serial", null=True),
    Column("policy_revision", Integer, nullable=True),
    Column("trace", Json, nullable=True),
    Column("times", Integer, nullable=True),  # how many alike the row stands for; null = one
    Index("decisions_time", "time"),
    Index("decisions_agent", "agent_id", sqlite_where=text("agent_id IS NOT NULL")),
    Index("decisions_mac", "mac", sqlite_where=text("mac IS NOT NULL")),
)

nas = Table(
    "nas",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    _text("address"),
    Column("secret_sealed", LargeBinary, nullable=False),
    _time("created_at"),
    _text("site", null=True),
    Column("coa_port", Integer, nullable=True),  # NULL = 3799
    _text("profile", null=True),  # NULL = generic-disconnect
    Column("old_secret_sealed", LargeBinary, nullable=True),  # while a rotation's overlap lasts
    _time("old_secret_until", null=True),
)

sessions = Table(
    "sessions",
    metadata,
    _id(),
    _text("state"),
    _text("nas"),
    _text("nas_address"),
    _text("port"),
    _text("mac"),
    _text("mac_key"),
    _text("acct_session"),
    _text("agent_id"),
    _text("owner_id"),
    _text("department"),
    _text("serial"),
    _text("txn"),
    _text("verdict"),
    _text("vlan"),
    _text("granted"),
    Column("request", Json, nullable=False),
    Column("policy_revision", Integer, nullable=False),
    Column("octets_in", BigInteger, nullable=False),
    Column("octets_out", BigInteger, nullable=False),
    _time("began_at"),
    _time("updated_at"),
    _time("ended_at", null=True),
    _text("cause"),
    # one open session per port and station; the closed ones are history
    Index("sessions_open", "nas_address", "mac_key", sqlite_where=text("ended_at IS NULL")),
    Index("sessions_live_owner", "owner_id", sqlite_where=text("ended_at IS NULL")),
    Index("sessions_live_agent", "agent_id", sqlite_where=text("ended_at IS NULL")),
    Index("sessions_acct", "nas_address", "acct_session"),
    Index("sessions_ended", "ended_at"),
)

session_changes = Table(
    "session_changes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _text("session_id"),
    _text("want"),
    _text("why"),
    _text("state"),
    Column("attempts", Integer, nullable=False),
    _text("result"),
    _time("created_at"),
    _time("due_at"),
    _time("updated_at"),
    Index("session_changes_session", "session_id"),
    Index("session_changes_due", "due_at", sqlite_where=text("state = 'waiting'")),
    sqlite_autoincrement=True,
)

radius_servers = Table(
    "radius_servers",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    _hex("token_sha256", null=False),
    _time("created_at"),
    _hex("older_sha256"),
)
