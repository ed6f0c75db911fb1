"""Who still counts: what may have changed since a request was decided, asked in one statement over several tables."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import bindparam, exists, func, literal_column, select

from appliance.store import certificates as certificate_rows
from appliance.store.columns import to_micros
from appliance.store.owners import ACTIVE
from appliance.store.schema import agents, certificates, owner_keys, owners, proxies
from appliance.store.statements import plain
from appliance.store.transaction import Tx

_has_key = exists(
    select(literal_column("1"))
    .select_from(owner_keys.join(owners, owners.c.identifier == owner_keys.c.owner_id))
    .where(
        owner_keys.c.jkt == bindparam("kid"),
        owner_keys.c.state == bindparam("state"),
        owners.c.identifier == bindparam("owner"),
        owners.c.state == bindparam("state"),
    )
)
_STANDING = plain(
    select(
        select(certificates.c.state)
        .where(certificates.c.issuer_aki == bindparam("aki"), certificates.c.serial == bindparam("number"))
        .scalar_subquery()
        .label("ldevid"),
        select(proxies.c.state).where(proxies.c.identifier == bindparam("proxy")).scalar_subquery().label("proxy"),
        select(agents.c.state)
        .where(agents.c.identifier == bindparam("agent"), agents.c.proxy_id == bindparam("proxy"))
        .scalar_subquery()
        .label("agent"),
        select(func.count())
        .select_from(owner_keys)
        .where(owner_keys.c.jkt == bindparam("jkt"))
        .scalar_subquery()
        .label("owner_keys"),
        select(func.count())
        .select_from(certificates)
        .where(
            certificates.c.spki_sha256 == bindparam("spki"),
            certificates.c.agent_id != bindparam("agent"),
            certificates.c.state != bindparam("not"),
            certificates.c.not_after > bindparam("at"),
        )
        .scalar_subquery()
        .label("other_agents"),
        _has_key.label("is_approver"),
    ),
    "aki",
    "number",
    "proxy",
    "agent",
    "proxy",
    "jkt",
    "spki",
    "agent",
    "not",
    "at",
    "kid",
    "state",
    "owner",
    "state",
)
_APPROVER = plain(select(_has_key), "kid", "state", "owner", "state")


class Standing(NamedTuple):
    """States of the proxy's certificate, the proxy and the agent (None: no such row), and who else has the key.

    `is_approver` is 1 if the owner who was asked about is active and has the key that was asked about, active too.
    """

    ldevid: str | None
    proxy: str | None
    agent: str | None
    owner_keys: int
    other_agents: int
    is_approver: int


def standing(
    tx: Tx,
    *,
    issuer_aki: bytes,
    serial: int,
    proxy_id: str,
    agent_id: str,
    jkt: str,
    spki_sha256: bytes,
    at: datetime,
    owner_id: str | None = None,
    kid: str | None = None,
) -> Standing:
    """How a submitter, an agent behind it and the agent's key stand now, and an approver by owner and key."""
    values = (
        issuer_aki, certificate_rows.serial_octets(serial), proxy_id, agent_id, proxy_id, jkt,
        spki_sha256, agent_id, certificate_rows.REVOKED, to_micros(at), kid, ACTIVE, owner_id, ACTIVE,
    )  # fmt: skip
    row = tx.row(_STANDING, values)
    if row is None:
        raise LookupError("a select without FROM has one row")
    return Standing(*row)


def is_approver(tx: Tx, owner_id: str, kid: str) -> bool:
    """Whether an active owner has this key, active too."""
    row = tx.row(_APPROVER, (kid, ACTIVE, owner_id, ACTIVE))
    return bool(row and row[0])
