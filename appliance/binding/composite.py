"""The composite request (`application/agent-enroll+json`): agent request, CSR, owner approvals, the proxy's evidence.

The parts are kept as the text that was signed; the proxy adds evidence and changes nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from appliance.binding import approval, evidence, jws
from appliance.binding.claims import Claims, members
from appliance.binding.errors import Malformed
from est.errors import EstError
from est.transfer import read_json

MEDIA_TYPE = "application/agent-enroll+json"
MAX_BYTES = 65_536
MAX_APPROVALS = 8
MAX_CSR_BYTES = 4096
MAX_ORG = 4
MAX_ORG_BYTES = 8192

_MEMBERS = frozenset({"request", "csr", "approvals", "evidence", "org", "self_asserted"})


@dataclass(frozen=True, slots=True)
class Composite:
    """Tokens as text, the CSR as DER; `evidence` is None until the proxy has added it. Nothing is verified yet."""

    request: str
    csr_der: bytes | None = None
    approvals: tuple[str, ...] = ()
    evidence: str | None = None
    org: tuple[str, ...] = ()
    """Organisational material of the owner-mediated model, such as a signed credential in its compact form; stored and
    hashed, never interpreted (A-36)."""

    self_asserted: Mapping[str, object] = field(default_factory=dict, hash=False)
    """What the agent says about itself, for its proxy alone, which puts it into the evidence under that name (A-22)."""

    @property
    def org_s256(self) -> str | None:
        """Hash of the material as an approval names it, None where there is none; see `org_hash`."""
        return org_hash(self.org)

    def with_evidence(self, token: str) -> Composite:
        """The same composite with the proxy's evidence beside what the agent handed over."""
        return replace(self, evidence=token, self_asserted={})


def read(body: bytes) -> Composite:
    """A composite request; raises Malformed, Claim... . Tokens are opened by their own modules."""
    try:
        value = read_json(body, max_bytes=MAX_BYTES)
    except EstError as error:
        raise Malformed(error.detail, object="composite request") from error
    claims = members(value, "composite request")
    claims.check_names(_MEMBERS)
    return Composite(
        request=claims.text("request", max_length=jws.MAX_BYTES),
        csr_der=_read_csr(claims),
        approvals=_read_approvals(claims),
        evidence=evidence.read_cmw(claims.value("evidence")) if "evidence" in claims else None,
        org=_read_org(claims),
        self_asserted=evidence.read_self_asserted(claims.inner("self_asserted")) if "self_asserted" in claims else {},
    )


def write(composite: Composite) -> bytes:
    """The JSON body; members that are absent stay absent."""
    value: dict[str, object] = {"request": composite.request}
    if composite.csr_der is not None:
        value["csr"] = jws.base64url(composite.csr_der)
    value["approvals"] = list(composite.approvals)
    if composite.evidence is not None:
        value["evidence"] = evidence.write_cmw(composite.evidence)
    if composite.org:
        value["org"] = list(composite.org)
    if composite.self_asserted:
        value["self_asserted"] = dict(composite.self_asserted)
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def org_hash(org: Sequence[str]) -> str | None:
    """One hash over all pieces: of the compact JSON array of their texts, so that it is clear where each one ends."""
    if not org:
        return None
    return jws.s256(json.dumps(list(org), separators=(",", ":")))


def is_org_text(value: object) -> bool:
    """Whether this is a piece of organisational material: bounded printable ASCII, such as a JWS or base64."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ORG_BYTES and value.isascii() and value.isprintable()


def _read_csr(claims: Claims) -> bytes | None:
    if "csr" not in claims:
        return None
    return claims.octets("csr", max_length=MAX_CSR_BYTES * 4 // 3)


def _read_approvals(claims: Claims) -> tuple[str, ...]:
    if "approvals" not in claims:
        return ()
    value = claims.value("approvals")
    if not isinstance(value, list) or len(value) > MAX_APPROVALS:
        raise claims.malformed("approvals", f"a list of at most {MAX_APPROVALS} approvals")
    if any(not isinstance(one, str) or not 0 < len(one) <= approval.MAX_BYTES for one in value):
        raise claims.malformed("approvals", f"a list of tokens of at most {approval.MAX_BYTES} bytes")
    return tuple(value)


def _read_org(claims: Claims) -> tuple[str, ...]:
    if "org" not in claims:
        return ()
    value = claims.value("org")
    if not isinstance(value, list) or len(value) > MAX_ORG:
        raise claims.malformed("org", f"a list of at most {MAX_ORG} texts")
    if not all(is_org_text(one) for one in value):
        raise claims.malformed("org", f"a list of texts of 1 to {MAX_ORG_BYTES} printable ASCII characters")
    return tuple(value)
