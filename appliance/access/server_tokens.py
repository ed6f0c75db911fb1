"""Tokens of RADIUS servers: one that serves is ended by its successor's serving, not by its being made.

A configuration that carries a new token may not come up. What FreeRADIUS then goes back to carries the one before.
"""

from __future__ import annotations

from hashlib import sha256

from appliance.audit import Actor, AuditEvent, append
from appliance.store import nas
from appliance.store.transaction import Tx


def digest_of(token: str) -> bytes:
    """What is kept of a token."""
    return sha256(token.encode("utf-8", "replace")).digest()


def put(tx: Tx, id_: str, server: str, digest: bytes, actor: Actor) -> None:
    """A new token; the one that served last counts until end_older(), any other one is dead."""
    older = nas.put_server(tx, id_, server, digest)
    fields = {"sha256": digest.hex(), "older_sha256": older or ""}
    append(tx, AuditEvent("radius-server-added", actor, object=server, fields=fields))


def end_older(tx: Tx, server: str, digest: bytes, actor: Actor) -> bool:
    """The server serves with its newest token; whether that ended an older one."""
    ended = nas.end_older(tx, server, digest)
    if ended:
        fields = {"successor_sha256": digest.hex()}
        append(tx, AuditEvent("radius-server-token-ended", actor, object=server, fields=fields))
    return ended
