"""The evidence package: everything that stands behind one certificate, checked without asking anybody.

The package is a set of files (names in `FILES`); trust comes from outside, as a trust bundle that the auditor got
otherwise. What is checked: the certificate with its owner approval; that the request is the agent's, for this key, and
the one that was approved; the proxy's evidence, up to the campus root that also signed the agents CA; the attestation
result that the certificate names; and the audit entries, each by its own hash, as far as the certificate names them.
That the entry of the issue is in the log is for a checkpoint to show: `INCLUSION`, which this module does not open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import approval as approvals
from appliance.binding import dual_identity, ear, evidence, jws, standing
from appliance.binding import request as requests
from appliance.binding.approval import OwnerApproval
from appliance.binding.bundle import TrustBundle
from appliance.binding.errors import (
    ApprovalDenied,
    ApprovalForOtherKey,
    ApprovalForOtherRequest,
    EarDigestMismatch,
    EarNonceMismatch,
    EvidenceForOtherKey,
    EvidenceForOtherRequest,
    EvidenceWrongProxy,
    Malformed,
    OwnerKeyUnknown,
    PackageEntryMissing,
    PackageEntryWrong,
    SignatureInvalid,
)
from appliance.binding.facts import Limits, OwnerRecord
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.verify import AnyApproval, agent_id_of, read_certificate, verify_certificate
from est import chains
from est.certificates import pem_certificates
from est.chains import TrustAnchors
from est.keys import is_ec, public_key_of

CERTIFICATE, REQUEST, EVIDENCE, EAR, PROXY = "certificate.pem", "request.jws", "evidence.jwt", "ear.jwt", "proxy.pem"
APPROVAL, AUDIT, OWNER, MANIFEST = "approval-{}.jws", "audit.jsonl", "owner.json", "manifest.json"
INCLUSION = "inclusion.json"
"""The proof that the entry of the issue is in the audit log that a checkpoint was signed over."""
MAX_APPROVALS = 8
MAX_FILE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PackageReport:
    """What was verified, step by step."""

    steps: tuple[tuple[str, str], ...]
    serial: str
    agent_id: str
    owner_id: str
    model: str
    issued: str
    """The body of the audit entry of the issue."""


def verify_package(
    files: Mapping[str, bytes], trusted: TrustBundle, *, at: datetime | None = None, limits: Limits | None = None
) -> PackageReport:
    """Verifies a package for the moment `at`; without it, for the certificate's own beginning.

    An owner who was suspended or revoked since is told in the report and refuses nothing: the question is what was
    right then. Raises the leaves of `verify_certificate` and of the objects, PackageEntry... .
    """
    limits = limits or Limits(backdating_seconds=trusted.backdating_seconds)
    chain = _certificates(files, CERTIFICATE)
    leaf = chain[0]
    moment = at or leaf.not_valid_before_utc
    request = requests.unseal(_text(files, REQUEST))
    tokens = _approvals(files)
    dual = dual_identity.of_certificate(leaf, trusted.arc)
    if dual is None:
        raise Malformed("the certificate names no owner", object="package")
    owner = trusted.owners.get(dual.owner_id)
    report = verify_certificate(
        leaf,
        chain[1:],
        trusted.domain,
        lambda name: _as_then(trusted.owners.get(name)),
        at=moment,
        arc=trusted.arc,
        limits=limits,
        ear=_text(files, EAR),
        approval=tokens[0],
    )
    steps = list(report.steps)
    steps.append(("owner now", "unknown" if owner is None else owner.state))
    assert report.approval is not None and owner is not None  # verify_certificate demanded both
    _check_request(request, leaf, report.approval, tokens)
    further = _check_further(tokens, report.approval, request, trusted, limits)
    if further:
        steps.append(("approvals", f"{len(tokens)}: {', '.join([report.owner_id, *further])}"))
    steps.append(("request", request.rqh))
    steps.append(("evidence", _check_evidence(files, request, trusted, leaf)))
    steps.append(("appraisal", _check_result(files, request, trusted)))
    told, issued = _check_audit(files, leaf, dual.log_sequence, request.rqh, tokens)
    steps.append(("audit", told))
    serial = f"{leaf.serial_number:x}"
    return PackageReport(tuple(steps), serial, report.agent_id, report.owner_id, str(report.model), issued)


def origin_of(files: Mapping[str, bytes]) -> str:
    """The origin that a package's certificate names, to choose a trust bundle; nothing is believed yet."""
    return read_kind(agent_id_of(_certificates(files, CERTIFICATE)[0]), Kind.AGENT).origin


