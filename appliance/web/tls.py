"""TLS of a port: what every new connection is greeted with, and one connection's TLS state between two buffers.

The device port asks for a client certificate, accepts any, and tells who it was (design D-3): `TlsFront` is pyOpenSSL,
which can accept a certificate of an unknown issuer and gives the exporter (RFC 9266). A certificate is therefore
*presented and proven*, not trusted: path, purpose and revocation are checked per route by our code. TLS 1.2 and 1.3; a
session is never resumed, so the certificate is there on every connection. The other ports take the standard library's
context. `side_of` makes a connection's state from either; both sides are moved by the same few calls, and neither
knows a socket: that is tls_transport.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

EXPORTER_LABEL = b"EXPORTER-Channel-Binding"
EXPORTER_BYTES = 32
"""RFC 9266, section 2."""
_RECORD = 16_384
_HEADER = 5
"""Bytes before a record; the last two say how long it is (RFC 8446, section 5.1)."""
_DATA = b"\x17"
_FLIGHT = 8_192
"""Bytes that a handshake or an alert has to say at once, as a rule; more is taken in turns."""
_OVERHEAD = 1_024
"""Bytes that TLS adds to four full records, and some to spare."""
_OWN_ONLY = -2
"""A chain depth (-1 would be the library's own) with which it looks at the client's own certificate and no further."""


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

    def side(self) -> TlsSide:
        """The server's side of a new connection."""
        return TlsSide(SSL.Connection(self._context, None), self.certificate)


def side_of(tls: TlsFront | ssl.SSLContext) -> TlsSide | StandardSide:
    """The server's side of a new connection under this front or context."""
    return tls.side() if isinstance(tls, TlsFront) else StandardSide(tls)


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
    SSL._lib.SSL_CTX_set_verify(context._context, SSL.VERIFY_PEER, _accept)  # type: ignore[attr-defined]
    # Whatever it found would be accepted, and the path is looked for per route; so it verifies no signatures of the
    # chain, and a stranger's keys of any size cost nothing here.
    context.set_verify_depth(_OWN_ONLY)
    return context


@SSL._ffi.callback("int (*)(int, X509_STORE_CTX *)")  # type: ignore[attr-defined, untyped-decorator]
def _accept(ok: int, store: Any) -> int:
    """Called four times in a handshake; pyOpenSSL would each time make objects of what nobody looks at here."""
    return 1


class TlsSide:
    """pyOpenSSL's side: bytes of the peer go in by `feed`, bytes for the peer come out by `take`.

    Whatever fails raises ssl.SSLError with words in it; the alert about it can then still be taken.
    """

    __slots__ = ("_connection", "_has_unread", "_is_one_record", "_missing", "server_certificate", "version")

    def __init__(self, connection: SSL.Connection, server_certificate: x509.Certificate) -> None:
        self._connection = connection
        self._has_unread = self._is_one_record = False
        self._missing = 0
        """Bytes until the record that is under way has ended; below 0 when that is not known any more."""
        self.server_certificate: x509.Certificate | None = server_certificate
        self.version = ""
        connection.set_accept_state()

    def feed(self, data: bytes) -> None:
        """Take in what the peer sent."""
        begin, end, size = self._missing, self._missing, len(data)
        if end >= 0:
            while end + _HEADER <= size:
                begin, end = end, end + _HEADER + int.from_bytes(data[end + 3 : end + _HEADER], "big")
            self._missing = end - size  # below 0: a header was cut, and nobody counts from there on
        self._is_one_record = begin == 0 and end == size and data[:1] == _DATA and not self._has_unread
        self._has_unread = True
        self._connection.bio_write(data)

    def take(self, expected: int = _FLIGHT) -> bytes:
        """What is to be sent to the peer, hardly more than `expected` bytes; empty if there is nothing."""
        data = b""
        try:
            while True:
                more = self._connection.bio_read(expected)
                data = data + more if data else more
                if len(more) < expected:
                    return data
        except SSL.WantReadError:
            return data

    def handshake(self) -> bool:
        """Advance the handshake; True when it is done, and `version` is known."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            raise _mapped(error) from None
        self.version = self._connection.get_protocol_version_name()
        return True

    def read(self) -> bytes | None:
        """The next plain bytes: None when more must be fed first, empty at the peer's close_notify."""
        if not self._has_unread:  # cheaper to know than to be told
            return None
        try:
            data = self._connection.recv(_RECORD)
        except SSL.WantReadError:
            self._has_unread = False
            return None
        except SSL.ZeroReturnError:
            return b""
        except SSL.Error as error:
            raise _mapped(error) from None
        if self._is_one_record and len(data) < _RECORD:
            self._has_unread = False
        return data

    def seal(self, data: bytes | bytearray | memoryview) -> bytes:
        """All of it as the peer is to be sent it; pyOpenSSL's partial writes take one record at a time."""
        done, size = 0, len(data)
        try:
            while done < size:
                done += self._connection.send(data if size <= _RECORD else data[done : done + _RECORD])
        except SSL.Error as error:
            raise _mapped(error) from None
        return self.take(size + _OVERHEAD)

    def goodbye(self) -> None:
        """close_notify; the peer's own is not waited for."""
        try:
            self._connection.shutdown()
        except SSL.Error as error:
            raise _mapped(error) from None

    def peer_certificate(self) -> bytes | None:
        """The client's own certificate as DER, if it has shown one."""
        own = self._connection.get_peer_certificate()
        return None if own is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, own)

    def peer_chain(self) -> list[x509.Certificate]:
        """What came with the client's certificate, which may stand in it; ValueError for what we cannot read."""
        return self._connection.get_peer_cert_chain(as_cryptography=True) or []

    def bindings(self) -> tuple[bytes, ...]:
        """This session's channel bindings: tls-exporter, on TLS 1.2 also tls-unique (RFC 9266; RFC 5929, section 3).

        TLS 1.2 without extended master secret has none that means anything (RFC 9266, section 4.2). There the exporter
        comes with an empty context and without one, because peers differ in which they take for "zero-length"; on TLS
        1.3 they are the same. Nothing is resumed or renegotiated here, so the first Finished is the client's.
        """
        if self.version == "TLSv1.3":
            return (self._connection.export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES),)
        if self.version != "TLSv1.2" or not has_extended_master_secret(self._connection):
            return ()
        exported = (
            self._connection.export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES, context) for context in (b"", None)
        )
        unique = self._connection.get_peer_finished()
        return (*exported, unique) if unique else tuple(exported)


