"""A switch port and its supplicant in one, from pip packages only: pyrad for RADIUS, pyOpenSSL for EAP-TLS.

It is the standard client of demonstrations and tests, and it does not take the server's word for anything: reply
authenticators, the server's certificate and dNSName, the protected success of TLS 1.3 and the MS-MPPE keys against its
own MSK are all checked here.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from pyrad import packet as pyrad_packet

from radius import eap_tls, packets
from radius.eap_tls import Eap, Fragmenter, Reassembler, read_eap, split_type_data, write_eap
from radius.errors import RadiusError

TlsVersion = Literal["1.2", "1.3"]
Code = Literal["accept", "reject", "timeout", "broken"]
_VERSIONS: Final = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_MAX_ROUNDS: Final = 100
_KEPT: Final = (1, 11, 18, 25, 27, 29, 64, 65, 81)
_ROLE: Final = (14823, 1)  # Aruba-User-Role


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a login came to, as the supplicant and its port saw it.

    `code` is the RADIUS answer (`timeout`: none came; `broken`: one came that breaks the protocol, see `trouble`).
    `vlan` is Tunnel-Private-Group-Id, `role` Aruba-User-Role. `attributes` has the raw octets of the last answer by
    type. `trouble` says why the supplicant itself broke off.
    """

    code: Code
    vlan: str | None = None
    reply_message: str = ""
    msk_matches: bool = False
    tls_version: str = ""
    rounds: int = 0
    eap_code: int | None = None
    protected_success: bool = False
    duplicates_identical: bool | None = None
    trouble: str = ""
    attributes: dict[int, list[bytes]] = field(default_factory=dict)
    role: str = ""


async def authenticate(
    server: str,
    port: int,
    secret: bytes,
    *,
    identity: str,
    certificate_chain_pem: bytes,
    key_pem: bytes,
    ca_pem: bytes,
    server_name: str,
    tls_version: TlsVersion = "1.3",
    calling_station: str = "02-00-00-00-00-01",
    nas_port: str = "swp1",
    seconds: float = 10.0,
    fragment_bytes: int = 1000,
    message_authenticator: bool = True,
    send_twice: bool = False,
    stop_after: int = _MAX_ROUNDS,
    wire: Wire | None = None,
) -> Outcome:
    """Log in once; never longer than `seconds`. `wire`: an open way to the server in place of UDP, left open.

    `ca_pem` holds the anchors and `server_name` the dNSName that the RADIUS server must have. To misbehave:
    `message_authenticator=False`, `send_twice` (both answers are compared), `stop_after` so many answers.
    """
    peer = _Peer(identity, certificate_chain_pem, key_pem, ca_pem, server_name, tls_version, fragment_bytes)
    fixed = {30: b"02-00-00-00-00-FF", 31: calling_station.encode(), 32: b"lab-switch", 87: nas_port.encode()}
    own = None if wire is not None else await _Datagrams.open(server, port)
    wire = wire or own
    assert wire is not None
    identical: bool | None = None
    outcome = Outcome("timeout")
    try:
        async with asyncio.timeout(seconds):
            eap, state, outcome = peer.identity_response(), b"", Outcome("timeout")
            for rounds in range(1, stop_after + 1):
                request = _request(secret, eap, state, identity, fixed, message_authenticator)
                octets = request.RequestPacket()
                wire.send(octets)
                answer = await wire.answers.get()
                if send_twice:
                    wire.send(octets)
                    identical = (await wire.answers.get()) == answer and identical is not False
                reply = request.CreateReply(packet=answer)
                if not request.VerifyReply(reply, answer, enforce_ma=True):
                    return Outcome("broken", rounds=rounds, trouble="the reply is not authentic")
                outcome = peer.outcome(request, reply, rounds)
                if reply.code != packets.ACCESS_CHALLENGE:
                    break
                state = reply.get(packets.STATE, [b""])[0]
                eap = peer.answer(packets.eap_of(reply))
    except TimeoutError:
        outcome = replace(outcome, code="timeout", trouble=peer.trouble or "no answer in time")
    except RadiusError as broken:
        outcome = replace(outcome, code="broken", trouble=broken.detail)
    finally:
        if own is not None:
            own.transport.close()
    return replace(outcome, duplicates_identical=identical)


