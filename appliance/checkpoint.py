"""A checkpoint: the appliance's signature over how long its audit log was, and what stood in it.

It is a compact JWS (ES256) of type `audit-checkpoint+jwt` by a key that signs nothing else, with the claims: iss = the
origin of the log, size = number of entries, root = Merkle root over the bodies of the entries (RFC 9162, section 2.1),
head = hash of the last entry, iat. Whoever keeps one elsewhere can prove later that the log was not rewritten; this
module reads and writes, and holds logs and proofs against checkpoints. It touches neither store nor clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from appliance import audit, merkle
from appliance.audit import AuditRow, Head
from appliance.binding import jws
from appliance.binding.errors import Malformed
from appliance.errors import AuditBroken
from est.signer import Signer

TYPE = "audit-checkpoint+jwt"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was signed: the log `origin` had `size` entries, Merkle root `root`, last hash `head`."""

    origin: str
    size: int
    root: bytes
    head: bytes
    issued_at: datetime


def seal(checkpoint: Checkpoint, signer: Signer) -> str:
    """The signed token."""
    claims = {
        "iss": checkpoint.origin,
        "iat": int(checkpoint.issued_at.timestamp()),
        "size": checkpoint.size,
        "root": jws.base64url(checkpoint.root),
        "head": jws.base64url(checkpoint.head),
    }
    return jws.seal(claims, typ=TYPE, signer=signer, header={"kid": jws.jkt(signer.public_key())})


def unseal(token: str, key: jws.PublicKey, *, origin: str = "") -> Checkpoint:
    """The checkpoint in a token signed by `key`, of the log `origin` if that is given.

    Raises Malformed and what jws.unseal raises.
    """
    claims = jws.unseal(token, typ=TYPE, key=key).claims
    size, issued = claims.get("size"), claims.get("iat")
    if type(size) is not int or size < 1 or type(issued) is not int or not 0 <= issued < 1 << 33:
        raise Malformed("size and iat of a checkpoint are positive numbers", object="checkpoint")
    issuer = claims.get("iss")
    if not isinstance(issuer, str) or (origin and issuer != origin):
        raise Malformed("the checkpoint is of another log", object="checkpoint")
    return Checkpoint(issuer, size, _hash(claims, "root"), _hash(claims, "head"), datetime.fromtimestamp(issued, UTC))


def leaf_of(row: AuditRow) -> bytes:
    """The leaf hash of an entry: over its body, as UTF-8."""
    return merkle.leaf_hash(row.body.encode())


def verify(entries: Iterable[AuditRow], checkpoints: Sequence[Checkpoint]) -> Head:
    """Check a whole log, oldest entry first, and hold it against checkpoints; returns its head.

    AuditBroken names the first bad position. Where a chain was computed anew after an edit, that is the first entry
    behind the last checkpoint that still fits.
    """
    waiting = sorted(checkpoints, key=lambda one: one.size, reverse=True)
    tree, fits = merkle.Frontier(), 0

    def watched() -> Iterator[AuditRow]:
        nonlocal fits
        for row in entries:
            yield row  # when control comes back, this entry has been found good in itself
            tree.add(leaf_of(row))
            while waiting and waiting[-1].size == tree.size:
                signed = waiting.pop()
                if signed.head != row.hash or signed.root != tree.root():
                    raise AuditBroken(
                        f"between entries {fits + 1} and {tree.size} the log is not the one that was signed",
                        position=fits + 1,
                    )
                fits = tree.size

    head = audit.verify(watched())
    if waiting:
        raise AuditBroken(
            f"the log ends at {head.seq}, and a checkpoint was signed over {waiting[0].size} entries",
            position=head.seq + 1,
        )
    return head


def inclusion(token: str, row: AuditRow, proof: Sequence[bytes]) -> dict[str, Any]:
    """A document that shows one entry to somebody who has neither the log nor us: `check_inclusion` reads it."""
    return {
        "checkpoint": token,
        "seq": row.seq,
        "body": row.body,
        "proof": [jws.base64url(one) for one in proof],
    }


def check_inclusion(document: object, key: jws.PublicKey) -> tuple[Checkpoint, str]:
    """The checkpoint and the entry's body; AuditBroken if the proof does not fit, Malformed for anything unreadable."""
    token, proof = _texts(document)
    assert isinstance(document, dict)
    seq, body = document.get("seq"), document.get("body")
    if type(seq) is not int or not isinstance(body, str):
        raise Malformed("a proof names an entry and its body", object="proof")
    signed = unseal(token, key)
    if not merkle.is_included(_leaf(body), seq - 1, signed.size, proof, signed.root):
        raise AuditBroken(f"entry {seq} is not in the log that was signed", position=seq)
    return signed, body


def consistency(older: str, newer: str, proof: Sequence[bytes]) -> dict[str, Any]:
    """A document that shows that the log of one checkpoint begins with that of an older one."""
    return {"older": older, "checkpoint": newer, "proof": [jws.base64url(one) for one in proof]}


def check_consistency(document: object, key: jws.PublicKey) -> tuple[Checkpoint, Checkpoint]:
    """Both checkpoints, older first; AuditBroken if the newer log does not begin with the older, Malformed."""
    token, proof = _texts(document)
    assert isinstance(document, dict)
    older = document.get("older")
    if not isinstance(older, str):
        raise Malformed("a proof names two checkpoints", object="proof")
    first, second = unseal(older, key), unseal(token, key)
    if first.origin != second.origin:
        raise Malformed("the checkpoints are of two logs", object="proof")
    if not merkle.is_consistent(first.size, second.size, proof, first.root, second.root):
        raise AuditBroken(f"the log does not begin with the one that had {first.size} entries", position=1)
    return first, second


def _leaf(body: str) -> bytes:
    try:
        return merkle.leaf_hash(body.encode())
    except UnicodeEncodeError as error:
        raise Malformed("the body is not text", object="proof") from error


def _texts(document: object) -> tuple[str, list[bytes]]:
    if not isinstance(document, dict):
        raise Malformed("a proof is a JSON object", object="proof")
    token, proof = document.get("checkpoint"), document.get("proof")
    if not isinstance(token, str) or not isinstance(proof, list) or len(proof) > 64:
        raise Malformed("a proof has a checkpoint and at most 64 hashes", object="proof")
    hashes = [jws.unbase64url(one, "proof") if isinstance(one, str) else b"" for one in proof]
    if any(len(one) != merkle.HASH_BYTES for one in hashes):
        raise Malformed("the hashes of a proof have 32 octets", object="proof")
    return token, hashes


def _hash(claims: Any, name: str) -> bytes:
    value = claims.get(name)
    octets = jws.unbase64url(value, name) if isinstance(value, str) else b""
    if len(octets) != merkle.HASH_BYTES:
        raise Malformed(f"{name} of a checkpoint has 32 octets", object="checkpoint")
    return octets