class StandardSide:
    """The standard library's side, with the same verbs; it verifies client certificates itself or asks for none."""

    __slots__ = ("_incoming", "_object", "_outgoing", "version")

    server_certificate: x509.Certificate | None = None
    bindings: Callable[[], tuple[bytes, ...]] | None = None

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.version = ""

    def feed(self, data: bytes) -> None:
        """Take in what the peer sent."""
        self._incoming.write(data)

    def take(self) -> bytes:
        """What is to be sent to the peer; empty if there is nothing."""
        return self._outgoing.read()

    def handshake(self) -> bool:
        """Advance the handshake; True when it is done, and `version` is known."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.version = self._object.version() or ""
        return True

    def read(self) -> bytes | None:
        """The next plain bytes: None when more must be fed first, empty at the peer's close_notify."""
        if not self._incoming.pending and not self._object.pending():  # cheaper to see than to be told
            return None
        try:
            return self._object.read(_RECORD)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""

    def seal(self, data: bytes | bytearray | memoryview) -> bytes:
        """All of it as the peer is to be sent it."""
        done, size = self._object.write(data), len(data)
        while done < size:
            done += self._object.write(data[done:])
        return self._outgoing.read()

    def goodbye(self) -> None:
        """close_notify; the peer's own is not waited for."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._object.unwrap()

    def peer_certificate(self) -> bytes | None:
        """The client's certificate as DER, verified by the context."""
        return self._object.getpeercert(True)

    def peer_chain(self) -> list[x509.Certificate]:
        """Nothing: the context has verified it."""
        return []


def has_extended_master_secret(connection: SSL.Connection) -> bool:
    """Whether the session's keys are bound to its handshake (RFC 7627); pyOpenSSL has no public name for it."""
    return bool(SSL._lib.SSL_get_extms_support(connection._ssl) == 1)  # type: ignore[attr-defined]


def _mapped(error: SSL.Error) -> ssl.SSLError:
    """The same error in the standard library's class, so that both sides fail alike."""
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
