"""The embedded RADIUS server: EAP-TLS for small sites, the laboratory and tests (design decision D-11).

RADIUS side (RFC 2865, 3579, 5080): packets of unknown NAS or without a valid Message-Authenticator get no answer; a
retransmitted request gets the same octets again and costs no second decision; logins under way, their life and the
answers kept are bounded. The login itself is in radius.login. One event loop, no threads: measured, a thread pool for
the handshakes cost more than it gave.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509

from radius import packets
from radius.attributes import to_attributes
from radius.decision import Decision, refuse
from radius.errors import EapOutOfTurn, PacketInvalid
from radius.handshake import ServerIdentity, TlsFront, TlsVersion
from radius.login import Authorize, Challenge, Login, Verdict
from radius.request import MAC_BYPASS, AccessRequest

Address = tuple[Any, ...]
_REPLY_SECONDS: Final = 10.0  # how long an answer is kept for retransmissions; NAS give up after about 3 x 3 s
_EAP_FAILURE: Final = 4


@dataclass(frozen=True, slots=True)
class Nas:
    """A RADIUS client: its name for logs and policy, and its shared secret."""

    name: str
    secret: bytes


@dataclass(slots=True)
class Counters:
    """What the server has seen since it started."""

    requests: int = 0
    unknown_nas: int = 0
    invalid: int = 0
    duplicates: int = 0
    discarded: int = 0
    sessions_refused: int = 0
    timeouts: int = 0
    accepts: int = 0
    rejects: int = 0


@dataclass(slots=True)
class _Session:
    login: Login
    nas_address: str
    started: float


class RadiusServer(asyncio.DatagramProtocol):
    """EAP-TLS over RADIUS on one UDP port.

    `nas` maps a source address to its Nas or None; `anchors` are the issuing CAs whose certificates may log in;
    `authorize` is asked once per verified login, and for a port that asks by MAC address, and must not block;
    `on_failure` hears of logins that failed before it and of packets that got no answer, and must bound what it keeps.
    `owner_id_oid` is the dotted OID of the OwnerId extension.
    """

    def __init__(
        self,
        *,
        identity: ServerIdentity,
        anchors: Sequence[x509.Certificate],
        nas: Callable[[str], Nas | None],
        authorize: Authorize,
        on_failure: Callable[[AccessRequest, Decision], None],
        owner_id_oid: str,
        tls_min: TlsVersion = "1.2",
        tls_max: TlsVersion = "1.3",
        session_seconds: float = 30.0,
        max_sessions: int = 4096,
        fragment_bytes: int = 1000,
        reply_message: bool = True,
    ) -> None:
        self._anchors = tuple(anchors)
        self._versions = (tls_min, tls_max)
        self._nas = nas
        self._authorize = authorize
        self._on_failure = on_failure
        self._owner_id_oid = owner_id_oid
        self._session_seconds = session_seconds
        self._max_sessions = max_sessions
        self._fragment_bytes = fragment_bytes
        self._reply_message = reply_message
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._replies: OrderedDict[tuple[Address, int, bytes], tuple[float, bytes]] = OrderedDict()
        self._transport: asyncio.DatagramTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._now: Callable[[], float] = lambda: 0.0
        self.counters = Counters()
        self.use_identity(identity)

    def use_identity(self, identity: ServerIdentity) -> None:
        """Serve new logins with this certificate; those under way finish with the one they began with."""
        self._identity = identity
        tls_min, tls_max = self._versions
        self._front = TlsFront(identity, self._anchors, tls_min=tls_min, tls_max=tls_max)

    def use_anchors(self, anchors: Sequence[x509.Certificate]) -> None:
        """Take certificates of these issuing CAs in new logins."""
        if tuple(anchors) != self._anchors:
            self._anchors = tuple(anchors)
            self.use_identity(self._identity)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the port chosen (port 0 = any). Raises OSError if the address is taken."""
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, port))
        self._sweep_again()
        chosen: int = self._transport.get_extra_info("sockname")[1]
        return chosen

    async def close(self) -> None:
        """Stop listening and forget the logins under way."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()
        self._sessions.clear()
        self._replies.clear()

    @property
    def sessions(self) -> int:
        """Logins under way."""
        return len(self._sessions)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """One RADIUS packet (called by asyncio)."""
        self.counters.requests += 1
        nas = self._nas(str(addr[0]))
        if nas is None:
            self.counters.unknown_nas += 1
            self._dropped("", addr, "nas-unknown", f"a packet of {len(data)} bytes")
            return
        try:
            packet = packets.read_request(data, nas.secret)
        except PacketInvalid as refusal:
            self.counters.invalid += 1
            self._dropped(nas.name, addr, str(refusal.fields.get("code", "radius-malformed")), refusal.detail)
            return
        if packet.code == packets.STATUS_SERVER:  # RFC 5997: answered at once, never cached
            self._send(packets.write_reply(packet, packets.ACCESS_ACCEPT), addr)
            return
        key = (addr, packet.id, packet.authenticator)
        kept = self._replies.get(key)
        if kept is not None:
            self.counters.duplicates += 1
            self._send(kept[1], addr)
            return
        reply = self._answer(packet, nas, str(addr[0]))
        if reply is not None:
            self._replies[key] = (self._now(), reply)
            while len(self._replies) > 2 * self._max_sessions + 64:
                self._replies.popitem(last=False)
            self._send(reply, addr)

    def _answer(self, packet: Any, nas: Nas, address: str) -> bytes | None:
        eap = packets.eap_of(packet)
        if not eap:
            request = packets.read_access_request(packet, nas=nas.name, nas_address=address)
            if request.method == MAC_BYPASS:
                return self._finish(packet, Verdict(b"", self._authorize(request)))
            decision = refuse(request, "eap-not-offered")
            return self._finish(packet, Verdict(b"", decision, before_policy=True))
        states = packet.get(packets.STATE)
        if states:
            session = self._sessions.get(states[0])
            if session is None or session.nas_address != address:
                # the login is over or another NAS's: end it, so that the supplicant starts again at once
                self.counters.rejects += 1
                failure = bytes([_EAP_FAILURE, eap[1] if len(eap) > 1 else 0, 0, 4])
                return packets.write_reply(packet, packets.ACCESS_REJECT, eap=failure)
            state = states[0]
        else:
            if len(self._sessions) >= self._max_sessions:
                self.counters.sessions_refused += 1
                self._dropped(nas.name, (address,), "radius-overloaded", f"{len(self._sessions)} logins under way")
                return None
            state = secrets.token_bytes(16)
            request = packets.read_access_request(packet, nas=nas.name, nas_address=address)
            login = Login(
                self._front,
                request,
                self._authorize,
                owner_id_oid=self._owner_id_oid,
                fragment_bytes=self._fragment_bytes,
            )
            session = _Session(login, address, self._now())
            self._sessions[state] = session
        try:
            result = session.login.receive(eap)
        except EapOutOfTurn:
            self.counters.discarded += 1
            return None
        if isinstance(result, Challenge):
            return packets.write_reply(packet, packets.ACCESS_CHALLENGE, eap=result.eap, state=state)
        del self._sessions[state]
        return self._finish(packet, result)

    def _finish(self, packet: Any, verdict: Verdict) -> bytes:
        decision = verdict.decision
        if verdict.before_policy:
            self._on_failure(decision.request, decision)
        attributes = to_attributes(decision, reply_message=self._reply_message)
        if decision.verdict == "reject":
            self.counters.rejects += 1
            return packets.write_reply(packet, packets.ACCESS_REJECT, eap=verdict.eap, attributes=attributes)
        self.counters.accepts += 1
        return packets.write_reply(
            packet, packets.ACCESS_ACCEPT, eap=verdict.eap, attributes=attributes, msk=verdict.msk
        )

    def _dropped(self, nas: str, addr: Address, code: str, detail: str) -> None:
        """A packet gets no answer, but a word in the log; whoever keeps the log bounds how many."""
        request = AccessRequest(nas=nas, nas_address=str(addr[0]))
        self._on_failure(request, refuse(request, code, detail))

    def _send(self, octets: bytes, addr: Address) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(octets, addr)

    def sweep(self) -> None:
        """Forget what is too old; both tables are in order of age."""
        now = self._now()
        while self._sessions:
            state, session = next(iter(self._sessions.items()))
            if now - session.started < self._session_seconds:
                break
            del self._sessions[state]
            self.counters.timeouts += 1
            decision = session.login.give_up().decision
            self._on_failure(decision.request, decision)
        while self._replies:
            key, (kept, _) = next(iter(self._replies.items()))
            if now - kept < _REPLY_SECONDS:
                break
            del self._replies[key]

    def _sweep_again(self) -> None:
        self.sweep()
        delay = min(1.0, self._session_seconds / 4)
        self._timer = asyncio.get_running_loop().call_later(delay, self._sweep_again)
