"""Who asks for a certificate: a device by its IDevID, or the holder of a one-time secret (RFC 7030, section 3.2.3)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import replace
from datetime import timedelta
from functools import partial

from appliance.clock import Clock
from appliance.errors import NotPermitted
from appliance.registrar import records
from appliance.registrar.admission import ProxyIdentities
from appliance.registrar.applicants import PledgeApplicant, SecretApplicant
from appliance.registrar.caller import Caller
from appliance.registrar.errors import EnrollmentCredentialsMissing, EnrollmentNotOpen, EnrollmentSecretInvalid
from appliance.registrar.est_policy import EstPolicy
from appliance.registrar.history import History
from appliance.registrar.ldevids import Ldevids
from appliance.registrar.manufacturers import Manufacturers
from appliance.registrar.turns import Turns
from appliance.store import est_secrets, pledges, proxies
from appliance.store.est_secrets import SecretRow
from appliance.store.pledges import PledgeRecord
from appliance.store.proxies import ProxyRow
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.peer import Peer
from brski.errors import ManufacturerUnknown
from brski.idevid import IDevID
from brski.manufacturer import identify
from brski.states import EST_OPEN, RecordState
from est import csrattrs
from est.csrattrs import CsrAttrs
from est.errors import Refusal

REPEAT_WINDOW = timedelta(minutes=10)
"""For so long a repeated request gets the certificate that it got before (E-126)."""


class EstCallers:
    """Finds the applicant behind a call, and tells it what its CSR must have."""

    def __init__(
        self,
        *,
        origin: str,
        store: Store,
        clock: Clock,
        manufacturers: Manufacturers,
        history: History,
        ldevids: Ldevids,
        identities: ProxyIdentities,
        turns: Turns,
    ) -> None:
        self._origin = origin
        self._store = store
        self._clock = clock
        self._manufacturers = manufacturers
        self._history = history
        self._ldevids = ldevids
        self._identities = identities
        self._turns = turns

    async def pledge(self, peer: Peer, caller: Caller, policy: EstPolicy) -> PledgeApplicant:
        """The device whose IDevID this is, if its bootstrap has come so far."""
        if peer.certificate is None:
            raise EnrollmentCredentialsMissing("enrolment needs an IDevID or a one-time secret")
        if await self._ldevids.find(peer) is not None:
            raise NotPermitted("a proxy renews with simplereenroll")
        try:
            known = identify(peer.certificate, peer.chain[1:], await self._manufacturers.facts(), now=self._clock.now())
        except ManufacturerUnknown as cause:
            raise EnrollmentCredentialsMissing("this client certificate is not known here") from cause
        async with self._turns.of(known.idevid.device):
            record, proxy = self._store.read_sync(partial(_pledge_and_proxy, known.idevid, caller))
            if records.state_of(record) is RecordState.VOUCHER_ACCEPTED:
                record = await self._history.judge(record.id, caller)
        if records.state_of(record) not in EST_OPEN or proxy is None:
            raise EnrollmentNotOpen("voucher, the pledge's yes to it and a good history come first")
        return PledgeApplicant(record, proxy, caller, is_held=policy.rules.csrattrs == "enforce")

    async def secret_holder(self, authorization: str, caller: Caller, policy: EstPolicy) -> SecretApplicant:
        """Whoever sends NAME and SECRET of a live secret; a spent one serves only to fetch its certificate again."""
        name, offered = _read_basic(authorization)
        row = self._store.read_sync(partial(est_secrets.by_name, name=name))
        expected = row.secret_sha256 if row is not None else "0" * 64
        matches = hmac.compare_digest(expected, hashlib.sha256(offered).hexdigest())
        if row is None or not matches or row.label != policy.label or not self._is_usable(row):
            raise EnrollmentSecretInvalid("the name or the secret is wrong, or its time has passed")
        return SecretApplicant(row, self._identities, self._origin, caller)

    def _is_usable(self, row: SecretRow) -> bool:
        now = self._clock.now()
        if row.spent_at is not None:
            return now < row.spent_at + REPEAT_WINDOW
        return now < row.expires_at

    async def attributes(self, authorization: str, peer: Peer, caller: Caller, policy: EstPolicy) -> CsrAttrs:
        """What a CSR of this caller must have; to one that names nobody, the key alone (RFC 7030, section 4.5).

        A device after its admission is held to the answer, so the answer is kept with its record (RFC 8995, section
        5.9.2). Raises EnrollmentSecretInvalid.
        """
        if authorization:
            holder = await self.secret_holder(authorization, caller, policy)
            return policy.demanded(holder.identifier)
        try:
            live = await self._ldevids.find(peer)
            if live is not None:
                return policy.demanded(live.identifier if live.proxy.label == policy.label else None)
            if peer.certificate is None:
                return policy.demanded()
            facts = await self._manufacturers.facts()
            known = identify(peer.certificate, peer.chain[1:], facts, now=self._clock.now())
            record, proxy = await self._store.read(partial(_pledge_and_proxy, known.idevid, caller))
        except Refusal:
            return policy.demanded()
        if proxy is None or not proxy.is_active or proxy.label != policy.label:
            return policy.demanded()
        wanted = policy.demanded(proxy.identifier)
        told = csrattrs.write(wanted)
        if record.csr_attributes != told:
            await self._store.write(partial(_remember, record.id, told))
        return wanted


def _remember(pledge_id: str, told: bytes, tx: Tx) -> None:
    record = pledges.require(tx, pledge_id)
    pledges.save(tx, replace(record, csr_attributes=told), was=record.state)


def _pledge_and_proxy(idevid: IDevID, caller: Caller, tx: Tx) -> tuple[PledgeRecord, ProxyRow | None]:
    """The record of the device that asks, and its proxy identity if it was admitted; raises EnrollmentNotOpen."""
    record = pledges.by_device(tx, *idevid.device)
    if record is None:
        raise EnrollmentNotOpen("no voucher was issued to this device")
    if record.idevid_sha256 != caller.fingerprint:
        raise EnrollmentNotOpen("this is not the certificate that asked for the voucher")
    return record, proxies.get(tx, record.proxy_id) if record.proxy_id else None


def _read_basic(authorization: str) -> tuple[str, bytes]:
    """Name and secret of an Authorization header (RFC 7617); raises EnrollmentSecretInvalid."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True)
        name, found, offered = decoded.partition(b":")
        text = name.decode()
    except (binascii.Error, ValueError) as cause:
        raise EnrollmentSecretInvalid("the Authorization header cannot be read") from cause
    if scheme.lower() != "basic" or not found or len(decoded) > 512:
        raise EnrollmentSecretInvalid("the Authorization header is not HTTP Basic with name and secret")
    return text, offered
