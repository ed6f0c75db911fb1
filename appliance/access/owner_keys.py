"""Owners' keys as they come in: statements of possession spent once, and what is stored of a key."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.binding import possession
from appliance.binding.errors import KeyReused, PasskeyOriginMismatch
from appliance.binding.facts import Limits, OwnerKey
from appliance.binding.possession import KeyStatement
from appliance.binding.webauthn import Passkey
from appliance.errors import Conflict, RequestMalformed
from appliance.store import agents, certificates, nonces, owner_clients, owner_gateways, owners
from appliance.store.owners import Key, Owner
from appliance.store.transaction import Tx
from est.keys import is_ec, read_spki, spki_sha256

_STATEMENT_KEPT = timedelta(days=62)


@dataclass(frozen=True, slots=True)
class KeyStatements:
    """What statements of possession must say here: the campus as audience, and passkeys of its relying party."""

    origin: str
    passkeys: Passkey
    limits: Limits

    def spend(self, tx: Tx, owner: Owner, statement: KeyStatement) -> Owner:
        """The owner, if the statement makes a new key this owner's; it does so once.

        Raises Conflict for a revoked owner or a statement that was taken in before, KeyReused for a key that anybody
        has or had (A-1), PasskeyOriginMismatch, and what `possession.check` raises.
        """
        if owner.state == owners.REVOKED:
            raise Conflict("the owner is revoked")
        possession.check(
            statement,
            names=(owner.ref, owner.identifier),
            audience=self.origin,
            now=tx.now,
            limits=self.limits,
        )
        if statement.passkey not in (None, self.passkeys):
            raise PasskeyOriginMismatch("the passkey was made for another relying party or origin")
        _check_unused(tx, statement)
        if not nonces.spend_id(tx, "statement", statement.jti, tx.now + _STATEMENT_KEPT):
            raise Conflict("this statement was taken in before")
        return owner


def _check_unused(tx: Tx, statement: KeyStatement) -> None:
    """A key belongs to one party for ever: no owner, agent, device, server or CA has or had it (A-1)."""
    if owners.key(tx, statement.jkt) is not None:
        raise KeyReused("an owner has or had this key")
    if owner_clients.get(tx, statement.jkt) is not None:
        raise KeyReused("an owner's tool has or had this key")
    if owner_gateways.get(tx, statement.jkt) is not None:
        raise KeyReused("an owner's gateway has or had this key")
    if certificates.of(tx, "spki_sha256", spki_sha256(statement.key).hex()):
        raise KeyReused("a certificate was issued for this key")
    if any(agent.state != agents.RESERVED for agent in agents.by_jkt(tx, statement.jkt)):
        raise KeyReused("an agent has or had this key")


def row_of(owner: Owner, statement: KeyStatement, now: datetime) -> Key:
    """What is stored of an approval key."""
    return Key(
        jkt=statement.jkt,
        owner_id=owner.identifier,
        spki=statement.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        protection=statement.protection,
        state=owners.ACTIVE,
        not_before=None,
        not_after=None,
        statement_sha256=hashlib.sha256(statement.token.encode("ascii")).hexdigest(),
        created_at=now,
        rp_id=None if statement.passkey is None else statement.passkey.rp_id,
        origin=None if statement.passkey is None else statement.passkey.origin,
        credential=statement.credential,
        sign_count=statement.sign_count,
        counted_iat=None if statement.sign_count is None else statement.iat,
    )


def read_row(row: Key) -> OwnerKey:
    """A stored approval key as a verifier wants it."""
    public = read_spki(row.spki)
    assert is_ec(public)  # possession statements bring no others
    passkey = None if row.rp_id is None or row.origin is None else Passkey(row.rp_id, row.origin)
    return OwnerKey(row.jkt, public, row.state, row.protection, row.not_before, row.not_after, passkey)


def check_gateway_url(url: str) -> str:
    """`https://HOST[:PORT]` and nothing more; raises RequestMalformed."""
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError:
        parts, port = urlsplit(""), 0
    plain = url.isascii() and url.isprintable() and len(url) <= 255 and " " not in url
    if not plain or parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/"):
        raise RequestMalformed("a gateway's address is https://HOST:PORT")
    if parts.username or parts.query or parts.fragment:
        raise RequestMalformed("a gateway's address is https://HOST:PORT and nothing more")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"https://{host}:{port}"
