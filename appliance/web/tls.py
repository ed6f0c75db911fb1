"""TLS of the device port: asks for a client certificate, accepts any, and tells who it was (design D-3).

`TlsFront` is handed to asyncio as if it were an ssl.SSLContext: asyncio only calls `wrap_bio` and a few methods of what
that returns. Underneath is pyOpenSSL, which can accept a certificate of an unknown issuer and gives the exporter
(RFC 9266). A certificate is therefore *presented and proven*, not trusted: path, purpose and revocation are checked per
route by our code. TLS 1.2 and 1.3; a session is never resumed, so the certificate is there on every connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

_RECORD = 16_384
_READ = 65_536


class TlsFront:
    """The server's certificate and the rules of every new handshake; `rotate` changes the certificate in place."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, chain: Sequence[x509.Certificate]
    ) -> None:
        """`chain` are the intermediates sent after `certificate`, the root left out."""
        self.rotate(key, certificate, chain)

    def rotate(
        self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, chain: Sequence[x509.Certificate]
    ) -> None:
        """Use another certificate from the next handshake on; connections keep the one they began with."""
        self._context = _context(key, certificate, chain)
        self.certificate = certificate

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = True,
        server_hostname: str | None = None,
    ) -> TlsSide:
        """What asyncio calls for a new connection."""
        if not server_side:
            raise ValueError("this context is for servers; clients use the standard library's")
        return TlsSide(SSL.Connection(self._context, None), incoming, outgoing, self.certificate)


class Watched:
    """A context for one connection, which keeps hold of its TlsSide so that a refused handshake can be explained."""

    def __init__(self, front: TlsFront | ssl.SSLContext, on_refusal: Callable[[], object]) -> None:
        """`on_refusal` is called when TLS has failed and its alert is about to be sent."""
        self._front = front
        self._on_refusal = on_refusal
        self._side: Any = None

    def wrap_bio(self, *args: Any, **named: Any) -> Any:
        """What asyncio calls for the new connection."""
        self._side = self._front.wrap_bio(*args, **named)
        if isinstance(self._side, TlsSide):
            self._side.on_refusal = self._on_refusal
        return self._side

    @property
    def refusal(self) -> str:
        """The reason as the TLS library words it; empty if it gave none."""
        return self._side.refusal if isinstance(self._side, TlsSide) else ""


def _context(
    key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, chain: Sequence[x509.Certificate]
) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_certificate(certificate)
    for one in chain:
        context.add_extra_chain_cert(one)
    context.use_privatekey(key)
    context.check_privatekey()
    # No list of acceptable CAs is sent, so that picky clients offer their IDevID too.
    context.set_verify(SSL.VERIFY_PEER, _accept)
    context.set_verify_depth(8)
    return context


def _accept(connection: SSL.Connection, certificate: Any, error: int, depth: int, ok: int) -> bool:
    return True


