"""The registrar's parts put together: what a composition root, or a test, gives and gets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from appliance.ca import CertificateAuthority
from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.registrar.admission import OnRevoked, ProxyIdentities
from appliance.registrar.approvals import Approvals
from appliance.registrar.authorities import Authorities
from appliance.registrar.est_callers import EstCallers
from appliance.registrar.est_policy import policies
from appliance.registrar.est_refusals import EstRefusals
from appliance.registrar.est_service import EstService
from appliance.registrar.expected import ExpectedDevices
from appliance.registrar.history import History
from appliance.registrar.inventory import Inventory
from appliance.registrar.knocking import Knocks
from appliance.registrar.ldevids import Ldevids
from appliance.registrar.manufacturers import Manufacturers
from appliance.registrar.masa_client import MasaTransport
from appliance.registrar.prefetch import Prefetch
from appliance.registrar.reports import Reports
from appliance.registrar.routes import endpoints
from appliance.registrar.server_keys import ServerKeys
from appliance.registrar.service import RegistrarService
from appliance.registrar.turns import Turns
from appliance.settings import EstSettings, RegistrarSettings
from appliance.store.store import Store
from appliance.web.routes import Handler
from brski.paths import VOUCHER_FORMATS
from brski.registrar import Registrar, RegistrarPolicy
from est.signer import Signer

log = logging.getLogger(__name__)

REVIEW_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RegistrarPart:
    """Everything the registrar offers: endpoints for the device port, verbs for administrators, one background task."""

    endpoints: Mapping[str, Handler]
    manufacturers: Manufacturers
    inventory: Inventory
    knocks: Knocks
    expected: ExpectedDevices
    approvals: Approvals
    authorities: Authorities
    refusals: EstRefusals
    prefetch: Prefetch
    ldevids: Ldevids
    history: History
    masa: MasaTransport

    async def run(self) -> None:
        """Looks after pledges that took a voucher and never reported (B-338) and counts knocks, until cancelled."""
        while True:
            await asyncio.sleep(REVIEW_SECONDS)
            try:
                await self.history.review_silent()
                await self.knocks.flush()
                await self.refusals.flush()
            except ApplianceError as refusal:
                log.warning("review-failed reason=%s", refusal.reason)

    async def close(self) -> None:
        """Writes down who knocked meanwhile, and ends connections to MASAs."""
        try:
            await self.knocks.flush()
            await self.refusals.flush()
        except ApplianceError as refusal:
            log.warning("knocks-lost reason=%s", refusal.reason)
        await self.masa.close()


def registrar_policy(settings: RegistrarSettings) -> RegistrarPolicy:
    """What the settings say about voucher-requests, as brski takes it."""
    return RegistrarPolicy(
        accept_nonceless=settings.accept_nonceless,
        accept_id_data=settings.accept_id_data,
        formats=frozenset(VOUCHER_FORMATS[name] for name in settings.voucher_formats),
    )


def assemble(
    settings: RegistrarSettings,
    *,
    origin: str,
    ldevid_days: int,
    est_settings: EstSettings,
    store: Store,
    clock: Clock,
    ca: CertificateAuthority,
    registrar: Registrar,
    signer: Signer,
    masa: MasaTransport,
    on_proxy_revoked: Sequence[OnRevoked] = (),
    never_granted: Collection[str] = (),
) -> RegistrarPart:
    """`origin` is scheme and trust domain; `registrar` holds the certificate that the device port shows, `signer` its
    key; `ldevid_days` counts where the EST label says nothing.

    `on_proxy_revoked` run in the transaction that revokes a proxy; who asks for an extension of `never_granted`, by
    dotted type, gets no certificate.
    """
    turns = Turns()
    identities = ProxyIdentities(origin, on_proxy_revoked)
    manufacturers = Manufacturers(store, clock)
    knocks = Knocks(store, clock)
    ldevids = Ldevids(store=store, clock=clock, ca=ca)
    history = History(
        settings,
        store=store,
        clock=clock,
        masa=masa,
        registrar=registrar,
        manufacturers=manufacturers,
        identities=identities,
        turns=turns,
    )
    service = RegistrarService(
        settings,
        store=store,
        clock=clock,
        registrar=registrar,
        manufacturers=manufacturers,
        masa=masa,
        identities=identities,
        turns=turns,
        knocks=knocks,
    )
    reports = Reports(
        store=store, clock=clock, manufacturers=manufacturers, history=history, ldevids=ldevids, turns=turns
    )
    callers = EstCallers(
        origin=origin,
        store=store,
        clock=clock,
        manufacturers=manufacturers,
        history=history,
        ldevids=ldevids,
        identities=identities,
        turns=turns,
    )
    rules = policies(est_settings, ldevid_days=ldevid_days)
    authorities = Authorities(origin=origin, store=store, clock=clock, ca=ca)
    refusals = EstRefusals(store, clock)
    est = EstService(
        origin=origin,
        policies=rules,
        max_ldevids=settings.max_ldevids,
        store=store,
        clock=clock,
        ca=ca,
        ldevids=ldevids,
        callers=callers,
        identities=identities,
        authorities=authorities,
        server_keys=ServerKeys(signer, lambda: registrar.own_chain[0], clock),
        refusals=refusals,
        turns=turns,
        never_granted=never_granted,
        wraps={"as-asked": None, "always": True, "never": False}[est_settings.line_breaks],
    )
    prefetch = Prefetch(settings, store=store, clock=clock, registrar=registrar, manufacturers=manufacturers, masa=masa)
    return RegistrarPart(
        endpoints=endpoints(service, reports, est, makes_keys=any(one.makes_keys for one in rules.values())),
        manufacturers=manufacturers,
        inventory=Inventory(store=store, clock=clock, identities=identities),
        knocks=knocks,
        expected=ExpectedDevices(store),
        approvals=Approvals(store),
        authorities=authorities,
        refusals=refusals,
        prefetch=prefetch,
        ldevids=ldevids,
        history=history,
        masa=masa,
    )
