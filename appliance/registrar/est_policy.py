"""What the rules of an EST label say about one request (RFC 7030, sections 3.2.2 and 3.7).

A label is a set of rules and the proxies that enrolled under it; the path without a label is one, too, named "".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.keys import read_private
from appliance.registrar.applicants import Applicant
from appliance.registrar.errors import LabelNotYours, NameChangeRefused, SharedKeysUnusable
from appliance.settings import EstProfile, EstSettings
from appliance.web.peer import Peer
from est import csrattrs, linking, profiles, renaming
from est.csr import CHALLENGE_PASSWORD, Csr
from est.csrattrs import CURVES, EC_PUBLIC_KEY, CsrAttrs, ExtensionDemand, KeyDemand, NameDemand
from est.errors import KeyNotAccepted, LinkingFailed

MAX_COMMON_NAME = 64
_CURVE = {"p-256": "secp256r1", "p-384": "secp384r1"}


@dataclass(frozen=True, slots=True)
class EstPolicy:
    """The rules of one label; `lifetime` is that of its certificates.

    `shared_keys` are symmetric keys by identifier, for keys that we make.
    """

    label: str
    rules: EstProfile
    lifetime: timedelta
    shared_keys: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)

    @property
    def makes_keys(self) -> bool:
        """Whether serverkeygen exists."""
        return self.rules.serverkeygen != "off"

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
        if applicant.is_authority:
            # what it passes on is bound to the session that its client has with it (RFC 7030, section 3.7)
            if self.rules.linking == "required" and not linking.is_bound(csr):
                raise LinkingFailed("the request must carry the channel binding of the client's session")
            return False
        if not linking.is_bound(csr) and self.rules.linking != "required":
            return False
        return linking.check(
            csr,
            peer.bindings(),
            required=self.rules.linking == "required",
            is_password=applicant.is_password,
        )

    def renamed(self, csr: Csr, identifier: str) -> x509.Name | None:
        """The subject that the request asks for by ChangeSubjectName (RFC 6402, section 2.8); None = it asks for none.

        What it leaves out would be taken away, so subjectAltName must be there as it is: it names the proxy. Raises
        CsrMalformed, NameChangeRefused.
        """
        change = renaming.read(csr)
        if change is None:
            return None
        if self.rules.renaming == "refuse":
            raise NameChangeRefused("names are not changed under this EST label (ChangeSubjectName)")
        if change.san_der is None:
            raise NameChangeRefused("ChangeSubjectName without subjectAlt would take the proxy's identifier away")
        if change.san_der != x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identifier)]).public_bytes():
            raise NameChangeRefused("subjectAltName is the proxy's identifier, which never changes")
        common_name = change.common_name
        if common_name is None or not 0 < len(common_name) <= MAX_COMMON_NAME or not common_name.isprintable():
            raise NameChangeRefused("the new subject must be one common name of at most 64 printable characters")
        return profiles.name(common_name)


def policies(settings: EstSettings, *, ldevid_days: int) -> Mapping[str, EstPolicy]:
    """The rules by label; `ldevid_days` is the life where a label says none.

    Raises KeyFileMissing, KeyFileExposed, SharedKeysUnusable.
    """
    every: dict[str, EstProfile] = {"": settings, **settings.labels}
    return {
        label: EstPolicy(
            label,
            rules,
            timedelta(days=rules.life_days or ldevid_days),
            {} if rules.shared_keys_file is None else read_shared_keys(rules.shared_keys_file),
        )
        for label, rules in every.items()
    }


def read_shared_keys(path: Path) -> Mapping[bytes, bytes]:
    """Symmetric keys by identifier: lines IDENTIFIER KEY, both hex, # begins a comment.

    Raises KeyFileMissing, KeyFileExposed, SharedKeysUnusable naming the line, never what is in it.
    """
    found: dict[bytes, bytes] = {}
    for number, line in enumerate(read_private(path).decode("latin-1").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            identifier, key = (bytes.fromhex(word) for word in words)
        except ValueError:
            identifier = key = b""
        if not 0 < len(identifier) <= 255 or len(key) not in (16, 24, 32) or identifier in found:
            raise SharedKeysUnusable(
                f"{path}, line {number}: not an identifier and a key of 16, 24 or 32 bytes in hex, or one that was "
                "there before"
            )
        found[identifier] = key
    return found
