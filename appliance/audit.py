"""The audit log: append-only, without gaps, each entry chained to the one before by SHA-256.

An entry is written in the transaction of the change that it tells of. Its body is canonical JSON (sorted keys, no
spaces, UTF-8) of: seq, time, event, actor, object, outcome, reason, request_id, fields. Its hash is
SHA-256(previous hash || body). CSRs, vouchers and tokens appear by their SHA-256; keys, secrets, passwords and bearer
tokens never do. The chain shows edits to whoever holds an older head; it is no signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from sqlalchemy import bindparam, func, select

from appliance.errors import AuditBroken
from appliance.store import schema
from appliance.store.statements import Plain
from appliance.store.transaction import Tx
from est.json_text import encoder_of, quoted

GENESIS = bytes(32)
_NO_FIELDS: Mapping[str, Any] = MappingProxyType({})
_SECRET_WORDS = frozenset({"password", "passphrase", "secret", "token", "private_key", "key_pem", "authorization"})

EVENTS: Mapping[str, str] = MappingProxyType(
    {
        "home-initialised": "The home, its CAs and its store were made.",
        "appliance-started": "The appliance opened its listeners.",
        "appliance-stopped": "The appliance drained and stopped.",
        "certificate-pending": "A certificate is about to be signed; fields hold the SHA-256 of the bytes.",
        "ca-certificate-issued": "A root or issuing CA certificate was signed.",
        "ca-rollover-started": "The change of a CA for a successor began; fields name the new key.",
        "ca-rollover-moved": "The change of a CA took a step; fields hold the two states.",
        "root-exported": "The root's key left the home; fields hold the SHA-256 of the file.",
        "server-certificate-issued": "A certificate for one of the appliance's own servers was signed.",
        "infrastructure-certificate-issued": "A certificate for a RADIUS server, NAS or decision client was signed.",
        "ldevid-issued": "A proxy got its domain certificate.",
        "ldevid-renewed": "A proxy renewed its domain certificate.",
        "dual-identity-issued": "An agent got a credential that names it and its owner.",
        "single-identity-issued": "An agent got a credential that names no owner.",
        "wit-pending": "A workload identity token without a certificate is about to be signed.",
        "wit-issued": "An agent got a workload identity token.",
        "credential-revoked": "A certificate was revoked.",
        "crl-issued": "A certificate revocation list was signed.",
        "crl-taken-in": "A CRL of ours was taken in, after a restored backup: what it names is revoked here too.",
        "ocsp-signer-issued": "The OCSP responder got a certificate to answer for one issuing CA.",
        "manufacturer-added": "A manufacturer's anchors became known.",
        "manufacturer-changed": "A manufacturer's anchors, MASA or options changed; fields hold what is new.",
        "manufacturer-removed": "A manufacturer's anchors were forgotten.",
        "devices-listed": "A file of expected devices was taken in.",
        "pledge-seen": "A pledge asked for a voucher.",
        "pledge-admitted": "An administrator said yes to a pledge.",
        "pledge-refused": "An administrator or the policy said no to a pledge.",
        "voucher-requested": "The registrar asked a MASA for a voucher.",
        "voucher-issued": "A voucher was handed to its pledge.",
        "voucher-refused": "No voucher was handed out.",
        "voucher-accepted": "The pledge reported that it accepted its voucher.",
        "voucher-rejected": "The pledge reported that it rejected its voucher.",
        "audit-log-appraised": "The MASA's audit log was fetched and judged.",
        "history-overridden": "An administrator let a device in with findings of its history; fields hold which.",
        "history-override-withdrawn": "An administrator took that back; the device is refused again.",
        "voucher-fetched-ahead": "A MASA was asked for a voucher without a nonce, before the device came.",
        "knock-forgotten": "An administrator removed a certificate from the list of who knocked.",
        "enrolment-refused": "An EST request was refused.",
        "requests-refused": "Requests to the device port that were refused without an entry each; fields count them.",
        "authority-added": "A registration authority got its certificate; it may ask for others where a label says so.",
        "proxy-added-by-authority": "A registration authority enrolled a new proxy; fields say which authority.",
        "enrolment-reported": "The pledge reported how its enrolment ended.",
        "est-secret-added": "A one-time enrolment secret was made.",
        "est-request-waits": "A request under an EST label waits for a person.",
        "est-request-approved": "A person approved a waiting request; it is good for one certificate.",
        "est-request-denied": "A person denied a waiting request.",
        "est-secret-spent": "A one-time enrolment secret was used.",
        "proxy-revoked": "A proxy was revoked.",
        "owner-added": "An owner was added.",
        "owner-changed": "An owner's name, kind or department changed.",
        "owner-suspended": "An owner was suspended.",
        "owner-resumed": "A suspended owner was made active again.",
        "owner-revoked": "An owner was revoked.",
        "owner-key-added": "An owner's key was registered on a signed statement of possession.",
        "owner-key-rotated": "An owner's key was replaced.",
        "owner-key-revoked": "An owner's key was revoked.",
        "owner-proxy-allowed": "A proxy may submit for an owner; the owner's others, if not named too, may not.",
        "owners-imported": "A file of owners was taken in.",
        "owner-adopted": "An administrator handed an owner over to another source, or had it found anew by its ref.",
        "directory-synced": "A directory was read and what it says taken in; fields hold the counts.",
        "directory-sync-refused": "Reading a directory failed or would change too much; nothing was changed.",
        "directory-token-added": "A client that pushes owners (SCIM) got its token.",
        "directory-token-removed": "A client's token was withdrawn.",
        "directory-user-removed": "A client deleted a user; its owner is suspended and never deleted.",
        "directory-group-changed": "A client made, changed or deleted a group; fields hold what.",
        "owner-approved": "An owner's approval was accepted.",
        "standing-approval-recorded": "A standing approval was taken in, with its bounds.",
        "standing-approval-used": "A renewal was issued under a standing approval; `uses` counts.",
        "standing-approval-withdrawn": "A standing approval was withdrawn, by hand or with its owner, key or agent.",
        "owner-challenged": "An owner was asked to approve a request.",
        "owner-answered": "An owner's signed answer, to a challenge or beside a parked request, was taken or refused.",
        "owner-client-key-added": "The client key of an owner's tool was registered on its signed statement.",
        "owner-client-key-revoked": "The client key of an owner's tool was revoked.",
        "owner-gateway-added": "An owner's gateway was registered: its address, and its server key's statement.",
        "owner-gateway-revoked": "An owner's gateway was revoked: no proxy is sent to it any more.",
        "agent-reserved": "An agent identifier was reserved.",
        "agent-registered": "An agent was registered.",
        "agent-classified": "An administrator, or its owner, gave an agent another class or took its class away.",
        "agent-suspended": "An agent was suspended: no requests and no logins until it is resumed.",
        "agent-resumed": "An agent's suspension ended.",
        "owner-key-suspended": "An owner's approval key was suspended: nothing new is taken from it.",
        "owner-key-resumed": "The suspension of an owner's approval key ended.",
        "proxy-suspended": "A proxy was suspended: no requests, no renewals, no logins until it is resumed.",
        "proxy-resumed": "A proxy's suspension ended.",
        "agent-revoked": "An agent was revoked.",
        "agent-request-received": "A proxy handed in an agent's request that was decided with yes.",
        "agent-request-refused": "A request for an agent credential was refused.",
        "evidence-appraised": "A proxy's evidence was appraised.",
        "policy-published": "An access policy took effect.",
        "access-decided": "A port was decided upon.",
        "nas-added": "A NAS was added.",
        "nas-removed": "A NAS was removed.",
        "nas-changed": "What is known of a NAS's ways to change sessions was changed.",
        "nas-secret-rotated": "A NAS got a new shared secret; fields hold until when the old one counts too.",
        "session-change-asked": "A live session has to change or end; fields hold what and whose.",
        "session-changed": "The NAS of a live session did as it was asked, or nothing was left to do.",
        "session-change-failed": "A NAS would not, or did not answer; the session may go on as it was.",
        "radius-server-added": "A RADIUS server got a token; the one before counts until it serves.",
        "radius-server-token-ended": "The token before of a RADIUS server counts no more: its successor serves.",
        "radius-server-removed": "A RADIUS server's token was withdrawn.",
        "campus-trusted": "The trust bundle of another campus was taken in.",
        "campus-distrusted": "Another campus is trusted no more.",
        "backup-made": "A backup was written.",
        "audit-rollback-accepted": "An administrator went on with a store that lacks entries which were signed.",
        "backup-restored": "A backup was restored.",
    }
)
"""Every event, with one sentence: the documented contract of the log."""


class Actor(NamedTuple):
    """Who acted: kind (administrator, pledge, proxy, agent, owner, radius-server, directory, appliance), identifier,
    certificate SHA-256 as hex, network address; empty where unknown."""

    kind: str
    identifier: str = ""
    fingerprint: str = ""
    address: str = ""


APPLIANCE = Actor("appliance")
"""The appliance acting on its own."""


class AuditEvent(NamedTuple):
    """One thing that happened: a past-tense name of EVENTS, who did it, to what, how it ended."""

    event: str
    actor: Actor
    object: str = ""
    outcome: Literal["done", "refused", "failed"] = "done"
    reason: str = ""
    request_id: str = ""
    fields: Mapping[str, Any] = _NO_FIELDS


_PAGE = (
    select(schema.audit)
    .where(schema.audit.c.seq > bindparam("after"))
    .order_by(schema.audit.c.seq)
    .limit(bindparam("count"))
)
_BODIES = Plain("SELECT body FROM audit WHERE seq > ? ORDER BY seq LIMIT ?")
_LAST = select(func.max(schema.audit.c.seq))
_encode = encoder_of(sort_keys=True)


def next_seq(tx: Tx) -> int:
    """The sequence that the next append() in this transaction will get."""
    if tx.chain is None:
        raise RuntimeError("a reading transaction has no audit chain")
    return tx.chain.seq + 1


def append(tx: Tx, event: AuditEvent) -> int:
    """Write one entry in the caller's transaction; returns its sequence, 1 and up.

    ValueError for an event that the contract does not name and for field names that smell of a secret.
    """
    chain = tx.chain
    if chain is None:
        raise RuntimeError("a reading transaction has no audit chain")
    now = tx.now
    if chain.stamped is not now:
        chain.stamped, chain.stamp = now, _timestamp(now)
    seq, previous = chain.seq + 1, chain.hash
    body = body_of(seq, chain.stamp, event)
    digest = hashlib.sha256(previous + body.encode()).digest()
    tx.append(seq, event.event, body, previous, digest)
    chain.seq, chain.hash, chain.time = seq, digest, now
    return seq


def body_of(seq: int, stamp: str, event: AuditEvent) -> str:
    """The canonical JSON of an entry; the nine names stand here in their order, because sorting them costs more.

    ValueError and TypeError as for append().
    """
    name, fields = event.event, event.fields
    if name not in EVENTS:
        raise ValueError(f"{name!r} is not an audit event")
    if fields and not _SECRET_WORDS.isdisjoint(fields):
        raise ValueError("secrets are never audited")
    told = _encode(fields if type(fields) is dict else dict(fields))
    return (
        f'{{"actor":{_actor_text(event.actor)},"event":"{name}","fields":{told},'
        f'"object":{quoted(event.object)},"outcome":{quoted(event.outcome)},"reason":{quoted(event.reason)},'
        f'"request_id":{quoted(event.request_id)},"seq":{seq},"time":"{stamp}"}}'
    )


@lru_cache(maxsize=256)
def _actor_text(actor: Actor) -> str:
    """The JSON of an actor, who mostly has two entries in a row."""
    return (
        f'{{"address":{quoted(actor.address)},"fingerprint":{quoted(actor.fingerprint)},'
        f'"identifier":{quoted(actor.identifier)},"kind":{quoted(actor.kind)}}}'
    )


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One stored entry; `entry` is the body, read."""

    seq: int
    time: datetime
    event: str
    body: str
    prev: bytes
    hash: bytes

    @property
    def entry(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value


def page(tx: Tx, *, after: int = 0, count: int = 1000) -> list[AuditRow]:
    """Up to `count` entries with a sequence above `after`, oldest first."""
    return [AuditRow(*row) for row in tx.all(_PAGE, {"after": after, "count": count})]


def bodies(tx: Tx, *, after: int = 0, count: int = 1000) -> list[str]:
    """The bodies alone of `page`, for a reading transaction."""
    return [body for (body,) in tx.rows(_BODIES, (after, count))]


def rows(tx: Tx, *, after: int = 0) -> Iterator[AuditRow]:
    """Every entry above `after`, oldest first, read in pages."""
    while found := page(tx, after=after):
        yield from found
        after = found[-1].seq


def last_seq(tx: Tx) -> int:
    """The newest entry's sequence, 0 for an empty log."""
    return int(tx.scalar(_LAST) or 0)


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry's sequence and hash; keep it elsewhere to notice a log that was cut or rewritten."""

    seq: int
    hash: bytes


def verify(entries: Iterable[AuditRow], *, known: Head | None = None) -> Head:
    """Check the whole log, oldest first, and return its head.

    AuditBroken names the first bad position: a gap, a wrong link, an edited body, columns that disagree with the body.
    With `known`, an older head that somebody kept, the log must still contain it.
    """
    seq, previous = 0, GENESIS
    for row in entries:
        seq += 1
        if row.seq != seq:
            raise AuditBroken(f"entry {seq} is missing", position=seq)
        if row.prev != previous:
            raise AuditBroken(f"entry {seq} is not chained to the one before", position=seq)
        if hashlib.sha256(row.prev + row.body.encode()).digest() != row.hash:
            raise AuditBroken(f"entry {seq} was changed", position=seq)
        if not _columns_agree(row):
            raise AuditBroken(f"the columns of entry {seq} disagree with its body", position=seq)
        previous = row.hash
        if known is not None and known.seq == seq and known.hash != previous:
            raise AuditBroken(f"entry {seq} is not the one that was known", position=seq)
    if known is not None and known.seq > seq:
        raise AuditBroken(f"the log ends at {seq} and was known to reach {known.seq}", position=seq + 1)
    return Head(seq, previous)


def _columns_agree(row: AuditRow) -> bool:
    try:
        entry = row.entry
    except ValueError:
        return False
    return entry.get("seq") == row.seq and entry.get("event") == row.event and entry.get("time") == _timestamp(row.time)


def export(entries: Iterable[AuditRow]) -> Iterator[str]:
    """The log as JSON lines: the body as it was hashed, with prev and hash as hex."""
    for row in entries:
        yield _encode({"body": row.body, "prev": row.prev.hex(), "hash": row.hash.hex()})


def read_export(lines: Iterable[str]) -> Iterator[AuditRow]:
    """The entries that `export` wrote; AuditBroken for a line that is none."""
    for at, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            body, prev, digest = found["body"], bytes.fromhex(found["prev"]), bytes.fromhex(found["hash"])
            entry = json.loads(body)
            seq, event, time = entry["seq"], entry["event"], datetime.fromisoformat(entry["time"])
            body.encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise AuditBroken(f"line {at} is no audit entry", position=at) from error
        if type(seq) is not int or type(event) is not str or time.tzinfo is None:
            raise AuditBroken(f"line {at} is no audit entry", position=at)
        yield AuditRow(seq, time, event, body, prev, digest)
