"""What the rules of an EST label say about one request (RFC 7030, sections 3.2.2 and 3.7).

A label is a set of rules and the proxies that enrolled under it; the path without a label is one, too, named "".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.registrar.applicants import Applicant
from appliance.registrar.errors import LabelNotYours
from appliance.settings import EstProfile, EstSettings
from appliance.web.peer import Peer
from est import csrattrs, linking
from est.csr import CHALLENGE_PASSWORD, Csr
from est.csrattrs import CURVES, EC_PUBLIC_KEY, CsrAttrs, ExtensionDemand, KeyDemand, NameDemand
from est.errors import KeyNotAccepted

_CURVE = {"p-256": "secp256r1", "p-384": "secp384r1"}


@dataclass(frozen=True, slots=True)
class EstPolicy:
    """The rules of one label; `lifetime` is that of its certificates."""

    label: str
    rules: EstProfile
    lifetime: timedelta

    @property
    def key(self) -> KeyDemand:
        """What csrattrs tells about keys: the one curve that is taken, or the one that is recommended."""
        return KeyDemand(EC_PUBLIC_KEY, curve=CURVES[_CURVE.get(self.rules.key, "secp256r1")])

    def demanded(self, identifier: str | None = None) -> CsrAttrs:
        """The key; for a known proxy also its identifier as the only name, and a common name of its own choice."""
        wanted = CsrAttrs(key=self.key, attributes=(CHALLENGE_PASSWORD,) if self.rules.linking == "required" else ())
        if identifier is None:
            return wanted
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identifier)])
        return replace(
            wanted,
            subject=(NameDemand(csrattrs.COMMON_NAME),),
            extensions=(ExtensionDemand(csrattrs.SUBJECT_ALT_NAME, value=names.public_bytes()),),
        )

    def check(self, applicant: Applicant, csr: Csr, peer: Peer) -> bool:
        """Whether the request is linked to its TLS session, where this label takes it from this applicant.

        Raises LabelNotYours, KeyNotAccepted, LinkingFailed.
        """
        if applicant.label != self.label:
            raise LabelNotYours("this client belongs to another EST label")
        wanted = _CURVE.get(self.rules.key)
        if wanted and not (
            isinstance(csr.public_key, ec.EllipticCurvePublicKey) and csr.public_key.curve.name == wanted
        ):
            raise KeyNotAccepted(f"this EST label takes keys on {self.rules.key.upper()} only")
        if self.rules.linking == "off":
            return False
        if not linking.is_bound(csr) and self.rules.linking != "required":
            return False
        return linking.check(
            csr,
            peer.bindings(),
            required=self.rules.linking == "required",
            is_password=applicant.is_password,
        )


def policies(settings: EstSettings, *, ldevid_days: int) -> Mapping[str, EstPolicy]:
    """The rules by label; `ldevid_days` is the life where a label says none."""
    every: dict[str, EstProfile] = {"": settings, **settings.labels}
    return {
        label: EstPolicy(label, rules, timedelta(days=rules.life_days or ldevid_days)) for label, rules in every.items()
    }
