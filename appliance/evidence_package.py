"""Exporting what stands behind one agent certificate, for whoever must judge later whether it was right (A-113)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import bindparam, func, or_, select

from appliance import audit, checkpoint
from appliance.access.owner_views import with_keys
from appliance.binding import jws, package
from appliance.binding.errors import Malformed, PackageEntryWrong
from appliance.ca import CertificateAuthority
from appliance.checkpoint import Checkpoint
from appliance.checkpoint_keeper import CheckpointKeeper
from appliance.clock import Clock
from appliance.errors import NotFound
from appliance.hierarchy import Role
from appliance.identity.issue import timestamp
from appliance.store import certificates, owners, requests, schema
from appliance.store.certificates import serial_text
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est.certificates import aki_of, read_certificate

MAX_ENTRIES = 1000
_ISSUED = "dual-identity-issued"
_ABOUT = (
    select(schema.audit)
    .where(
        or_(
            func.instr(schema.audit.c.body, bindparam("txn")) > 0,
            func.instr(schema.audit.c.body, bindparam("serial")) > 0,
        )
    )
    .order_by(schema.audit.c.seq)
    .limit(MAX_ENTRIES)
)


class EvidencePackages:
    """Packages of agent certificates."""

    def __init__(
        self, *, ca: CertificateAuthority, store: Store, clock: Clock, checkpoints: CheckpointKeeper | None = None
    ) -> None:
        """With `checkpoints`, a package proves that the entry of the issue is in the log."""
        self._checkpoints = checkpoints
        self._ca = ca
        self._store = store
        self._clock = clock

    async def export(self, serial: str) -> Mapping[str, str]:
        """The files of the package by name; raises NotFound for what is no finished dual-identity certificate."""
        row, files, issued = await self._store.read(lambda tx: self._gather(tx, serial))
        if self._checkpoints is not None and issued is not None:
            files[package.INCLUSION] = json.dumps(await self._checkpoints.prove_entry(issued)) + "\n"
        return {**files, package.MANIFEST: self._manifest(row, files)}

    def _gather(self, tx: Tx, serial: str) -> tuple[Any, dict[str, str], int | None]:
        """The certificate's row, the files but for proof and manifest, and the sequence of the entry of the issue."""
        try:
            row = certificates.by_role_and_serial(tx, "agents", int(serial.replace(":", ""), 16))
        except ValueError:
            row = None
        if row is None or row.der is None or row.agent_id is None or row.owner_id is None:
            raise NotFound("no agent's certificate with this serial number was finished here")
        behind = _request_of(tx, row)
        if behind is None:
            raise NotFound("nothing is on record behind this certificate")
        certificate = read_certificate(row.der)
        issuing = self._issuer(certificate, "agents")
        entries = _about(tx, row)
        files = {
            package.CERTIFICATE: _pem(certificate) + _pem(issuing),
            package.REQUEST: behind.request + "\n",
            package.EVIDENCE: behind.evidence + "\n",
            package.EAR: behind.ear + "\n",
            package.PROXY: self._proxy(tx, behind),
            package.AUDIT: "\n".join(audit.export(entries)) + "\n",
            package.OWNER: _owner(tx, row.owner_id),
        }
        for number, token in enumerate(behind.approval.split(), 1):
            files[package.APPROVAL.format(number)] = token + "\n"
        issued = (one.seq for one in entries if one.event == _ISSUED and _is_of_certificate(one.entry, row))
        return row, files, next(issued, None)

    def _manifest(self, row: Any, files: Mapping[str, str]) -> str:
        manifest = {
            "version": 1,
            "serial": row.serial,
            "agent": row.agent_id,
            "owner": row.owner_id,
            "model": row.model,
            "state": row.state,
            "txn": row.txn,
            "made_at": timestamp(self._clock.now()),
            "sha256": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()},
        }
        return json.dumps(manifest, indent=1) + "\n"

    def _issuer(self, certificate: x509.Certificate, role: Role) -> x509.Certificate:
        """The generation of the CA that signed it; the one of now where that is retired."""
        return (self._ca.of_key(aki_of(certificate)) or self._ca.issuing(role)).certificate

    def _proxy(self, tx: Tx, behind: requests.Request) -> str:
        """The certificate whose key signed the evidence, its CA and the root."""
        kid = jws.read(behind.evidence).kid
        for one in certificates.of(tx, "subject_id", behind.proxy_id):
            if one.der is None:
                continue
            found = read_certificate(one.der)
            key = found.public_key()
            if isinstance(key, ec.EllipticCurvePublicKey) and jws.jkt(key) == kid:
                return _pem(found) + _pem(self._issuer(found, "devices")) + _pem(self._ca.root)
        raise NotFound("the proxy's certificate of that time is not on record")


def _request_of(tx: Tx, row: Any) -> requests.Request | None:
    for one in requests.of_agent(tx, row.agent_id):
        if one.result is not None and one.result.get("serial") == row.serial:
            return one
    return None


def _about(tx: Tx, row: Any) -> list[audit.AuditRow]:
    """Entries of this transaction and about this certificate; what only looks alike is left out."""
    found = [audit.AuditRow(*one) for one in tx.all(_ABOUT, {"txn": row.txn or row.serial, "serial": row.serial})]
    return [one for one in found if _is_about(one.entry, row)]


def _is_about(entry: Mapping[str, Any], row: Any) -> bool:
    """An agent chooses its `txn`, so another's entries may bear the same one."""
    fields = entry.get("fields", {})
    is_same = row.txn is not None and fields.get("txn") == row.txn and fields.get("agent", row.agent_id) == row.agent_id
    return is_same or _is_of_certificate(entry, row)


def _is_of_certificate(entry: Mapping[str, Any], row: Any) -> bool:
    return entry.get("object") == serial_text(int(row.serial, 16))


def check_inclusion(files: Mapping[str, bytes], issued: str, key: jws.PublicKey) -> Checkpoint:
    """The checkpoint over the log that has the entry of the issue, whose body is `issued`; `key` signed it.

    Raises Malformed for a package without a proof, PackageEntryWrong for a proof about another entry, AuditBroken, and
    what `checkpoint.unseal` raises.
    """
    content = files.get(package.INCLUSION)
    if content is None:
        raise Malformed("the package has no proof that its entries are in the log", object="package")
    signed, body = checkpoint.check_inclusion(jws.read_object(content, package.INCLUSION), key)
    if body != issued:
        raise PackageEntryWrong("the proof is about another entry than that of the issue")
    return signed


def _owner(tx: Tx, owner_id: str) -> str:
    owner = owners.by_identifier(tx, owner_id)
    return json.dumps(None if owner is None else with_keys(tx, owner), indent=1) + "\n"


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")
