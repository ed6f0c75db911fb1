"""The inventory of certificates, for administrators: search, look, revoke, hand out (A-113).

Answers are JSON values, the same for command line, console and API. Times in searches are dates, moments in ISO 8601,
or spans from now: 30d, 12h.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.audit import Actor
from appliance.ca import CertificateAuthority, revoke
from appliance.clock import Clock
from appliance.crl_intake import take_crl
from appliance.errors import CertificateUnknown, Conflict, NotFound, NotPermitted, RequestMalformed
from appliance.store import Row, Store, Tx, certificate_search, certificates, owners
from est.certificates import load_certificate
from est.revocation import REASONS

Json = Mapping[str, Any]
MAX_PAGE = 10_000
_SERIAL = re.compile(r"0*([0-9a-f]{1,40})", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SPAN = re.compile(r"(\d{1,5})([dh])", re.ASCII)


class CertificateList:
    """What administrators do about certificates."""

    def __init__(self, *, origin: str, ca: CertificateAuthority, store: Store, clock: Clock) -> None:
        """`origin` is scheme and trust domain, the front of identifiers."""
        self._origin = origin
        self._ca = ca
        self._store = store
        self._clock = clock

    async def search(
        self,
        *,
        agent: str = "",
        owner: str = "",
        department: str = "",
        proxy: str = "",
        serial: str = "",
        key: str = "",
        state: str = "",
        expires_before: str = "",
        expires_after: str = "",
        before: int = 0,
        limit: int = 50,
        with_pem: bool = False,
    ) -> Json:
        """`certificates` that fit, newest first, and `next`: what `before` is for the page after it, or None.

        `agent` and `proxy` are identifiers or their UUIDs, `owner` a ref or identifier, `key` the SHA-256 of a public
        key (SubjectPublicKeyInfo). Raises RequestMalformed, NotFound for an owner that does not exist.
        """
        if not 1 <= limit <= MAX_PAGE or before < 0:
            raise RequestMalformed(f"a page has 1 to {MAX_PAGE} certificates")
        if state and state not in certificate_search.STATES:
            raise RequestMalformed(f"a state is one of {', '.join(certificate_search.STATES)}")
        values: dict[str, Any] = {
            "agent": self._identifier("agent", agent),
            "proxy": self._identifier("proxy", proxy),
            "department": department,
            "serial": _serial(serial) if serial else "",
            "key": _digest(key) if key else "",
            "expires_before": self._moment(expires_before),
            "expires_after": self._moment(expires_after),
        }
        values = {name: value for name, value in values.items() if value}

        def read(tx: Tx) -> list[dict[str, Any]]:
            if owner:
                found = owners.find(tx, owner)
                if found is None:
                    raise NotFound("there is no such owner")
                values["owner"] = found.identifier
            rows = certificate_search.search(tx, values, state=state, before=before, count=limit)
            shown = [{"id": row.id, **_brief(row, tx.now)} for row in rows]
            if with_pem:
                for one in shown:
                    one["pem"] = _pem(certificates.der(tx, one["id"]))
            return shown

        shown = await self._store.read(read)
        last = shown[-1]["id"] if len(shown) == limit else None
        return {"certificates": [{k: v for k, v in one.items() if k != "id"} for one in shown], "next": last}

    async def show(self, serial: str, *, issuer: str = "") -> Json:
        """One certificate with what it says itself, by its serial number; `issuer` is a role, needed if two used it.

        Raises CertificateUnknown, Conflict, RequestMalformed.
        """

        def read(tx: Tx) -> Json:
            row = _find(tx, serial, issuer)
            owner = None if row.owner_id is None else owners.by_identifier(tx, row.owner_id)
            return {
                **_brief(row, tx.now, department=None if owner is None else owner.department),
                "model": row.model,
                "txn": row.txn,
                "tbs_sha256": row.tbs_sha256,
                "csr_sha256": row.csr_sha256,
                **({} if row.der is None else _inside(row.der)),
            }

        return await self._store.read(read)

    async def revoke(self, serial: str, *, reason: str = "unspecified", issuer: str = "", actor: Actor) -> Json:
        """Revoke one certificate for good, also on a full disk; `reason` is a CRLReason name.

        Raises CertificateUnknown, Conflict if it is revoked already, NotPermitted for a CA's certificate,
        RequestMalformed.
        """
        if reason not in REASONS or reason == "certificateHold":
            allowed = ", ".join(name for name in REASONS if name != "certificateHold")
            raise RequestMalformed(f"a reason is one of {allowed}")

        def write(tx: Tx) -> Json:
            row = _find(tx, serial, issuer)
            if row.profile == "ca":
                raise NotPermitted("the certificate of a CA cannot be revoked here: its issuer, the root, is offline")
            done = revoke(tx, row.issuer_aki, int(row.serial, 16), reason=reason, actor=actor)
            return _brief(done, tx.now)

        return await self._store.write(write, essential=True)

    async def take_crl(self, file: Path, *, actor: Actor) -> Json:
        """Revoke what a CRL of ours in a file names; raises CrlForeign, RequestMalformed for a file that is none."""
        try:
            data = await asyncio.to_thread(file.read_bytes)
        except OSError as error:
            raise RequestMalformed(f"cannot read {file}: {error.strerror}") from error
        return await take_crl(data, ca=self._ca, store=self._store, actor=actor)

    def _identifier(self, kind: str, name: str) -> str:
        return name if "://" in name or not name else f"{self._origin}/{kind}/{name}"

    def _moment(self, text: str) -> datetime | None:
        if not text:
            return None
        span = _SPAN.fullmatch(text)
        if span:
            unit = timedelta(days=1) if span[2] == "d" else timedelta(hours=1)
            return self._clock.now() + int(span[1]) * unit
        try:
            found = datetime.fromisoformat(text)
        except ValueError as error:
            raise RequestMalformed("a time is a date, a moment in ISO 8601, or a span as in 30d, 12h") from error
        return found if found.tzinfo else found.replace(tzinfo=UTC)


def _find(tx: Tx, name: str, issuer: str) -> Row:
    rows = [row for row in certificates.by_number(tx, _serial(name)) if issuer in ("", row.issuer_role)]
    if not rows:
        raise CertificateUnknown("no such certificate was issued here")
    if len(rows) > 1:
        raise Conflict(f"several CAs used this serial number: {', '.join(row.issuer_role for row in rows)}; name one")
    return rows[0]


def _serial(text: str) -> str:
    found = _SERIAL.fullmatch(text.lower().replace(":", "").removeprefix("0x"))
    if not found:
        raise RequestMalformed("a serial number is at most 40 hexadecimal digits; colons may stand between them")
    return found[1]


def _digest(text: str) -> str:
    found = text.lower().replace(":", "")
    if not _DIGEST.fullmatch(found):
        raise RequestMalformed("a key is named by the SHA-256 of its SubjectPublicKeyInfo: 64 hexadecimal digits")
    return found


def _brief(row: Row, now: datetime, *, department: str | None = None) -> dict[str, Any]:
    state = row.state
    if state == certificates.ISSUED:
        state = "live" if row.not_after >= now else "expired"
    return {
        "serial": row.serial,
        "issuer": row.issuer_role,
        "profile": row.profile,
        "state": state,
        "subject": row.subject_id,
        "agent": row.agent_id,
        "owner": row.owner_id,
        "department": getattr(row, "department", department),
        "proxy": row.proxy_id,
        "not_before": _time(row.not_before),
        "not_after": _time(row.not_after),
        "issued_at": _time(row.created_at),
        "revoked_at": _time(row.revoked_at),
        "reason": row.revocation_reason,
        "cert_sha256": row.cert_sha256,
        "key_sha256": row.spki_sha256,
    }


def _inside(der: bytes) -> dict[str, Any]:
    certificate = load_certificate(der)
    return {
        "names": certificate.subject.rfc4514_string(),
        "issuer_name": certificate.issuer.rfc4514_string(),
        "pem": _pem(der),
    }


def _pem(der: bytes | None) -> str | None:
    return None if der is None else x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