def _check_request(request: requests.AgentRequest, leaf: x509.Certificate, approval: Any, tokens: list[str]) -> None:
    if public_key_of(leaf) != request.key or request.sub != agent_id_of(leaf):
        raise ApprovalForOtherKey("the request is for another key or agent than the certificate")
    named = (
        approval.rqh == request.rqh if isinstance(approval, OwnerApproval) else jws.s256(tokens[0]) in request.standing
    )
    if not named:
        raise ApprovalForOtherRequest("the approval and the request do not belong together")


def _check_further(
    tokens: list[str], first: AnyApproval, request: requests.AgentRequest, trusted: TrustBundle, limits: Limits
) -> list[str]:
    """Where several had to approve, the certificate names the first alone: each other one is judged like it.

    Each is by another key of the same owner, or by another owner whom the bundle knows; returns whose they are. That
    these were the ones to ask is the campus' own rule.
    """
    seen, found = {first.kid}, []
    for token in tokens[1:]:
        sealed = approvals.read(token)
        owner = next((one for one in trusted.owners.values() if one.key(sealed.kid) is not None), None)
        registered = None if owner is None else owner.key(sealed.kid)
        if owner is None or registered is None or registered.jkt in seen:
            raise OwnerKeyUnknown("a further approval is not by another registered key of an owner")
        seen.add(registered.jkt)
        reader = approvals.unseal if isinstance(first, OwnerApproval) else standing.unseal
        opened = reader(sealed, registered.public_key, kid=registered.jkt, passkey=registered.passkey)
        registered.check(opened.iat, software_allowed=limits.software_owner_keys)
        is_named = opened.rqh == request.rqh if isinstance(opened, OwnerApproval) else opened.s256 in request.standing
        if not is_named or (opened.iss, opened.sub, opened.aud) != (owner.owner_id, first.sub, first.aud):
            raise ApprovalForOtherRequest("a further approval and the request do not belong together")
        if isinstance(opened, OwnerApproval) and opened.is_denial:
            raise ApprovalDenied("the owner said no")
        found.append(owner.owner_id)
    return found


def _check_evidence(
    files: Mapping[str, bytes], request: requests.AgentRequest, trusted: TrustBundle, leaf: x509.Certificate
) -> str:
    """The proxy's word about this very request, by a key that the campus root's devices CA certified."""
    chain = _certificates(files, PROXY)
    if len(chain) != 3:
        raise Malformed(f"{PROXY} holds the proxy's certificate, its CA and the root", object="package")
    proxy, devices, root = chain
    for issued in (devices, *trusted.domain.anchors):
        try:
            issued.verify_directly_issued_by(root)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise SignatureInvalid("devices CA and agents CA are not of one root") from error
    key = public_key_of(proxy)
    if not is_ec(key):
        raise Malformed("the proxy's key is no elliptic curve key", object="package")
    seen = evidence.unseal(_text(files, EVIDENCE), key)
    chains.check(proxy, (), TrustAnchors([devices]), at=_moment(seen.iat), policy=chains.CLIENT)
    if seen.iss != agent_id_of(proxy):
        raise EvidenceWrongProxy("the evidence comes from another proxy than the certificate beside it names")
    if seen.rqh != request.rqh or seen.nonce != request.nonce:
        raise EvidenceForOtherRequest("the evidence was made for another request")
    if seen.jkt != request.jkt:
        raise EvidenceForOtherKey("the evidence describes the holder of another key")
    return seen.iss


