"""The MASA's audit log of one device: entries, JSON form, pruning, and what a registrar makes of it.

RFC 8995, sections 5.8.1 (shape), 5.8.2 (domainID) and 5.8.3 (policy of the registrar).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from brski import leaves
from brski.errors import AuditLogMalformed, DeviceHistoryRefused
from brski.voucher import Voucher
from est.errors import EstError
from est.transfer import read_json

VERSION = 1
MAX_BYTES = 262_144
MAX_EVENTS = 4096
COUNTER_CEILING = 1024


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One voucher that was issued: `nonce` is the string of the request, None for a nonceless voucher.

    `assertion` is the text as it stands in the log; `truncated` counts older entries that this one stands for.
    """

    date: datetime
    domain_id: bytes
    nonce: str | None
    assertion: str
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Truncation:
    """How many entries were dropped, and why; counters stop at 1024."""

    nonced_duplicates: int = 0
    nonceless_duplicates: int = 0
    arbitrary: int = 0


@dataclass(frozen=True, slots=True)
class AuditLog:
    """The log as the MASA tells it, oldest entry first."""

    events: tuple[LogEntry, ...] = ()
    truncation: Truncation = field(default=Truncation())
    version: int = VERSION


def domain_id(certificate: x509.Certificate) -> bytes:
    """The domainID of a pinned certificate (RFC 8995, section 5.8.2).

    Its subject key identifier, or the SHA-256 of its SubjectPublicKeyInfo where it has none.
    """
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).digest()


def read(body: bytes) -> AuditLog:
    """The log in a MASA's answer; raises AuditLogMalformed.

    The document says integers, the printed example of the RFC has strings: both are read. Members of later versions are
    ignored.
    """
    try:
        document = read_json(body, max_bytes=MAX_BYTES, max_depth=8)
    except EstError as cause:
        raise AuditLogMalformed(f"not an audit log: {cause.detail}") from cause
    if not isinstance(document, dict):
        raise AuditLogMalformed("an audit log is a JSON object")
    events = document.get("events")
    if not isinstance(events, list) or len(events) > MAX_EVENTS:
        raise AuditLogMalformed("events is missing, not a list, or too long")
    truncation = document.get("truncation", {})
    if not isinstance(truncation, dict):
        raise AuditLogMalformed("truncation is not an object")
    version = _number(document.get("version"), "version")
    if version < 1:
        raise AuditLogMalformed("version starts at 1")
    return AuditLog(
        events=tuple(_read_entry(entry) for entry in events),
        truncation=Truncation(
            _number(truncation.get("nonced duplicates", 0), "nonced duplicates"),
            _number(truncation.get("nonceless duplicates", 0), "nonceless duplicates"),
            _number(truncation.get("arbitrary", 0), "arbitrary"),
        ),
        version=version,
    )


