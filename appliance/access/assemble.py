"""Network access and the owner directory, put together."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.access.directory import OwnerDirectory
from appliance.access.directory_tokens import DirectoryTokens
from appliance.access.explaining import Explainer
from appliance.access.forwarding import LogForwarding
from appliance.access.log_export import enterprise_of
from appliance.access.log_reader import DecisionReader
from appliance.access.nas import NasService
from appliance.access.policies import PolicyService
from appliance.access.row_journal import FILE_NAME
from appliance.access.service import AccessService
from appliance.access.session_changes import ChangeRunner
from appliance.access.sessions import SessionService
from appliance.access.sources.ldap_source import LdapSource
from appliance.access.sources.sync import DirectorySync
from appliance.binding.webauthn import Passkey
from appliance.clock import Clock
from appliance.hierarchy import Role
from appliance.keys import SealingBox
from appliance.settings import Settings
from appliance.store.store import Store


@dataclass(frozen=True, slots=True)
class Access:
    """The services of network access."""

    service: AccessService
    nas: NasService
    sessions: SessionService
    changes: ChangeRunner
    directory: OwnerDirectory
    sync: DirectorySync
    directory_tokens: DirectoryTokens
    policies: PolicyService
    explainer: Explainer
    decisions: DecisionReader
    forwarding: LogForwarding


def assemble(
    settings: Settings, *, store: Store, clock: Clock, roles: Mapping[str, Role], sealing: SealingBox
) -> Access:
    """`roles` knows our issuing CAs, `sealing` keeps the secrets that are shared with NAS."""
    access = AccessService(
        settings.access,
        store,
        clock,
        roles,
        settings.directory,
        journal=settings.home / FILE_NAME,
        reserve_bytes=settings.store.free_bytes,
    )
    nas = NasService(store, sealing, clock.now, settings.radius.engine)
    sessions = SessionService(
        store,
        clock,
        access,
        stale_minutes=settings.access.session_stale_minutes,
        assumed_hours=settings.access.session_assumed_hours,
        keep_days=settings.access.session_days,
    )
    changes = ChangeRunner(store, clock, sessions, nas, access.simulate)
    directory = OwnerDirectory(
        origin=settings.origin,
        store=store,
        clock=clock,
        skew_seconds=settings.identity.skew_seconds,
        oid_arc=settings.identity.oid_arc,
        passkeys=Passkey(*settings.passkey_place),
    )
    sync = DirectorySync(
        settings.directory,
        origin=settings.origin,
        store=store,
        clock=clock,
        directory=directory,
        source=LdapSource(settings.directory) if settings.directory.source == "ldap" else None,
        chance=secrets.SystemRandom().random,
    )
    directory_tokens = DirectoryTokens(store)
    policies = PolicyService(store, access)
    explainer = Explainer(store, access, clock, owner_id_oid=f"{settings.identity.oid_arc}.2")
    sender, pen = socket.gethostname(), enterprise_of(settings.identity.oid_arc)
    decisions = DecisionReader(store, access, clock, origin=settings.origin, sender=sender, pen=pen)
    forwarding = LogForwarding(settings.access, store, clock, sender=sender, pen=pen)
    access.on_logged(forwarding.news)
    return Access(
        access, nas, sessions, changes, directory, sync, directory_tokens, policies, explainer, decisions, forwarding
    )
