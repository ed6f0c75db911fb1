"""The Workload API's methods: X.509-SVIDs and trust bundles, to those that the kernel shows to be a known workload.

Who calls is looked at anew before anything is handed over: the process that connected must still run, as the user and
with the program that the workload's entry names. JWT-SVIDs are not served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.clock import Clock
from appliance.errors import RateLimited
from appliance.proxy.agent_api import AgentApi
from appliance.proxy.caller import caller_of, measure
from appliance.proxy.errors import CallerGone, CallerNotAllowed, RequestNotYours, WorkloadUnknown
from appliance.proxy.report import Listener
from appliance.proxy.spiffe.holder import Holder, Svid, Trust, is_refused
from appliance.proxy.spiffe.http2 import Connected, GrpcServer
from appliance.proxy.spiffe.messages import Code, Status, x509_bundles_response, x509_svid_response
from appliance.proxy.spiffe.workloads import Workload, read_workloads
from appliance.web.limits import Limits
from est.errors import Refusal

log = logging.getLogger(__name__)

SERVICE = "/SpiffeWorkloadAPI/"
LOOK_SECONDS = 15.0
"""How often a stream looks whether it is time for a new SVID."""
TRUST_SECONDS = 300.0
"""How often a stream of bundles asks whether they are still the same."""
_NOT_SERVED = frozenset({"FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"})
_NO_IDENTITY = CallerNotAllowed | CallerGone | RequestNotYours | WorkloadUnknown


class WorkloadApi:
    """Serves the configured workloads, each with its own holder."""

    def __init__(
        self,
        holders: Sequence[Holder],
        limits: Limits,
        *,
        allow_root: bool = False,
        look_seconds: float = LOOK_SECONDS,
        trust_seconds: float = TRUST_SECONDS,
    ) -> None:
        self._holders = {(one.workload.uid, digest): one for one in holders for digest in one.workload.executables}
        self._limits = limits
        self._allow_root = allow_root
        self._look_seconds = look_seconds
        self._trust_seconds = trust_seconds

    async def serve(self, path: str, who: Connected) -> AsyncIterator[bytes]:
        """The messages of one call. Raises Status and Refusals."""
        self._limits.check("identity", who.peer)
        name = path.removeprefix(SERVICE)
        if path == f"{SERVICE}FetchX509SVID":
            async for svid in self._svids(who):
                yield svid
        elif path == f"{SERVICE}FetchX509Bundles":
            async for bundle in self._bundles(who):
                yield bundle
        elif path.startswith(SERVICE) and name in _NOT_SERVED:
            raise Status(Code.UNIMPLEMENTED, "JWT-SVIDs are not served here")
        else:
            raise Status(Code.UNIMPLEMENTED, "no such method")

    async def _svids(self, who: Connected) -> AsyncIterator[bytes]:
        last: Svid | None = None
        while True:
            holder = await self._holder_of(who)
            svid = await holder.svid(who.peer)
            if svid is not last:
                # asking may have taken as long as its owner needs: whose program is it that gets the key?
                if await self._holder_of(who) is not holder:
                    raise CallerGone("the calling process runs another program now")
                last = svid
                log.info("spiffe svid uid=%s pid=%s agent=%s", who.peer.uid, who.peer.pid, svid.agent)
                yield x509_svid_response(svid.agent, _der(*svid.chain), svid.key_der(), _der(svid.root))
            await asyncio.sleep(self._look_seconds)

    async def _bundles(self, who: Connected) -> AsyncIterator[bytes]:
        last: Trust | None = None
        while True:
            holder = await self._holder_of(who)
            try:
                trust = await holder.trust(who.peer)
            except Refusal as refusal:
                if last is None:
                    raise
                log.info("spiffe bundles cannot be asked for now code=%s", refusal.reason)
                trust = last
            if trust != last:
                last = trust
                yield x509_bundles_response({f"spiffe://{trust.trust_domain}": _der(trust.root)})
            await asyncio.sleep(self._trust_seconds)

    async def _holder_of(self, who: Connected) -> Holder:
        """The workload that the calling process is. Raises CallerNotAllowed, CallerGone, WorkloadUnknown."""
        with caller_of(who.peer, allow_root=self._allow_root) as caller:
            if caller.start_ticks != who.start_ticks:
                raise CallerGone("the process that connected has ended")
            if not any(uid == caller.uid for uid, _ in self._holders):
                raise WorkloadUnknown("the caller's user has no workload here")
            seen = await asyncio.to_thread(measure, caller)
        holder = self._holders.get((seen.uid, seen.executable_sha256))
        if holder is None:
            raise WorkloadUnknown("the caller's program is no workload here")
        return holder


def to_status(refusal: Refusal) -> Status:
    """No identity is PermissionDenied (SPIFFE Workload API, section 4.5); what may pass is Unavailable."""
    reason = str(refusal.fields.get("problem") or refusal.reason)
    if isinstance(refusal, RateLimited):
        return Status(Code.RESOURCE_EXHAUSTED, reason)
    if isinstance(refusal, _NO_IDENTITY) or is_refused(refusal):
        return Status(Code.PERMISSION_DENIED, f"no identity issued: {reason}")
    return Status(Code.UNAVAILABLE, reason)


async def open_workload_api(
    workloads_file: Path,
    socket: Path,
    mode: int,
    api: AgentApi,
    limits: Limits,
    clock: Clock,
    tell: Listener,
    *,
    allow_root: bool = False,
    look_seconds: float = LOOK_SECONDS,
) -> GrpcServer:
    """The Workload API on its socket. Raises WorkloadsMalformed, Conflict."""
    workloads: tuple[Workload, ...] = read_workloads(workloads_file)
    holders = [Holder(one, api, clock, tell) for one in workloads]
    served = WorkloadApi(holders, limits, allow_root=allow_root, look_seconds=look_seconds)
    server = GrpcServer(served.serve, to_status)
    await server.open(socket, mode)
    tell({"event": "spiffe-ready", "socket": str(socket), "workloads": len(holders)})
    return server


def _der(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.DER) for one in certificates)
