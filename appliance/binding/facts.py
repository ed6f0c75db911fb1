"""What the checks of this package need to be told: limits from the settings, records from the registry."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding.errors import ApprovalWrongOwner, OwnerKeyInSoftware, OwnerKeyNotValid, OwnerNotActive
from appliance.binding.webauthn import Passkey


class Model(StrEnum):
    """Issuance model: a field of every object, never another way of checking."""

    AGENT_MEDIATED = "agent-mediated"
    OWNER_MEDIATED = "owner-mediated"
    SERVER_MEDIATED = "server-mediated"
    STANDING = "standing"


REQUEST_MODELS = {str(model): model for model in (Model.AGENT_MEDIATED, Model.OWNER_MEDIATED, Model.SERVER_MEDIATED)}
PROFILES = ("x509", "wit")
PURPOSES = ("issue", "renew")
PROTECTIONS = ("software", "pkcs11", "tpm", "passkey")
SERVER_MEDIATED_SECONDS = 900
"""Longest window of request, challenge and approval where the server asks: the owner is there, or is not (A-105)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that the site sets, in seconds where not said otherwise."""

    skew_seconds: int = 60
    window_seconds: int = 86_400
    """Longest `exp` - `iat` of requests and approvals: 24 h where the owner may be offline, 15 min server-mediated."""
    evidence_seconds: int = 300
    """Longest life of evidence, and its greatest age at submission."""
    backdating_seconds: int = 60
    """How far a credential's notBefore may lie before the moment of issue."""
    software_owner_keys: bool = True
    """Whether owner keys kept in software count."""
    standing_seconds: int = 90 * 86_400
    """Longest `exp` - `iat` of a standing approval."""

    def of(self, model: Model) -> Limits:
        """The limits under this issuance model."""
        if model is not Model.SERVER_MEDIATED:
            return self
        return replace(self, window_seconds=min(self.window_seconds, SERVER_MEDIATED_SECONDS))


@dataclass(frozen=True, slots=True)
class NonceRecord:
    """What the server remembers of a nonce that it issued."""

    value: str
    jkt: str
    purpose: str
    agent_id: str
    proxy_id: str
    expires_at: datetime
    is_spent: bool = False


@dataclass(frozen=True, slots=True)
class OwnerKey:
    """A key in an owner's registry record; validity None = unbounded."""

    jkt: str
    public_key: ec.EllipticCurvePublicKey
    state: str = "active"
    """active, suspended (nothing new for now), retired (what it signed before stays good until not_after) or revoked
    (nothing does)."""
    protection: str = "software"
    not_before: datetime | None = None
    not_after: datetime | None = None
    passkey: Passkey | None = None
    """Where it is registered, if it is a passkey; it then signs in that form alone."""

    def check(self, signed_at: int, *, software_allowed: bool = True, new: bool = False) -> None:
        """Refuses (OwnerKeyNotValid, OwnerKeyInSoftware) a signature of that second; `new` ones need an active key."""
        too_early = self.not_before is not None and signed_at < self.not_before.timestamp()
        too_late = self.not_after is not None and signed_at > self.not_after.timestamp()
        if self.state == "revoked" or (new and self.state != "active") or too_early or too_late:
            raise OwnerKeyNotValid("the owner's key was not valid for this signature")
        if self.protection == "software" and not software_allowed:
            raise OwnerKeyInSoftware("the owner's key is kept in software, which is not accepted here")


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """What a registry says about an owner."""

    owner_id: str
    keys: Collection[OwnerKey]
    state: str = "active"
    kind: str = "person"
    proxies: frozenset[str] | None = field(default=None)
    """Proxies that may submit for this owner; None = the caller checks the matrix itself, or has none."""

    def key(self, jkt: str | None) -> OwnerKey | None:
        """The registered key with this thumbprint."""
        return next((key for key in self.keys if key.jkt == jkt), None)

    def check_active(self) -> None:
        """Refuses (OwnerNotActive) what a suspended or revoked owner signed."""
        if self.state != "active":
            raise OwnerNotActive("this owner is not active")

    def check_signed(self, iss: str, key: OwnerKey, at: int, *, software_allowed: bool) -> None:
        """Refuses (ApprovalWrongOwner, OwnerNotActive, OwnerKey...) what this key may not have signed in this name."""
        if iss != self.owner_id:
            raise ApprovalWrongOwner("the approval's iss is not the owner of the key that signed it")
        self.check_active()
        key.check(at, software_allowed=software_allowed, new=True)


def seconds(at: datetime) -> float:
    """Seconds since 1970 of an aware datetime."""
    if at.tzinfo is None:
        raise ValueError("a time without zone")
    return at.timestamp()