def authenticate_blocking(server: str, port: int, secret: bytes, **rest: Any) -> Outcome:
    """`authenticate` for callers without an event loop."""
    return asyncio.run(authenticate(server, port, secret, **rest))


class Wire(Protocol):
    """A way to a RADIUS server: what it answers stands in the queue, a packet each."""

    answers: asyncio.Queue[bytes]

    def send(self, octets: bytes) -> None: ...


class _Datagrams(asyncio.DatagramProtocol):
    transport: asyncio.DatagramTransport

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()

    @classmethod
    async def open(cls, server: str, port: int) -> _Datagrams:
        loop = asyncio.get_running_loop()
        transport, made = await loop.create_datagram_endpoint(cls, remote_addr=(server, port))
        made.transport = transport
        return made

    def send(self, octets: bytes) -> None:
        self.transport.sendto(octets)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.answers.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        pass  # nobody listens: the deadline says so


def _request(secret: bytes, eap: bytes, state: bytes, identity: str, fixed: dict[int, bytes], authentic: bool) -> Any:
    request = pyrad_packet.AuthPacket(
        secret=secret, id=secrets.randbelow(256), authenticator=secrets.token_bytes(16), dict=packets.dictionary()
    )
    if authentic:
        request.add_message_authenticator()
    request[1] = [identity.encode()[:253]]
    request[61] = [(15).to_bytes(4, "big")]
    for code, value in fixed.items():
        request[code] = [value]
    if state:
        request[packets.STATE] = [state]
    request[packets.EAP_MESSAGE] = [eap[at : at + 253] for at in range(0, len(eap), 253)]
    return request


