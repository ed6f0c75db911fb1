"""Puts the identity server together from its settings, the CA and the store."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from appliance.authorities import Authorities
from appliance.binding.facts import Limits, Model
from appliance.binding.identifier import Kind, read_kind
from appliance.ca import CertificateAuthority, RoleSigner
from appliance.clock import Clock
from appliance.identity.agent_mediated import AgentMediated
from appliance.identity.appraisal import Appraiser, Verifier
from appliance.identity.appraisal_policy import (
    BUILT_IN,
    AppraisalPolicy,
    AppraisalPolicyInvalid,
    read_appraisal_policy,
)
from appliance.identity.approvers import ClassRules
from appliance.identity.challenges import OwnerChallenges
from appliance.identity.issue import Issuer
from appliance.identity.owner_desk import OwnerDesk
from appliance.identity.owner_mediated import OwnerMediated
from appliance.identity.records import Registry
from appliance.identity.remote_verifier import RemoteVerifier, read_destination
from appliance.identity.server_mediated import ServerMediated
from appliance.identity.service import IdentityService
from appliance.identity.submitter import Submitters
from appliance.settings import IdentitySettings
from appliance.store.store import Store
from est.keys import spki_sha256
from est.signer import Signer


def build_identity(
    settings: IdentitySettings,
    *,
    origin: str,
    server_id: str,
    store: Store,
    ca: CertificateAuthority,
    clock: Clock,
    verifier_signer: Signer | None = None,
    wit_signer: Signer | None = None,
    single_identity: bool = False,
) -> IdentityService:
    """The service; `origin` is scheme and trust domain, `server_id` the audience of requests and approvals.

    Results of the appraisal and WITs are signed with the agents CA's key unless there are keys of their own: `typ`
    keeps them apart, and no JWS is DER. Raises AppraisalPolicyInvalid, VerifierSettingInvalid, and
    Identifier... or OriginMismatch for a named approver that cannot be an owner here.
    """
    for named in settings.named_approvers.values():
        for one in named:
            read_kind(one, Kind.OWNER, origin=origin)
    rules = ClassRules(settings.approvers, settings.named_approvers)
    issuing_signer = RoleSigner(ca, "agents")
    verifier_signer, wit_signer = verifier_signer or issuing_signer, wit_signer or issuing_signer
    limits = Limits(
        skew_seconds=settings.skew_seconds,
        window_seconds=int(settings.nonce_hours * 3600),
        evidence_seconds=settings.evidence_seconds,
        software_owner_keys=settings.allow_software_owner_keys,
        standing_seconds=int(settings.standing_days * 86_400),
    )
    elsewhere = read_destination(settings)
    verifier_keys = () if elsewhere is None else elsewhere.keys
    policy = load_policy(settings.appraisal_policy)
    verifier: Verifier | Appraiser = Verifier(verifier_signer, policy, developer=server_id, limits=limits)
    if elsewhere is not None:
        verifier = RemoteVerifier(
            elsewhere,
            policy,
            clock=clock,
            limits=limits,
            seconds=settings.verifier_seconds,
            concurrency=settings.verifier_concurrency,
        )

    @lru_cache(maxsize=1)
    def keys_of(authorities: Authorities) -> frozenset[bytes]:
        certificates = (*authorities.roots, *(one.certificate for one in ca.generations))
        keys = (verifier_signer.public_key(), wit_signer.public_key(), *verifier_keys)
        return frozenset([*map(spki_sha256, certificates), *map(spki_sha256, keys)])

    issuer = Issuer(
        ca=ca,
        store=store,
        clock=clock,
        origin=origin,
        server_id=server_id,
        arc=settings.oid_arc,
        wit_signer=wit_signer,
        wit_issuer=f"urn:appliance:{origin.partition('://')[2]}",
        wit_seconds=int(settings.wit_minutes * 60),
        limits=limits,
        verifier_keys=verifier_keys,
    )
    registry = Registry(lambda: keys_of(ca.authorities))
    challenges = OwnerChallenges(
        settings,
        server_id=server_id,
        store=store,
        clock=clock,
        signer=issuing_signer,
        registry=registry,
        limits=limits,
        rules=rules,
    )
    return IdentityService(
        settings,
        server_id=server_id,
        origin=origin,
        store=store,
        clock=clock,
        submitters=Submitters(ca, store, clock, origin),
        registry=registry,
        verifier=verifier,
        models={
            Model.AGENT_MEDIATED: AgentMediated(single_identity=single_identity),
            Model.OWNER_MEDIATED: OwnerMediated(),
            Model.SERVER_MEDIATED: ServerMediated(),
        },
        issuer=issuer,
        challenges=challenges,
        desk=OwnerDesk(
            server_id=server_id,
            store=store,
            clock=clock,
            registry=registry,
            limits=limits,
            rules=rules,
            owner_classes=settings.owner_classes,
        ),
        rules=rules,
    )


def load_policy(path: Path | None) -> AppraisalPolicy:
    """The appraisal policy in a file, the built-in one without; raises AppraisalPolicyInvalid."""
    if path is None:
        return BUILT_IN
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise AppraisalPolicyInvalid(f"{path} cannot be read as UTF-8 text") from cause
    return read_appraisal_policy(text)