class TlsSide:
    """One connection's TLS state between two memory buffers; the duck that asyncio takes for an ssl.SSLObject."""

    __slots__ = ("_connection", "_doomed", "_incoming", "_outgoing", "on_refusal", "server_certificate")

    def __init__(
        self,
        connection: SSL.Connection,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_certificate: x509.Certificate,
    ) -> None:
        self._connection = connection
        self._incoming = incoming
        self._outgoing = outgoing
        self._doomed: ssl.SSLError | None = None
        self.on_refusal: Callable[[], object] | None = None
        self.server_certificate = server_certificate
        connection.set_accept_state()

    # what asyncio calls

    def do_handshake(self) -> None:
        """Advance the handshake; SSLWantReadError until it is done, SSLError when it failed."""
        if self._doomed is not None:
            raise self._doomed
        self._feed()
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            self._drain()
            raise ssl.SSLWantReadError from None
        except SSL.Error as error:
            raise self._doom(error) from None
        self._drain()

    def read(self, n: int = _RECORD, buffer: memoryview | None = None) -> bytes | int:
        """Plain bytes, or how many went into `buffer`; empty at the peer's end."""
        if self._doomed is not None:
            raise self._doomed
        self._feed()
        try:
            if buffer is not None:
                return self._connection.recv_into(buffer, min(n, len(buffer)))
            return self._connection.recv(min(n, _RECORD))
        except SSL.WantReadError:  # an answer to a key update stays in the buffer until the next write
            raise ssl.SSLWantReadError from None
        except SSL.ZeroReturnError:
            return b"" if buffer is None else 0
        except SSL.Error as error:
            raise self._doom(error) from None

    def write(self, data: bytes | memoryview) -> int:
        """Encrypt all of `data`; one record at a time, or asyncio would copy the rest again and again."""
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                done += self._connection.send(view[done : done + _RECORD])
        except SSL.WantReadError:
            self._drain()
            if not done:
                raise ssl.SSLWantReadError from None
        except SSL.Error as error:
            raise _mapped(error) from error
        self._drain()
        return done

    def unwrap(self) -> None:
        """Say goodbye; the peer's own goodbye is not waited for."""
        try:
            self._connection.shutdown()
        except SSL.Error as error:
            raise _mapped(error) from error
        finally:
            self._drain()

    def pending(self) -> int:
        return self._connection.pending()

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any]:
        """Nothing here: asyncio asks for every connection, handlers use peer_certificates()."""
        return {}

    def cipher(self) -> tuple[str, str, int] | None:
        name = self._connection.get_cipher_name()
        if name is None:
            return None
        return name, self._connection.get_cipher_version() or "", self._connection.get_cipher_bits() or 0

    def compression(self) -> None:
        return None

    def version(self) -> str:
        return self._connection.get_protocol_version_name()

    @property
    def refusal(self) -> str:
        """Why the handshake or the connection failed, in words; empty while it has not."""
        return str(self._doomed.args[1]) if self._doomed is not None else ""

    # what Peer is made of

    def peer_certificates(self) -> tuple[x509.Certificate, ...]:
        """What the client sent, its own certificate first; ValueError if the bytes are no certificate to us."""
        own = self._connection.get_peer_certificate(as_cryptography=True)
        if own is None:
            return ()
        rest = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        return own, *(one for one in rest if one != own)

    def export(self, label: bytes, length: int) -> bytes:
        """Keying material of this session without a context (RFC 5705; on TLS 1.3 RFC 8446, section 7.5)."""
        return self._connection.export_keying_material(label, length)

    def _doom(self, error: SSL.Error) -> ssl.SSLWantReadError:
        """asyncio sends nothing after an error; asking for more lets our alert out, the next call raises the error."""
        self._drain()
        self._doomed = _mapped(error)
        if self.on_refusal is not None:
            self.on_refusal()
        return ssl.SSLWantReadError()

    def _feed(self) -> None:
        if self._incoming.pending:
            self._connection.bio_write(self._incoming.read())

    def _drain(self) -> None:
        try:
            while True:
                data = self._connection.bio_read(_READ)
                self._outgoing.write(data)
                if len(data) < _READ:
                    return
        except SSL.WantReadError:
            pass


def _mapped(error: SSL.Error) -> ssl.SSLError:
    """The same error in the standard library's class; asyncio logs a traceback for any other."""
    if isinstance(error, SSL.SysCallError):
        return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer closed the connection in the middle")
    return ssl.SSLError(ssl.SSL_ERROR_SSL, in_words(error))


def in_words(error: SSL.Error) -> str:
    """The last reason in OpenSSL's error queue, such as "no shared cipher"."""
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reasons = [entry[-1] for entry in queue if isinstance(entry, tuple) and entry and entry[-1]]
    return str(reasons[-1]) if reasons else "the handshake failed"


def https_context(certificate_file: Path, key_file: Path, passphrase: bytes) -> ssl.SSLContext:
    """The standard library's context for console and decision port: TLS 1.2 and 1.3, no client certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate_file, key_file, passphrase)
    return context


def demand_client_certificate(context: ssl.SSLContext, anchors: Sequence[x509.Certificate]) -> None:
    """Only clients of these issuing CAs get in: the decision port towards other hosts (D-4: never the root)."""
    pem = "".join(one.public_bytes(Encoding.PEM).decode() for one in anchors)
    context.load_verify_locations(cadata=pem)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = ssl.CERT_REQUIRED
