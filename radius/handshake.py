"""The TLS half of EAP-TLS: a pyOpenSSL handshake over memory buffers, and why it failed in words.

Settings that matter (spec: RFC 5216, RFC 9190): the only client anchors are the issuing CAs given (partial chain, so no
root is trusted and no sibling CA's certificates pass), a client certificate is demanded, no tickets, no session cache,
no renegotiation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from est.certificates import UNREADABLE
from radius.eap_tls import PROTECTED_SUCCESS
from radius.failures import VERIFY, alert_words
from radius.request import clean_text

TlsVersion = Literal["1.2", "1.3"]
_VERSIONS: Final = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_CIPHERS_1_2: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_READ_BYTES: Final = 32_768


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """The RADIUS server's certificate, the chain to send with it (without the root), and its key."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class TlsFailure:
    """Why a handshake failed: a reason code of the catalogue and one line of detail."""

    code: str
    detail: str


class TlsFront:
    """What all handshakes share: identity, anchors, versions."""

    def __init__(
        self,
        identity: ServerIdentity,
        anchors: Sequence[x509.Certificate],
        *,
        tls_min: TlsVersion = "1.2",
        tls_max: TlsVersion = "1.3",
    ) -> None:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(_VERSIONS[tls_min])
        context.set_max_proto_version(_VERSIONS[tls_max])
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_cipher_list(_CIPHERS_1_2)
        context.use_certificate(identity.certificate)
        for certificate in identity.chain:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(identity.key)
        context.check_privatekey()
        store = context.get_cert_store()
        if store is None:
            raise RuntimeError("a new TLS context has no certificate store")
        for anchor in anchors:
            store.add_cert(crypto.X509.from_cryptography(anchor))
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _on_certificate)
        self._context = context

    def session(self) -> TlsSession:
        """A handshake that waits for its first message."""
        return TlsSession(SSL.Connection(self._context, None))


class TlsSession:
    """One handshake. `failure` and `is_complete` say how it stands after each `feed`."""

    def __init__(self, connection: SSL.Connection) -> None:
        connection.set_accept_state()
        connection.set_app_data(self)
        self._connection = connection
        self.is_complete = False
        self.failure: TlsFailure | None = None
        self.presented: x509.Certificate | None = None
        self.verify_error: str = ""
        self.verify_number = 0

    def feed(self, octets: bytes) -> bytes:
        """Take a TLS message of the peer; the message to send back, perhaps empty, perhaps an alert."""
        self._connection.bio_write(octets)
        try:
            if self.is_complete:
                self._connection.recv(1)  # only an alert may come now
                self.failure = TlsFailure("tls-handshake-failed", "application data where an alert might come")
            else:
                self._connection.do_handshake()
                self.is_complete = True
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.failure = TlsFailure("tls-refused-by-supplicant", "the supplicant closed the TLS session")
        except SSL.Error as cause:
            self.failure = self._explain(cause)
        return self._output()

    def commit(self) -> bytes:
        """The message that ends a successful TLS 1.3 login: one octet 0x00 of application data (RFC 9190, 2.5)."""
        self._connection.send(PROTECTED_SUCCESS)
        return self._output()

    @property
    def version(self) -> str:
        """`1.2` or `1.3`; empty before it is agreed."""
        name = self._connection.get_protocol_version_name()
        return name.removeprefix("TLSv") if name in ("TLSv1.2", "TLSv1.3") else ""

    def certificate(self) -> x509.Certificate | None:
        """The peer's certificate, verified by the time the handshake is complete."""
        return self._connection.get_peer_certificate(as_cryptography=True)

    def msk(self) -> bytes:
        """The 64-octet master session key (RFC 5216, section 2.3 and RFC 9190, section 2.3)."""
        if self.version == "1.3":
            label, context = b"EXPORTER_EAP_TLS_Key_Material", b"\x0d"
            return self._connection.export_keying_material(label, 128, context)[:64]
        return self._connection.export_keying_material(b"client EAP encryption", 128)[:64]

    def _output(self) -> bytes:
        parts = []
        while True:
            try:
                parts.append(self._connection.bio_read(_READ_BYTES))
            except SSL.WantReadError:
                return b"".join(parts)

    def _explain(self, cause: SSL.Error) -> TlsFailure:
        reasons = [str(entry[-1]) for entry in cause.args[0]] if cause.args and isinstance(cause.args[0], list) else []
        words = clean_text("; ".join(reasons) or "unexpected end", 120)
        if self.verify_error:
            code, _ = VERIFY.get(self.verify_number, ("tls-handshake-failed", ""))
            return TlsFailure(code, self.verify_error)
        if any("did not return a certificate" in reason for reason in reasons):
            return TlsFailure("tls-certificate-missing", words)
        if any("alert" in reason for reason in reasons):
            return TlsFailure("tls-refused-by-supplicant", alert_words(words))
        return TlsFailure("tls-handshake-failed", words)


def _on_certificate(connection: SSL.Connection, certificate: crypto.X509, number: int, depth: int, ok: int) -> bool:
    session = connection.get_app_data()
    if isinstance(session, TlsSession):
        if depth == 0:
            session.presented = _parsed(certificate)
        if not ok and not session.verify_error:
            session.verify_number = number
            session.verify_error = f"{_verify_text(number)}: {_names(_parsed(certificate))}"
    return bool(ok)


def _parsed(certificate: crypto.X509) -> x509.Certificate | None:
    try:
        return certificate.to_cryptography()
    except UNREADABLE:  # OpenSSL reads more than cryptography does; only used to name the stranger in the log
        return None


def _names(certificate: x509.Certificate | None) -> str:
    """Subject and issuer of a certificate of unproven origin, fit to print."""
    try:
        if certificate is not None:
            subject, issuer = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
            return f"{clean_text(subject, 80)}, issued by {clean_text(issuer, 80)}"
    except ValueError:  # a name in an encoding that the library does not read
        pass
    return "a certificate that cannot be read"


def _verify_text(number: int) -> str:
    _, words = VERIFY.get(number, ("", f"refused by OpenSSL (error {number})"))
    return words
