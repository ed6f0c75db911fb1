"""One EAP-TLS login of the embedded server: framing, handshake and decision in their order, without sockets.

    identity -> start -> TLS flights -> chain verified -> authorize -> Success or Failure

The login stops with `Ask` when it wants a decision and goes on with `decided`, so whoever decides may take its time,
or live in another process. The decision is asked for once, after OpenSSL has verified the chain to the agents' issuing
CA. On TLS 1.3 that is before the commitment octet of RFC 9190, section 2.5 is sent, on TLS 1.2 after the peer has
acknowledged our Finished. A failure before that becomes a Decision as well, so that it is logged like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509

from est.chains import aki_of, extensions_of
from est.errors import EstError
from radius.decide import Decision, refuse
from radius.eap_tls import Acknowledged, Answer, Conversation, Flight, Identity, MethodRefused, Received
from radius.errors import EapMalformed, EapOutOfTurn, EapTooLarge, HookMalformed
from radius.handshake import TlsFront, TlsSession
from radius.request import AccessRequest, CredentialRef, clean_text, read_owner_id

_MAX_SERIAL: Final = 1 << 160  # RFC 5280, section 4.1.2.2: at most 20 octets
_MAX_AKI: Final = 64
_MAX_SAN: Final = 1024  # one of ours is far shorter; what is cut is compared and does not fit


@dataclass(frozen=True, slots=True)
class Challenge:
    """Send `eap` in an Access-Challenge."""

    eap: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """Decide on `request` and tell Login.decided; until then nothing of this peer is taken."""

    request: AccessRequest


@dataclass(frozen=True, slots=True)
class Verdict:
    """The login is over: `eap` is Success or Failure, `msk` is empty on a reject.

    `before_policy` tells a failure that the decision function has not seen.
    """

    eap: bytes
    decision: Decision
    msk: bytes = b""
    before_policy: bool = False


class Login:
    """The state of one login; `receive` takes the peer's EAP packets in turn."""

    def __init__(
        self,
        front: TlsFront,
        request: AccessRequest,
        *,
        owner_id_oid: str,
        fragment_bytes: int,
    ) -> None:
        self._front = front
        self._request = request
        self._owner_id_oid = owner_id_oid
        self._eap = Conversation(fragment_bytes=fragment_bytes)
        self._tls: TlsSession | None = None
        self._decision: Decision | None = None
        self._asking = False
        self._output = b""
        self._failed: Decision | None = None

    def receive(self, octets: bytes) -> Challenge | Ask | Verdict:
        """What to do with the peer's EAP packet. Raises EapOutOfTurn for one that is to be discarded silently."""
        if self._asking:
            raise EapOutOfTurn("a decision is awaited")
        try:
            received = self._eap.receive(octets)
        except (EapMalformed, EapTooLarge) as broken:  # the peer's fault ends its login; discards pass through
            return self._fail(self._failed or refuse(self._request, "eap-malformed", broken.detail))
        return self._go_on(received)

    def _go_on(self, received: Received) -> Challenge | Ask | Verdict:
        match received:
            case Identity(name):
                text = clean_text(name.decode("utf-8", "replace"))
                self._request = self._request._replace(user_name=text or self._request.user_name)
                return Challenge(self._eap.start())
            case MethodRefused(wanted):
                words = ", ".join(map(str, wanted)) or "none"
                return self._fail(refuse(self._request, "eap-method-refused", f"offers EAP methods {words}"))
            case Answer(packet):
                return Challenge(packet)
            case Flight(message):
                return self._feed(message)
            case Acknowledged():
                return self._acknowledged()

    def decided(self, decision: Decision) -> Challenge | Verdict:
        """Go on with the answer to Ask."""
        if not self._asking or self._tls is None:
            raise RuntimeError("no decision was asked for")
        self._asking, self._decision = False, decision
        if decision.verdict == "reject":
            return Verdict(self._eap.failure(), decision)
        if self._tls.version == "1.3":
            return Challenge(self._eap.send(self._output + self._tls.commit()))
        return Verdict(self._eap.success(), decision, self._tls.msk())

    def _ask(self) -> Ask:
        self._asking = True
        return Ask(self._request)

    def give_up(self) -> Verdict:
        """The login ran out of time."""
        return self._fail(self._failed or refuse(self._request, "eap-timeout"))

    def _feed(self, message: bytes) -> Challenge | Ask | Verdict:
        if self._failed is not None:
            return self._fail(self._failed)
        if self._tls is None:
            self._tls = self._front.session()
        tls = self._tls
        was_complete = tls.is_complete
        output = tls.feed(message)
        self._request = self._request._replace(tls_version=tls.version)
        if tls.failure is not None:
            self._name_credential(tls.presented)
            self._failed = refuse(self._request._replace(defect=""), tls.failure.code, tls.failure.detail)
            # the alert goes out first, so that the supplicant can say why (RFC 5216, section 2.1.3)
            return Challenge(self._eap.send(output)) if output else self._fail(self._failed)
        if not tls.is_complete:
            if not output:
                return self._fail(refuse(self._request, "eap-malformed", "an incomplete TLS message"))
            return Challenge(self._eap.send(output))
        if was_complete:
            return self._fail(refuse(self._request, "eap-malformed", "more TLS after the handshake"))
        self._name_credential(tls.certificate())
        if tls.version == "1.3":
            self._output = output
            return self._ask()
        return Challenge(self._eap.send(output))

    def _acknowledged(self) -> Challenge | Ask | Verdict:
        if self._failed is not None:
            return self._fail(self._failed)
        if self._tls is None or not self._tls.is_complete:
            return self._fail(refuse(self._request, "eap-malformed", "an acknowledgement where TLS must come"))
        if self._decision is None:
            return self._ask()
        return Verdict(self._eap.success(), self._decision, self._tls.msk())

    def _fail(self, decision: Decision) -> Verdict:
        return Verdict(self._eap.failure(), decision, before_policy=True)

    def _name_credential(self, certificate: x509.Certificate | None) -> None:
        """Put issuer key, serial number, owner id and name of the certificate into the request."""
        if certificate is None:
            self._request = self._request._replace(defect="credential-missing")
            return
        try:
            aki = aki_of(certificate)
            owner_id, san = _names(certificate, self._owner_id_oid)
        except (EstError, HookMalformed):
            self._request = self._request._replace(defect="credential-unreadable")
            return
        serial = certificate.serial_number
        if aki is None:
            ref, defect = None, "credential-missing"
        elif 0 < serial < _MAX_SERIAL and len(aki) <= _MAX_AKI:
            ref, defect = CredentialRef(aki.hex(), serial), ""
        else:  # nothing of ours; also the certificate of a stranger comes this far
            ref, defect = None, "credential-unreadable"
        self._request = self._request._replace(credential=ref, owner_id_hint=owner_id, san=san, defect=defect)


def _names(certificate: x509.Certificate, owner_id_oid: str) -> tuple[str | None, str | None]:
    """(owner id, SAN in OpenSSL's text form)."""
    owner_id: str | None = None
    san: str | None = None
    for extension in extensions_of(certificate):
        if extension.oid.dotted_string == owner_id_oid and isinstance(extension.value, x509.UnrecognizedExtension):
            owner_id = read_owner_id(extension.value.value)
        elif isinstance(extension.value, x509.SubjectAlternativeName):
            san = ", ".join(_general_name(name) for name in extension.value)[:_MAX_SAN]
    return owner_id, san


def _general_name(name: x509.GeneralName) -> str:
    if isinstance(name, x509.UniformResourceIdentifier):
        return f"URI:{name.value}"
    return f"{type(name).__name__}:{clean_text(str(name.value))}"