def _check_result(files: Mapping[str, bytes], request: requests.AgentRequest, trusted: TrustBundle) -> str:
    """The attestation result, by the key of the agents CA or of a verifier elsewhere.

    That the certificate names it was seen already.
    """
    token = _text(files, EAR)
    for key in (*(anchor.public_key() for anchor in trusted.domain.anchors), *trusted.verifier_keys):
        if isinstance(key, ec.EllipticCurvePublicKey) and jws.read(token).kid in (None, jws.jkt(key)):
            result = ear.unseal(token, key)
            if result.nonce != request.nonce:
                raise EarNonceMismatch("the attestation result is about another nonce")
            return str(result.status)
    raise EarDigestMismatch("the attestation result is signed by nobody whom the bundle knows")


def _check_audit(
    files: Mapping[str, bytes], leaf: x509.Certificate, log_index: int | None, rqh: str, tokens: list[str]
) -> tuple[str, str]:
    """Two entries must be there, the one that the certificate names by its index and the one with its hash.

    Returns what was found in words, and the body of the second.
    """
    found: list[dict[str, Any]] = []
    bodies: list[str] = []
    for line in _text(files, AUDIT).splitlines():
        try:
            row = json.loads(line)
            body, prev, digest = str(row["body"]), bytes.fromhex(row["prev"]), bytes.fromhex(row["hash"])
            entry = json.loads(body)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Malformed("an audit entry cannot be read", object="package") from error
        if hashlib.sha256(prev + body.encode()).digest() != digest or not isinstance(entry, dict):
            raise PackageEntryWrong("an audit entry does not have its own hash", seq=str(entry)[:40])
        found.append(entry)
        bodies.append(body)
    pending = _entry(found, lambda one: one.get("seq") == log_index and one.get("event") == "certificate-pending")
    tbs = hashlib.sha256(leaf.tbs_certificate_bytes).hexdigest()
    if _fields(pending).get("tbs_sha256") != tbs:
        raise PackageEntryWrong("the entry that the certificate names is about other bytes", seq=log_index)
    whole = hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest()
    issued = _entry(found, lambda one: _fields(one).get("cert_sha256") == whole and "pending" in _fields(one))
    fields = _fields(issued)
    if fields.get("rqh") != rqh or fields.get("approvals_s256") != [jws.s256(one) for one in tokens]:
        raise PackageEntryWrong("the entry of the issue names another request or approval", seq=issued.get("seq"))
    revoked = [
        one for one in found if one.get("event") == "credential-revoked" and _fields(one).get("cert_sha256") == whole
    ]
    state = f", revoked at {revoked[0].get('time')}" if revoked else ""
    told = f"{len(found)} entries, {log_index} and {issued.get('seq')} are this certificate's{state}"
    return told, bodies[found.index(issued)]


def _entry(found: list[dict[str, Any]], is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    entry = next((one for one in found if is_it(one)), None)
    if entry is None:
        raise PackageEntryMissing("an audit entry that the certificate needs is not in the package")
    return entry


def _fields(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    fields = entry.get("fields")
    return fields if isinstance(fields, dict) else {}


def _as_then(owner: OwnerRecord | None) -> OwnerRecord | None:
    return None if owner is None else replace(owner, state="active")


def _moment(at: int) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _approvals(files: Mapping[str, bytes]) -> list[str]:
    names = [APPROVAL.format(number) for number in range(1, MAX_APPROVALS + 1)]
    return [_text(files, name) for name in names if name == names[0] or name in files]


def _text(files: Mapping[str, bytes], name: str) -> str:
    content = files.get(name)
    if content is None or len(content) > MAX_FILE:
        raise Malformed(f"the package has no {name}, or one that is too large", object="package")
    try:
        return content.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise Malformed(f"{name} is not ASCII", object="package") from error


def _certificates(files: Mapping[str, bytes], name: str) -> list[x509.Certificate]:
    try:
        found = pem_certificates(_text(files, name).encode("ascii"))
    except ValueError as error:
        raise Malformed(f"{name} holds no PEM certificate", object="package") from error
    return [read_certificate(one.public_bytes(Encoding.DER)) for one in found]
