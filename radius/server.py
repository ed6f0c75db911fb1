"""The embedded RADIUS server: EAP-TLS for small sites, the laboratory and tests (design decision D-11).

RADIUS side (RFC 2865, 3579, 5080, 5997): packets of unknown NAS or without a valid Message-Authenticator get no
answer; a retransmitted request gets the same octets again and costs no second decision; logins under way, their life
and the answers kept are bounded. The login itself is in radius.login. One event loop, no threads: measured, a thread
pool for the handshakes cost more than it gave. Several processes: radius.pool.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509

from radius import packets
from radius.attributes import Attribute, to_attributes
from radius.backlog import Backlog
from radius.clients import Nas, plain_address
from radius.decide import Decision, Verdict, refuse
from radius.duplicates import Duplicates, Key
from radius.errors import EapOutOfTurn, PacketInvalid
from radius.handshake import ServerIdentity, TlsFront, TlsVersion
from radius.login import Ask, Challenge, Login
from radius.login import Verdict as LoginVerdict
from radius.packets import Request
from radius.request import MAC_BYPASS, AccessRequest
from radius.wire import MAX_BYTES

__all__ = ["Address", "Authorize", "Counters", "Nas", "RadiusServer", "write_outcome"]

Address = tuple[Any, ...]
Authorize = Callable[[AccessRequest], Decision]
Later = Callable[[AccessRequest, Callable[[Decision], None]], None]
"""Takes a request and calls back with the decision, once, now or later."""
STATE_BYTES: Final = 16
_AT_ONCE: Final = 64
_EAP_FAILURE: Final = 4


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
    elsewhere: int = 0
    dropped_new: int = 0
    """Requests for a new login that nobody had time to look at."""


@dataclass(slots=True)
class _Session:
    login: Login
    nas_address: str
    started: float


def _no_matter(*_: object, **__: object) -> None:
    pass


class RadiusServer(asyncio.DatagramProtocol):
    """EAP-TLS over RADIUS on one UDP port.

    `nas` maps a source address to its Nas or None; `anchors` are the issuing CAs whose certificates may log in;
    `authorize` is asked once per verified login, and for a port that asks by MAC address, and must not block (or
    `later`, which may answer later); `on_failure` hears of logins that failed before it and of packets that got no
    answer, and must bound what it keeps; `on_accept` of every Access-Accept before it goes out, `on_secret` which
    secret of a NAS with two was used. `owner_id_oid` is the dotted OID of the OwnerId extension.

    Of several servers at one port each has a `number`, which begins the State of its logins; a packet with another's is
    handed to `elsewhere`.
    """

    def __init__(
        self,
        *,
        identity: ServerIdentity,
        anchors: Sequence[x509.Certificate],
        nas: Callable[[str], Nas | None],
        on_failure: Callable[[AccessRequest, Decision], None],
        owner_id_oid: str,
        authorize: Authorize | None = None,
        later: Later | None = None,
        on_accept: Callable[[Decision], None] = _no_matter,
        on_secret: Callable[[str, str, bool], None] = _no_matter,
        tls_min: TlsVersion = "1.2",
        tls_max: TlsVersion = "1.3",
        session_seconds: float = 30.0,
        max_sessions: int = 4096,
        fragment_bytes: int = 1000,
        reply_message: bool = True,
        number: int | None = None,
        elsewhere: Callable[[int, bytes, Address], bool] = lambda number, data, addr: False,
    ) -> None:
        self._anchors = tuple(anchors)
        self._versions = (tls_min, tls_max)
        self._nas = nas
        self._later = later or _at_once(authorize)
        self._on_failure = on_failure
        self._on_accept = on_accept
        self._on_secret = on_secret
        self._owner_id_oid = owner_id_oid
        self._session_seconds = session_seconds
        self._max_sessions = max_sessions
        self._fragment_bytes = fragment_bytes
        self._reply_message = reply_message
        self._number = number
        self._elsewhere = elsewhere
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._duplicates = Duplicates(2 * max_sessions + 64)
        self._transport: asyncio.DatagramTransport | None = None
        self._socket: socket.socket | None = None
        self._backlog = Backlog()
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._now: Callable[[], float] = lambda: 0.0
        self.counters = Counters()
        self.use_identity(identity)

    def use_anchors(self, anchors: Sequence[x509.Certificate]) -> None:
        """Take certificates of these issuing CAs in new logins."""
        if tuple(anchors) != self._anchors:
            self._anchors = tuple(anchors)
            self.use_identity(self._identity)

    def use_identity(self, identity: ServerIdentity) -> None:
        """Serve new logins with this certificate; those under way finish with the one they began with."""
        self._identity = identity
        tls_min, tls_max = self._versions
        self._front = TlsFront(identity, self._anchors, tls_min=tls_min, tls_max=tls_max)

    async def start(self, host: str = "127.0.0.1", port: int = 0, *, shared: bool = False) -> int:
        """Listen; the port chosen (port 0 = any). `shared` lets other processes of this user listen there too.

        Raises OSError if the address is taken.
        """
        loop = asyncio.get_running_loop()
        self._now = loop.time
        (family, *_, address), *_ = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        self._socket = _bind(family, address, shared=shared)
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=self._socket)
        self._sweep_again()
        chosen: int = self._transport.get_extra_info("sockname")[1]
        return chosen

    async def close(self) -> None:
        """Stop listening and forget the logins under way."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()
            self._socket = None
        self._sessions.clear()
        self._duplicates.clear()

    @property
    def sessions(self) -> int:
        """Logins under way."""
        return len(self._sessions)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """One RADIUS packet (called by asyncio), and whatever waits behind it."""
        now = self._now()
        self._put(data, addr, now)
        if self._socket is not None:
            for _ in range(_AT_ONCE):
                try:
                    self._put(*self._socket.recvfrom(MAX_BYTES + 1), now)
                except OSError:  # nothing there, or an ICMP error of somebody who is gone
                    break
        self._work_off()

    def _put(self, data: bytes, addr: Address, now: float) -> None:
        nas = self._nas(plain_address(str(addr[0])))
        if nas is None:  # a stranger takes nobody's place
            self.receive(data, addr)
        else:
            self._backlog.put(data, addr, now, nas.name)

    def _work_off(self) -> None:
        """Everything of logins under way, then one that begins; the loop looks for more before the next."""
        backlog = self._backlog
        while (packet := backlog.going_on()) is not None:
            self.receive(*packet)
        if (packet := backlog.new(self._now())) is not None:
            self.receive(*packet)
        if backlog.dropped != self.counters.dropped_new:
            more, self.counters.dropped_new = backlog.dropped - self.counters.dropped_new, backlog.dropped
            self._dropped("", "", "radius-overloaded", f"{more} that would have begun a login")
        if backlog and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_due = False
        self._work_off()

    def receive(self, data: bytes, addr: Address, *, handed_over: bool = False) -> None:
        """One RADIUS packet; one that was handed over by another server is not handed on again."""
        self.counters.requests += 1
        source = plain_address(str(addr[0]))
        nas = self._nas(source)
        if nas is None:
            self.counters.unknown_nas += 1
            self._dropped("", source, "nas-unknown", f"a packet of {len(data)} bytes")
            return
        try:
            request = packets.read_request(data, *nas.secrets)
        except PacketInvalid as refusal:
            self.counters.invalid += 1
            self._dropped(nas.name, source, str(refusal.fields.get("code", "radius-malformed")), refusal.detail)
            return
        if nas.old_secret:
            self._on_secret(nas.name, source, request.secret == nas.old_secret)
        if request.code == packets.STATUS_SERVER:  # RFC 5997: answered at once, never cached
            self._send(packets.write_reply(request, packets.ACCESS_ACCEPT), addr)
            return
        if self._number is not None and not handed_over and (states := request.get(packets.STATE)):
            owner = states[0][0] if states[0] else self._number
            if owner != self._number and self._elsewhere(owner, data, addr):
                self.counters.elsewhere += 1
                return
        key = (addr, request.id)
        known = self._duplicates.look(key, request.authenticator, self._now())
        if known == "underway":
            self.counters.duplicates += 1
        elif known == "new":
            self._consider(request, nas, source, addr, key)
        else:
            self.counters.duplicates += 1
            self._send(known, addr)

    def _consider(self, request: Request, nas: Nas, source: str, addr: Address, key: Key) -> None:
        eap = packets.eap_of(request)
        if not eap:
            asked = packets.read_access_request(request, nas=nas.name, nas_address=source)
            if asked.method == MAC_BYPASS:
                self._later(
                    asked,
                    lambda decision: self._reply(
                        request, addr, key, self._finish(request, LoginVerdict(b"", decision))
                    ),
                )
                return
            verdict = LoginVerdict(b"", refuse(asked, "eap-not-offered"), before_policy=True)
            self._reply(request, addr, key, self._finish(request, verdict))
            return
        states = request.get(packets.STATE)
        if states:
            session = self._sessions.get(states[0])
            if session is None or session.nas_address != source:
                # the login is over or another NAS's: end it, so that the supplicant starts again at once
                asked = packets.read_access_request(request, nas=nas.name, nas_address=source)
                failure = bytes([_EAP_FAILURE, eap[1] if len(eap) > 1 else 0, 0, 4])
                why = "" if session is None else "the login of another NAS"
                verdict = LoginVerdict(failure, refuse(asked, "eap-login-unknown", why), before_policy=True)
                self._reply(request, addr, key, self._finish(request, verdict))
                return
            state = states[0]
        else:
            if len(self._sessions) >= self._max_sessions:
                self.counters.sessions_refused += 1
                self._duplicates.forget(key, request.authenticator)
                self._dropped(nas.name, source, "radius-overloaded", f"{len(self._sessions)} logins under way")
                return
            state = self._new_state()
            asked = packets.read_access_request(request, nas=nas.name, nas_address=source)
            login = Login(self._front, asked, owner_id_oid=self._owner_id_oid, fragment_bytes=self._fragment_bytes)
            session = _Session(login, source, self._now())
            self._sessions[state] = session
        try:
            result = session.login.receive(eap)
        except EapOutOfTurn:
            self.counters.discarded += 1
            self._duplicates.forget(key, request.authenticator)
            return
        if isinstance(result, Ask):
            login = session.login

            def decided(decision: Decision) -> None:
                if self._sessions.get(state) is session:  # else it ran out of time meanwhile
                    self._reply(request, addr, key, self._conclude(request, state, login.decided(decision)))

            self._later(result.request, decided)
            return
        self._reply(request, addr, key, self._conclude(request, state, result))

    def _new_state(self) -> bytes:
        if self._number is None:
            return secrets.token_bytes(STATE_BYTES)
        return bytes((self._number,)) + secrets.token_bytes(STATE_BYTES)

    def _conclude(self, request: Request, state: bytes, result: Challenge | LoginVerdict) -> bytes:
        if isinstance(result, Challenge):
            return packets.write_reply(request, packets.ACCESS_CHALLENGE, eap=result.eap, state=state)
        del self._sessions[state]
        return self._finish(request, result)

    def _finish(self, request: Request, result: LoginVerdict) -> bytes:
        decision = result.decision
        if result.before_policy:
            self._on_failure(decision.request, decision)
        attributes = to_attributes(decision, reply_message=self._reply_message)
        if decision.verdict == "reject":
            self.counters.rejects += 1
        else:
            self.counters.accepts += 1
            self._on_accept(decision)
        return write_outcome(request, decision.verdict, attributes, eap=result.eap, msk=result.msk)

    def _reply(self, request: Request, addr: Address, key: Key, reply: bytes) -> None:
        self._duplicates.answered(key, request.authenticator, reply, self._now())
        self._send(reply, addr)

    def _dropped(self, nas: str, source: str, code: str, detail: str) -> None:
        """A packet gets no answer, but a word in the log; whoever keeps the log bounds how many."""
        request = AccessRequest(nas=nas, nas_address=source)
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
        self._duplicates.sweep(now)

    def _sweep_again(self) -> None:
        self.sweep()
        delay = min(1.0, self._session_seconds / 4)
        self._timer = asyncio.get_running_loop().call_later(delay, self._sweep_again)


def write_outcome(
    request: Request, verdict: Verdict, attributes: Iterable[Attribute], *, eap: bytes = b"", msk: bytes = b""
) -> bytes:
    """The Access-Accept or Access-Reject that says what was decided: the one place where it becomes a packet."""
    if verdict == "reject":
        return packets.write_reply(request, packets.ACCESS_REJECT, eap=eap, attributes=attributes)
    return packets.write_reply(request, packets.ACCESS_ACCEPT, eap=eap, attributes=attributes, msk=msk)


def _bind(family: int, address: Any, *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def _at_once(authorize: Authorize | None) -> Later:
    if authorize is None:
        raise ValueError("a server needs somebody who decides")

    def later(request: AccessRequest, answer: Callable[[Decision], None]) -> None:
        answer(authorize(request))

    return later
