"""What the owner's tool refuses, as classes; what is wrong with a request itself is binding's to say.

ApplianceError
└── OwnerError                (abstract)
    ├── LifeTooLong           more than 24 h, and the settings do not allow it
    ├── ShortCodeMismatch     the code typed in is not that of the request on the screen
    ├── CardNotReviewed       what is to be signed is not what a review has read out of the request's bytes
    ├── PasskeyUnavailable    no FIDO2 key at hand, or it gave no signature
    ├── AnswerPolicyInvalid   the file with the rules cannot be used
    ├── GatewayConfigInvalid, GatewayQueueUnusable                  the gateway's file and queue
    ├── GatewayProxyUnknown, GatewayQueueFull, GatewayAgentMuted, GatewayRequestOver, GatewayNotReady     its answers
    └── ServerUnreachable, ServerRefused, ServerAnswerUnusable     the owner's connection to the identity server
"""

from __future__ import annotations

from typing import ClassVar

from appliance.errors import ApplianceError


class OwnerError(ApplianceError):
    """Base of the owner tool's refusals; abstract."""


class LifeTooLong(OwnerError):
    """The credential would live for more than 24 h; field `limit` in seconds."""

    reason: ClassVar[str] = "life-too-long"


class ShortCodeMismatch(OwnerError):
    """The code typed in is not that of the request on the screen: two different requests are being looked at."""

    reason: ClassVar[str] = "short-code-mismatch"


class CardNotReviewed(OwnerError):
    """The fields to be signed differ from those in the request's own bytes."""

    reason: ClassVar[str] = "card-not-reviewed"


class PasskeyUnavailable(OwnerError):
    """No FIDO2 key is at hand, its user did not confirm, or the package that talks to it is missing."""

    reason: ClassVar[str] = "passkey-unavailable"


class AnswerPolicyInvalid(OwnerError):
    """The file with the rules for answers cannot be used; the detail says where."""

    reason: ClassVar[str] = "answer-policy-invalid"


class ServerUnreachable(OwnerError):
    """The identity server does not answer, is not the campus's, or the files to know it by cannot be used."""

    reason: ClassVar[str] = "identity-server-unreachable"


class ServerRefused(OwnerError):
    """The identity server said no to the owner's tool; fields `status`, `problem` (the reason it gave)."""

    reason: ClassVar[str] = "identity-server-refused"


class ServerAnswerUnusable(OwnerError):
    """The identity server's answer to the owner's tool is not what was agreed."""

    reason: ClassVar[str] = "identity-server-answer-unusable"


class GatewayConfigInvalid(OwnerError):
    """The gateway's file cannot be used; the detail says where."""

    reason: ClassVar[str] = "gateway-config-invalid"


class GatewayQueueUnusable(OwnerError):
    """The gateway's queue is missing, cannot be opened, or is in use by another gateway."""

    reason: ClassVar[str] = "gateway-queue-unusable"


class GatewayProxyUnknown(OwnerError):
    """The client certificate is no proxy's of a campus of this gateway, or of a proxy that it does not serve."""

    reason: ClassVar[str] = "gateway-proxy-unknown"


class GatewayQueueFull(OwnerError):
    """As much waits for this owner as may wait, in all or of this proxy or program; fields: retry_after_seconds."""

    reason: ClassVar[str] = "gateway-queue-full"


class GatewayAgentMuted(OwnerError):
    """The owner said no to this program a moment ago and is not asked again yet; fields: retry_after_seconds."""

    reason: ClassVar[str] = "gateway-agent-muted"


class GatewayRequestOver(OwnerError):
    """The request is decided, or a newer one took its place; field `state`."""

    reason: ClassVar[str] = "gateway-request-over"


class GatewayNotReady(OwnerError):
    """The gateway has not reached this campus's identity server yet; fields: retry_after_seconds."""

    reason: ClassVar[str] = "gateway-not-ready"
