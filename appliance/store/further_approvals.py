"""Who approved beside an agent's own owner, where several must: one row per certificate and such approver.

The credential and its row name the agent's owner alone. These rows are how a further approver, or its key, that is
revoked takes the credentials along, and how its owner finds them. They name the certificate's own row: what agents say
about a request, `txn` among it, may be said twice. A WIT alone is found by the approvals of its request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, insert, select

from appliance.store.certificates import REVOKED
from appliance.store.schema import certificates
from appliance.store.schema import further_approvals as table
from appliance.store.transaction import Tx

_c = table.c
_ADD = insert(table)
_CERTIFIED = (
    select(*certificates.c, _c.kid.label("approved_by"))
    .select_from(table.join(certificates, certificates.c.id == _c.certificate_id))
    .where(_c.owner_id == bindparam("owner"))
    .order_by(certificates.c.id)
)


def add(tx: Tx, certificate_id: int, owner_id: str, kid: str) -> None:
    """Keep that this owner, by this key, approved a certificate beside the agent's own; Conflict if it did already."""
    tx.execute(_ADD, {"certificate_id": certificate_id, "owner_id": owner_id, "kid": kid, "created_at": tx.now})


def certificates_of(tx: Tx, owner_id: str) -> Sequence[Any]:
    """The rows of certificates, live or not, behind which this owner stands beside the agents' own, oldest first.

    `approved_by` is the key that approved.
    """
    return tx.all(_CERTIFIED, {"owner": owner_id})


def live_certificates_of(tx: Tx, owner_id: str) -> list[Any]:
    """Those of them that are pending or issued, and not over."""
    return [row for row in certificates_of(tx, owner_id) if row.state != REVOKED and row.not_after > tx.now]