class _Peer:
    """The EAP-TLS peer (RFC 5216, RFC 9190), without sockets."""

    def __init__(
        self,
        identity: str,
        certificate_chain_pem: bytes,
        key_pem: bytes,
        ca_pem: bytes,
        server_name: str,
        tls_version: TlsVersion,
        fragment_bytes: int,
    ) -> None:
        self._identity = identity
        self._fragment_bytes = fragment_bytes
        self._incoming = Reassembler()
        self._outgoing = Fragmenter(b"", fragment_bytes)
        self._complete = False
        self._protected = False
        self.trouble = ""
        self._tls = SSL.Connection(
            self._context(certificate_chain_pem, key_pem, ca_pem, server_name, tls_version), None
        )
        self._tls.set_connect_state()

    def _context(self, chain: bytes, key: bytes, ca: bytes, server_name: str, version: TlsVersion) -> SSL.Context:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(_VERSIONS[version])
        context.set_max_proto_version(_VERSIONS[version])
        certificates = x509.load_pem_x509_certificates(chain)
        context.use_certificate(certificates[0])
        for certificate in certificates[1:]:
            context.add_extra_chain_cert(certificate)
        private = load_pem_private_key(key, None)
        context.use_privatekey(private)  # type: ignore[arg-type]
        store = context.get_cert_store()
        if store is None:
            raise RuntimeError("a new TLS context has no certificate store")
        for anchor in x509.load_pem_x509_certificates(ca):
            store.add_cert(crypto.X509.from_cryptography(anchor))

        def check(_: SSL.Connection, certificate: crypto.X509, number: int, depth: int, ok: int) -> bool:
            if not ok:
                self.trouble = self.trouble or f"server certificate refused: OpenSSL error {number} at depth {depth}"
            elif depth == 0 and server_name.lower() not in _dns_names(certificate.to_cryptography()):
                self.trouble = f"server certificate refused: its name is not {server_name}"
                return False
            return bool(ok)

        context.set_verify(SSL.VERIFY_PEER, check)
        return context

    def identity_response(self) -> bytes:
        return write_eap(Eap(eap_tls.RESPONSE, 0, eap_tls.IDENTITY, self._identity.encode()))

    def answer(self, octets: bytes) -> bytes:
        """The EAP response to the server's request."""
        packet = read_eap(octets)
        if packet.code != eap_tls.REQUEST or packet.type != eap_tls.TLS:
            return write_eap(Eap(eap_tls.RESPONSE, packet.identifier, eap_tls.NAK, bytes([eap_tls.TLS])))
        flags, rest = split_type_data(packet.data)
        if flags & eap_tls.START:
            data = self._send(self._advance(b""))
        elif not rest and not flags and not self._incoming.is_open and not self._outgoing.is_done:
            data = self._outgoing.take()
        else:
            whole = self._incoming.add(packet.data)
            data = b"\x00" if whole is None else self._send(self._advance(whole))
        return write_eap(Eap(eap_tls.RESPONSE, packet.identifier, eap_tls.TLS, data))

    def _send(self, message: bytes) -> bytes:
        if not message:
            return b"\x00"
        self._outgoing = Fragmenter(message, self._fragment_bytes)
        return self._outgoing.take()

    def _advance(self, octets: bytes) -> bytes:
        if octets:
            self._tls.bio_write(octets)
        try:
            if not self._complete:
                self._tls.do_handshake()
                self._complete = True
            self._protected = self._tls.recv(16) == eap_tls.PROTECTED_SUCCESS
        except SSL.WantReadError:
            pass
        except SSL.Error as failure:
            self.trouble = self.trouble or f"TLS: {failure.args}"
        parts = []
        while True:
            try:
                parts.append(self._tls.bio_read(32_768))
            except SSL.WantReadError:
                return b"".join(parts)

    def outcome(self, request: Any, reply: Any, rounds: int) -> Outcome:
        """What this answer means; called for challenges too, so that a timeout can tell how far it came."""
        eap = packets.eap_of(reply)
        eap_code = eap[0] if eap else None
        vlan = reply.get(81)
        accepted = reply.code == packets.ACCESS_ACCEPT
        version = (self._tls.get_protocol_version_name() or "").removeprefix("TLSv") if self._complete else ""
        trouble = self.trouble
        if accepted and (eap_code != eap_tls.SUCCESS or not self._complete):
            trouble = trouble or "Access-Accept without a finished EAP-TLS login"
        if accepted and version == "1.3" and not self._protected:
            trouble = trouble or "Access-Accept without the protected success of RFC 9190"
        codes: dict[int, Code] = {packets.ACCESS_ACCEPT: "accept", packets.ACCESS_REJECT: "reject"}
        return Outcome(
            code="broken" if accepted and trouble else codes.get(reply.code, "timeout"),
            vlan=vlan[0].decode() if vlan else None,
            reply_message=b"".join(reply.get(18, [])).decode("utf-8", "replace"),
            msk_matches=accepted and self._complete and self._keys_match(request, reply, version),
            tls_version=version,
            rounds=rounds,
            eap_code=eap_code,
            protected_success=self._protected,
            trouble=trouble,
            attributes={code: list(reply.get(code)) for code in _KEPT if reply.get(code)},
            role=b"".join(reply.get(_ROLE, [])).decode("utf-8", "replace"),
        )

    def _keys_match(self, request: Any, reply: Any, version: str) -> bool:
        if version == "1.3":
            msk = self._tls.export_keying_material(b"EXPORTER_EAP_TLS_Key_Material", 128, b"\x0d")
        else:
            msk = self._tls.export_keying_material(b"client EAP encryption", 128)
        reply.request_authenticator = request.authenticator
        receive, send = reply.get((311, 17)), reply.get((311, 16))
        if not receive or not send:
            return False
        return bool(reply.SaltDecrypt(receive[0]) == msk[:32] and reply.SaltDecrypt(send[0]) == msk[32:64])


def _dns_names(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return set()
    return {name.lower() for name in names.get_values_for_type(x509.DNSName)}
