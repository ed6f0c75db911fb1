"""A relying party: checks credentials of every campus that it knows, and proofs beside them, asking nobody.

    party = RelyingParty([bundle.read(text)])
    party.request(Message(...), target="https://orders.example/v1", at=now)

The origin in a credential only chooses which campus's anchors, keys and owners it is held against; everything else is
verified with those. A certificate needs no proof here, because TLS has proved its key; a WIT never counts without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from appliance.binding import http_signature, jws, proof, token, verify
from appliance.binding.bundle import TrustBundle
from appliance.binding.claims import Claims
from appliance.binding.errors import Malformed, OriginMismatch, ProofMissing, ProofReplayed, ProofWrongAudience
from appliance.binding.facts import Limits, seconds
from appliance.binding.http_signature import WIT_FIELD, Message
from appliance.binding.identifier import read as read_identifier
from appliance.binding.proof import NOTHING, Beside, Spent
from appliance.binding.verify import Report
from est.keys import is_ec, public_key_of

PROOF_FIELD = "workload-proof-token"
_FOR_WHOM = frozenset({'"@authority"', '"@target-uri"'})


@dataclass(frozen=True, slots=True)
class Judged:
    """Who asks, for whom, with which key, and what proved that: `wpt`, `http-signature`, `tls` (a certificate), or
    `nothing`."""

    report: Report
    key: jws.PublicKey
    proved_by: str


class RelyingParty:
    """Knows some campuses by their trust bundles, one per origin; remembers which proofs were used."""

    def __init__(self, bundles: Iterable[TrustBundle], *, skew_seconds: int = 60, most_proofs: int = 100_000) -> None:
        """Malformed if two bundles have one origin."""
        self._bundles: dict[str, TrustBundle] = {}
        for one in bundles:
            if self._bundles.setdefault(one.domain.origin, one) is not one:
                raise Malformed("two trust bundles have one origin", object="bundle")
        self._skew_seconds = skew_seconds
        self._spent = Spent(most_proofs)

    @property
    def origins(self) -> tuple[str, ...]:
        """The campuses that count here."""
        return tuple(self._bundles)

    def certificate(
        self,
        leaf: x509.Certificate,
        others: Sequence[x509.Certificate],
        *,
        at: datetime,
        approval: str | None = None,
    ) -> Judged:
        """Verifies a dual-identity certificate whose key TLS has proved; raises OriginMismatch, what verify raises.

        `approval` is the one whose hash the certificate holds, where it holds a hash.
        """
        known = self._of(verify.agent_id_of(leaf))
        limits = Limits(backdating_seconds=known.backdating_seconds, skew_seconds=self._skew_seconds)
        report = verify.verify_certificate(
            leaf, others, known.domain, known.owners.get, at=at, arc=known.arc, limits=limits, approval=approval
        )
        key = public_key_of(leaf)
        assert is_ec(key)  # the verifier demanded it
        return Judged(report, key, "tls")

    def wit(
        self,
        text: str,
        *,
        at: datetime,
        proof_text: str | None,
        target: str = "",
        beside: Beside = NOTHING,
        approval: str | None = None,
        proof_needed: bool = True,
    ) -> Judged:
        """Verifies a WIT and the WPT beside it. Raises ProofMissing without one, OriginMismatch, what verify and
        proof.check raise. Without `proof_needed` the WIT is looked at and nobody is believed to be its agent."""
        report, wit = self._wit(text, at, approval)
        if proof_text is None and not proof_needed:
            return Judged(report, wit.key, "nothing")
        if proof_text is None:
            raise ProofMissing("a WIT alone proves nothing")
        self._check_proof(proof_text, wit, target, at, beside)
        return Judged(report, wit.key, "wpt")

    def request(self, message: Message, *, target: str, at: datetime, approval: str | None = None) -> Judged:
        """Verifies a request with a WIT and exactly one kind of proof: WPT or HTTP message signature.

        `target` is our own address without query. Raises ProofMissing, SignatureMalformed, OriginMismatch, and what
        verify, proof.check and http_signature.verify raise.
        """
        if message.count(WIT_FIELD) != 1:
            raise ProofMissing("not exactly one Workload-Identity-Token is there")
        report, wit = self._wit(message.field(WIT_FIELD) or "", at, approval)
        proofs, is_signed = message.count(PROOF_FIELD), message.count("signature-input") > 0
        if proofs > 1 or (not proofs and not is_signed):
            raise ProofMissing("not exactly one proof is beside the WIT")
        if not proofs:
            signed = http_signature.verify(message, wit.key, at=at, target=target, skew_seconds=self._skew_seconds)
            if "wimse-aud" not in signed.params and _FOR_WHOM.isdisjoint(signed.components):
                raise ProofWrongAudience("nothing in the signature says for whom it was made")
            self._spend_nonce(wit, signed, at)
            return Judged(report, wit.key, "http-signature")
        kind, _, access = (message.field("authorization") or "").partition(" ")
        beside = Beside(
            access=access.strip() if kind.lower() in ("bearer", "dpop") else None,
            transaction=message.field("txn-token"),
        )
        self._check_proof(message.field(PROOF_FIELD) or "", wit, target, at, beside)
        return Judged(report, wit.key, "wpt")

    def _wit(self, text: str, at: datetime, approval: str | None) -> tuple[Report, token.Wit]:
        known = self._of(_subject(text))
        report = verify.verify_wit(
            text,
            known.domain,
            known.owners.get,
            issuer=known.issuer,
            issuer_keys=known.wit_keys,
            at=at,
            limits=Limits(backdating_seconds=known.backdating_seconds, skew_seconds=self._skew_seconds),
            approval=approval,
        )
        claim = token.owner_claim_of(known.domain.origin.partition("://")[2])
        return report, token.unseal(text, known.wit_keys, owner_claim=claim)

    def _check_proof(self, text: str, wit: token.Wit, target: str, at: datetime, beside: Beside) -> None:
        now = seconds(at)
        proof.check(
            text,
            wit,
            target=target,
            at=at,
            spend=lambda key, until: self._spent.take(key, until, now),
            beside=beside,
            skew_seconds=self._skew_seconds,
        )

    def _spend_nonce(self, wit: token.Wit, signed: http_signature.Signed, at: datetime) -> None:
        nonce, created = signed.params.get("nonce"), signed.params.get("created")
        if not isinstance(nonce, str) or not nonce or not isinstance(created, int):
            raise ProofMissing("the signature has no nonce, so it could be used again")
        until = created + http_signature.LONGEST_SECONDS + 2 * self._skew_seconds
        if not self._spent.take(f"{jws.s256(wit.token)}:{nonce}", until, seconds(at)):
            raise ProofReplayed("the signature was used before")

    def _of(self, identifier: str) -> TrustBundle:
        origin = read_identifier(identifier).origin
        try:
            return self._bundles[origin]
        except KeyError:
            raise OriginMismatch(
                "no campus that counts here has this origin", expected=", ".join(self._bundles) or "none", found=origin
            ) from None


def _subject(text: str) -> str:
    """Whom an unverified WIT claims to be about: good for choosing keys, and for nothing else."""
    return Claims(jws.read_object(jws.read(text).payload, "payload"), "WIT").text("sub")
