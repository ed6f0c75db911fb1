"""The client's side of TLS between an asyncio socket and a stream: pyOpenSSL, because it tells the channel binding.

The standard library has no exporter (RFC 9266), which the CSR carries (RFC 7030, section 3.5). What fails raises the
standard library's errors, so that nobody else sees which library it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from appliance.proxy.state import ClientFiles
from appliance.web.tls import EXPORTER_BYTES, EXPORTER_LABEL, has_extended_master_secret, in_words
from est.certificates import UNREADABLE
from est.errors import EstError
from est.keys import spki_sha256

_CHUNK = 65_536
_RECORD = 16_384
_IGNORE_DATES = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which pyOpenSSL does not name


class ClientSettings:
    """What one connection is opened with; `anchors` None = whoever answers is taken, and judged later."""

    def __init__(
        self,
        client: ClientFiles | None = None,
        anchors: Sequence[x509.Certificate] | None = None,
        *,
        trust_clock: bool = True,
        pin: bytes | None = None,
    ) -> None:
        """With `pin`, the SHA-256 of a SubjectPublicKeyInfo, the server is whoever has that key, and nobody else.

        Raises ssl.SSLError and OSError where the client's own files do not load."""
        self.refusal = ""
        context = self.context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        if pin is not None:
            self._pin = pin
            context.set_verify(SSL.VERIFY_PEER, self._compare)
        elif anchors is None:
            context.set_verify(SSL.VERIFY_NONE, lambda *_: True)
        else:
            store = context.get_cert_store()
            assert store is not None
            for one in anchors:
                store.add_cert(crypto.X509.from_cryptography(one))
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN | (0 if trust_clock else _IGNORE_DATES))
            context.set_verify(SSL.VERIFY_PEER, self._judge)
        if client is not None:
            try:
                context.use_certificate_chain_file(str(client.certificate))
                context.use_privatekey(_private_key(client))
                context.check_privatekey()
            except SSL.Error as error:
                raise _mapped(error) from None

    def _judge(self, connection: SSL.Connection, certificate: Any, error: int, depth: int, ok: int) -> bool:
        if not ok and not self.refusal:
            words = SSL._ffi.string(SSL._lib.X509_verify_cert_error_string(error))  # type: ignore[attr-defined]
            self.refusal = words.decode()
        return bool(ok)

    def _compare(self, connection: SSL.Connection, certificate: Any, error: int, depth: int, ok: int) -> bool:
        """Only the server's own certificate is looked at; an unreadable key is not the pinned one."""
        if depth:
            return True
        try:
            is_pinned = spki_sha256(certificate.to_cryptography()) == self._pin
        except (TypeError, EstError, *UNREADABLE):
            is_pinned = False
        if not is_pinned:
            self.refusal = "another key than the pinned one"
        return is_pinned


class TlsStream:
    """One session. `reader` has what the peer says; the methods are those of asyncio.StreamWriter that are used."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        settings: ClientSettings,
        *,
        server_name: str | None,
        limit: int,
    ) -> None:
        self.reader = asyncio.StreamReader(limit=limit)
        self._raw_reader = reader
        self._raw = writer
        self._settings = settings
        self._session = SSL.Connection(settings.context, None)
        if server_name:
            self._session.set_tlsext_host_name(server_name.encode())
        self._session.set_connect_state()
        self._pump: asyncio.Task[None] | None = None
        self._closing = False

    async def handshake(self) -> None:
        """Raises ssl.SSLError, ssl.SSLCertVerificationError where the server's chain is refused, OSError."""
        while True:
            try:
                self._session.do_handshake()
            except SSL.WantReadError:
                self._flush()
                data = await self._raw_reader.read(_CHUNK)
                if not data:
                    raise ConnectionResetError("the peer closed in the middle of the handshake") from None
                self._session.bio_write(data)
            except SSL.Error as error:
                self._flush()
                if self._settings.refusal:
                    refused = ssl.SSLCertVerificationError(1, self._settings.refusal)
                    refused.verify_message = self._settings.refusal
                    raise refused from None
                raise _mapped(error) from None
            else:
                self._flush()
                self._pump = asyncio.create_task(self._read_on(), name="tls-stream")
                return

    def chain(self) -> tuple[x509.Certificate, ...]:
        """What the server sent, its own certificate first, unverified; ValueError for what is no certificate."""
        try:
            return tuple(self._session.get_peer_cert_chain(as_cryptography=True) or ())
        except UNREADABLE as error:
            raise ValueError("the server's chain cannot be read") from error

    def binding(self) -> bytes | None:
        """tls-exporter (RFC 9266); None on TLS 1.2 without extended master secret."""
        if self._session.get_protocol_version_name() == "TLSv1.2" and not has_extended_master_secret(self._session):
            return None
        return self._session.export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES, b"")

    @property
    def transport(self) -> asyncio.WriteTransport:
        return self._raw.transport

    def write(self, data: bytes) -> None:
        view, done = memoryview(data), 0
        try:
            while done < len(view):
                done += self._session.send(view[done : done + _RECORD])
        except SSL.Error as error:
            raise _mapped(error) from None
        self._flush()

    async def drain(self) -> None:
        await self._raw.drain()

    def is_closing(self) -> bool:
        return self._closing or self._raw.is_closing()

    def close(self) -> None:
        """close_notify; then nothing more goes out."""
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(SSL.Error):
            self._session.shutdown()
        self._flush()
        if self._pump is None:
            self._raw.close()
            return
        with contextlib.suppress(OSError):
            self._raw.write_eof()

    async def wait_closed(self) -> None:
        """Until the peer has closed as well: closing on what it still says would reset the connection under it."""
        if self._pump is not None:
            await asyncio.wait([self._pump])
        self._raw.close()
        await self._raw.wait_closed()

    def _flush(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            while data := self._session.bio_read(_CHUNK):
                self._raw.write(data)

    async def _read_on(self) -> None:
        """What the socket brings, into `reader`; whatever ends it is what the next read says."""
        try:
            while True:
                with contextlib.suppress(SSL.WantReadError):
                    while data := self._session.recv(_RECORD):
                        self.reader.feed_data(data)
                self._flush()
                encrypted = await self._raw_reader.read(_CHUNK)
                if not encrypted:
                    break
                self._session.bio_write(encrypted)
        except SSL.ZeroReturnError:
            pass
        except SSL.Error as error:
            self.reader.set_exception(_mapped(error))
        except OSError as error:
            self.reader.set_exception(error)
        self.reader.feed_eof()


def _private_key(client: ClientFiles) -> Any:
    try:
        return load_pem_private_key(client.key.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as cause:  # TypeError: it is encrypted
        raise ssl.SSLError(ssl.SSL_ERROR_SSL, "the key cannot be read") from cause


def _mapped(error: SSL.Error) -> ssl.SSLError:
    return ssl.SSLError(ssl.SSL_ERROR_SSL, in_words(error))