def write(log: AuditLog) -> bytes:
    """The JSON answer of a MASA; numbers are integers, a nonceless entry carries null."""
    document: dict[str, object] = {
        "version": log.version,
        "events": [_write_entry(entry) for entry in log.events],
        "truncation": {
            "nonced duplicates": log.truncation.nonced_duplicates,
            "nonceless duplicates": log.truncation.nonceless_duplicates,
            "arbitrary": log.truncation.arbitrary,
        },
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def prune(log: AuditLog) -> AuditLog:
    """`log` with the newest nonced and the newest nonceless entry of each domain (RFC 8995, section 5.8.1).

    Dropped entries are counted in the entry that remains and in the counters of the whole log.
    """
    newest: dict[tuple[bytes, bool], LogEntry] = {}
    dropped = {True: 0, False: 0}
    for entry in log.events:
        kind = (entry.domain_id, entry.nonce is not None)
        older = newest.pop(kind, None)
        if older is not None:
            dropped[kind[1]] += 1
            entry = replace(entry, truncated=_capped(entry.truncated + older.truncated + 1))
        newest[kind] = entry
    counters = log.truncation
    return replace(
        log,
        events=tuple(newest.values()),
        truncation=Truncation(
            _capped(counters.nonced_duplicates + dropped[True]),
            _capped(counters.nonceless_duplicates + dropped[False]),
            counters.arbitrary,
        ),
    )


class Concern(Enum):
    """What can be said against a device's history (RFC 8995, section 5.8.3)."""

    FOREIGN_DOMAIN = "foreign-domain"
    FOREIGN_NONCELESS = "foreign-nonceless"
    BEFORE_PURCHASE = "before-purchase"
    MORE_THAN_ISSUED = "more-than-issued"
    OWN_ENTRY_MISSING = "own-entry-missing"
    ENTRIES_REMOVED = "entries-removed"
    NEWER_VERSION = "newer-version"


RULES: Mapping[Concern, str] = MappingProxyType(
    {
        Concern.FOREIGN_DOMAIN: "a domain that is neither ours nor known was given a voucher with a nonce",
        Concern.FOREIGN_NONCELESS: "such a domain holds a voucher without a nonce, which may be used at any time",
        Concern.BEFORE_PURCHASE: "a voucher was issued before the device was delivered to us",
        Concern.MORE_THAN_ISSUED: "the log has vouchers in our name that we never asked for",
        Concern.OWN_ENTRY_MISSING: "the voucher that we were just given is not in the log",
        Concern.ENTRIES_REMOVED: "the manufacturer removed entries from the log for reasons of its own",
        Concern.NEWER_VERSION: "the log is of a later version; what is known of it was read",
    }
)
"""What each concern means, in the order in which the manual has them."""

EVERYTHING = "*"
"""The key that stands for every finding, in an override that does not say which."""


@dataclass(frozen=True, slots=True)
class AuditPolicy:
    """The site's rule over histories.

    `refuse` are the concerns that keep a device out; the others are only reported. `known_domains` are domainIDs of
    others that are in order (a reseller, a sister campus). `purchased_at` dates the delivery, where it is known.
    `overridden` are the keys of findings that a human looked at and let pass, `EVERYTHING` for all of them: what comes
    up later is judged as before (RFC 8995, section 5.8.3).
    """

    refuse: frozenset[Concern] = frozenset(
        {
            Concern.FOREIGN_DOMAIN,
            Concern.FOREIGN_NONCELESS,
            Concern.BEFORE_PURCHASE,
            Concern.MORE_THAN_ISSUED,
            Concern.OWN_ENTRY_MISSING,
            Concern.ENTRIES_REMOVED,
        }
    )
    known_domains: frozenset[bytes] = frozenset()
    purchased_at: datetime | None = None
    overridden: frozenset[str] = frozenset()

    def is_overridden(self, key: str) -> bool:
        """Whether a human let this finding pass."""
        return key in self.overridden or EVERYTHING in self.overridden


@dataclass(frozen=True, slots=True)
class Finding:
    """One concern, whether it counts under the policy, and a public sentence about it.

    `key` stays the same while the fact does: it names concern and domain, or concern and number.
    """

    concern: Concern
    is_refusing: bool
    detail: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What the policy says about one log; accepted when no finding refuses."""

    findings: tuple[Finding, ...] = ()

    @property
    def is_accepted(self) -> bool:
        """Whether the device may go on."""
        return not any(finding.is_refusing for finding in self.findings)

    def check(self) -> None:
        """Raise DeviceHistoryRefused with the refusing findings, if there are any."""
        refusing = [finding for finding in self.findings if finding.is_refusing]
        if refusing:
            raise DeviceHistoryRefused(
                "; ".join(finding.detail for finding in refusing),
                concerns=tuple(finding.concern.value for finding in refusing),
            )


def appraise(
    log: AuditLog,
    policy: AuditPolicy,
    *,
    own_domain_ids: Collection[bytes],
    own_nonces: Collection[str | None] | None = None,
    issued: Voucher | None = None,
) -> Appraisal:
    """Judge a device's history.

    `own_domain_ids` are the domainIDs under which this site's vouchers are logged (every certificate a MASA may pin for
    us). `own_nonces`, where the site keeps them, are the nonces of all vouchers it was ever given for this device: more
    own entries than that mean that somebody else asks in our name. `issued` is the voucher that the device has now: a
    log without it is not the whole one.
    """
    findings: dict[str, Finding] = {}

    def note(concern: Concern, about: str, detail: str) -> None:
        key = f"{concern.value}:{about}" if about else concern.value
        counts = concern in policy.refuse and not policy.is_overridden(key)
        findings.setdefault(key, Finding(concern, counts, detail, key))

    if log.version > VERSION:
        note(Concern.NEWER_VERSION, str(log.version), f"the log is of version {log.version}")
    own = [entry for entry in log.events if entry.domain_id in own_domain_ids]
    trusted = {*own_domain_ids, *policy.known_domains}
    for entry in log.events:
        when = leaves.write_date(entry.date)
        if policy.purchased_at is not None and entry.date < policy.purchased_at:
            note(Concern.BEFORE_PURCHASE, str(when), f"a voucher was issued at {when}, before delivery")
        if entry.domain_id in trusted:
            continue
        name = base64.b64encode(entry.domain_id).decode("ascii")
        if entry.nonce is None:
            note(Concern.FOREIGN_NONCELESS, name, f"domain {name} holds a voucher without nonce, usable at any time")
        else:
            note(Concern.FOREIGN_DOMAIN, name, f"domain {name} was given a voucher")
    if own_nonces is not None:
        counted = sum(1 + entry.truncated for entry in own)
        unknown = sum(1 for entry in own if entry.nonce not in own_nonces)
        more = max(counted - len(own_nonces), unknown)
        if more > 0:
            note(Concern.MORE_THAN_ISSUED, str(more), "vouchers were issued in our name that we did not ask for")
    if issued is not None and all(entry.nonce != issued.nonce for entry in own):
        note(Concern.OWN_ENTRY_MISSING, "", "the voucher just issued is not in the log")
    if log.truncation.arbitrary:
        removed = log.truncation.arbitrary
        note(Concern.ENTRIES_REMOVED, str(removed), f"{removed} entries were removed from the log")
    return Appraisal(tuple(findings.values()))


def _read_entry(entry: object) -> LogEntry:
    if not isinstance(entry, dict):
        raise AuditLogMalformed("an event is not an object")
    try:
        nonce = entry.get("nonce")
        return LogEntry(
            date=leaves.read_date(entry.get("date")),
            domain_id=_read_domain_id(entry.get("domainID")),
            nonce=None if nonce is None else leaves.read_nonce(nonce),
            assertion=leaves.read_string(entry.get("assertion"), longest=64),
            truncated=_number(entry.get("truncated", 0), "truncated"),
        )
    except ValueError as cause:
        raise AuditLogMalformed(f"an event is not readable: {cause}") from cause


def _write_entry(entry: LogEntry) -> dict[str, object]:
    members: dict[str, object] = {
        "date": leaves.write_date(entry.date),
        "domainID": base64.b64encode(entry.domain_id).decode("ascii"),
        "nonce": entry.nonce,
        "assertion": entry.assertion,
    }
    if entry.truncated:
        members["truncated"] = entry.truncated
    return members


def _read_domain_id(value: object) -> bytes:
    if not isinstance(value, str) or not 1 <= len(value) <= 256:
        raise ValueError("domainID is not a base64 string")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as cause:
        raise ValueError("domainID is not a base64 string") from cause


def _number(value: object, name: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value, re.ASCII):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9:
        return value
    raise AuditLogMalformed(f"{name} is missing or not a number")


def _capped(count: int) -> int:
    return min(count, COUNTER_CEILING)
