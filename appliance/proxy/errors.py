"""What the identity proxy refuses, as classes.

ApplianceError
└── ProxyError                    (abstract)
    ├── ProxyStateLocked          another proxy runs on this state folder
    ├── ProxyStateDamaged         a file of the state folder cannot be read or written
    ├── BootstrapNotConfigured    neither a usable IDevID nor a preconfigured server (A-82)
    ├── BootstrapGaveUp           no offer led to an LDevID within the configured time
    ├── EnrolmentSecretUnusable   the file with the one-time secret does not read
    ├── PeerUnreachable           nobody answers at that address
    ├── TlsHandshakeFailed        TCP answered, TLS did not
    ├── ServerUntrusted           the server's chain does not end in our anchors
    ├── ServerNotAuthorized       right CA, but neither the name nor id-kp-cmcRA (E-33)
    ├── FingerprintMismatch       the server's root is not the one that was configured
    ├── ConnectionClosed          the peer closed; this connection is never opened again by itself
    ├── PeerSilent                the deadline of an answer passed
    ├── PeerReplyMalformed        not HTTP/1.1 as we read it
    ├── PeerReplyTooLarge         more than the cap
    ├── RedirectRefused           3xx: nothing is followed
    ├── CallNotAllowed            our own code asked for more than the connection's trust allows
    ├── CallerNotAllowed          the kernel's answer about who called the Agent API
    ├── CallerGone                the calling process ended or changed while it was measured
    ├── RequestNotYours           another local caller asked with this key
    ├── AgentCallMalformed        the Agent API's body has another shape
    ├── IdentityServerAway        the identity server cannot be reached now
    ├── OwnerGatewayMissing       the owner has no gateway for this proxy
    ├── OwnerGatewayAway          no gateway of the owner answers, or what answers is another
    ├── JoinNotPossible           the join proxy's settings do not work here
    ├── SupplicantNotTold         the command of proxy.supplicant_command failed
    ├── WorkloadsMalformed        the file of proxy.spiffe_workloads does not read
    ├── WorkloadUnknown           the caller is none of the workloads in it
    └── SpiffeNotInstalled        the extra `spiffe` is missing
"""

from __future__ import annotations

from typing import ClassVar

from appliance.errors import ApplianceError


class ProxyError(ApplianceError):
    """Base of the proxy's refusals; abstract."""


class ProxyStateLocked(ProxyError):
    """Another proxy holds the lock of this state folder."""

    reason: ClassVar[str] = "proxy-state-locked"


class ProxyStateDamaged(ProxyError):
    """A file of the state folder is missing, foreign, or cannot be read or written."""

    reason: ClassVar[str] = "proxy-state-damaged"


class BootstrapNotConfigured(ProxyError):
    """The settings allow neither method; the detail says what to configure."""

    reason: ClassVar[str] = "bootstrap-not-configured"


class BootstrapGaveUp(ProxyError):
    """No offer led to an LDevID before `proxy.give_up_seconds` passed."""

    reason: ClassVar[str] = "bootstrap-gave-up"


class EnrolmentSecretUnusable(ProxyError):
    """The file named by `proxy.est_secret_file` is unreadable or has no NAME:SECRET."""

    reason: ClassVar[str] = "enrolment-secret-unusable"


class PeerUnreachable(ProxyError):
    """No TCP connection within the deadline."""

    reason: ClassVar[str] = "peer-unreachable"


class TlsHandshakeFailed(ProxyError):
    """The peer answered, and no TLS session came of it."""

    reason: ClassVar[str] = "tls-handshake-failed"


class ServerUntrusted(ProxyError):
    """The server's certificate does not chain to the explicit trust anchors."""

    reason: ClassVar[str] = "server-untrusted"


class ServerNotAuthorized(ProxyError):
    """The server has the right CA, but neither the configured name nor id-kp-cmcRA (RFC 7030, section 3.6.1)."""

    reason: ClassVar[str] = "server-not-authorized"


class FingerprintMismatch(ProxyError):
    """None of the CA certificates that the server sent has the configured fingerprint."""

    reason: ClassVar[str] = "fingerprint-mismatch"


class ConnectionClosed(ProxyError):
    """The peer closed the connection; `answered` says whether any byte of an answer had come."""

    reason: ClassVar[str] = "peer-connection-closed"


class PeerSilent(ProxyError):
    """No complete answer within the deadline."""

    reason: ClassVar[str] = "peer-silent"


class PeerReplyMalformed(ProxyError):
    """The answer is not HTTP/1.1, or not in a form that can be read safely."""

    reason: ClassVar[str] = "peer-reply-malformed"


class PeerReplyTooLarge(ProxyError):
    """The answer exceeds its cap."""

    reason: ClassVar[str] = "peer-reply-too-large"


class RedirectRefused(ProxyError):
    """The peer answered with a redirect; the proxy follows none."""

    reason: ClassVar[str] = "redirect-refused"


class CallNotAllowed(ProxyError):
    """The connection's present trust does not cover this call."""

    reason: ClassVar[str] = "call-not-allowed"


class CallerNotAllowed(ProxyError):
    """The kernel names a caller that has no identity here: another namespace, the overflow uid, or root."""

    reason: ClassVar[str] = "caller-not-allowed"


class CallerGone(ProxyError):
    """The calling process ended, or is another one, at the end of the measurement."""

    reason: ClassVar[str] = "caller-gone"


class CallerChanged(ProxyError):
    """The calling process became another program after it had connected."""

    reason: ClassVar[str] = "caller-changed"


class RequestNotYours(ProxyError):
    """Another local user has asked with this agent key."""

    reason: ClassVar[str] = "request-not-yours"


class AgentCallMalformed(ProxyError):
    """A body at the Agent API that is not of the documented shape."""

    reason: ClassVar[str] = "agent-call-malformed"


class IdentityServerAway(ProxyError):
    """The identity server does not answer; come back after `retry_after_seconds`."""

    reason: ClassVar[str] = "identity-server-away"


class OwnerGatewayMissing(ProxyError):
    """The identity server knows no gateway of the request's owner that this proxy may use."""

    reason: ClassVar[str] = "owner-gateway-missing"


class OwnerGatewayAway(ProxyError):
    """No gateway of the owner answers, or what answers has another key; come back after `retry_after_seconds`."""

    reason: ClassVar[str] = "owner-gateway-away"


class JoinNotPossible(ProxyError):
    """The settings of the join proxy do not work here: a registrar that does not read, or a port that is taken."""

    reason: ClassVar[str] = "join-not-possible"


class SupplicantNotTold(ProxyError):
    """The command of `proxy.supplicant_command` failed; field `status`."""

    reason: ClassVar[str] = "supplicant-not-told"


class WorkloadsMalformed(ProxyError):
    """The file of `proxy.spiffe_workloads` cannot be read or does not say what it should."""

    reason: ClassVar[str] = "workloads-malformed"


class WorkloadUnknown(ProxyError):
    """The caller's user and program are those of no workload of the SPIFFE Workload API."""

    reason: ClassVar[str] = "workload-unknown"


class SpiffeNotInstalled(ProxyError):
    """The SPIFFE Workload API is wanted and its extra is not installed: pip install 'campus-appliance[spiffe]'."""

    reason: ClassVar[str] = "spiffe-not-installed"
