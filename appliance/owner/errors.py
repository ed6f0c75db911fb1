"""What the owner's tool refuses, as classes; what is wrong with a request itself is binding's to say.

ApplianceError
└── OwnerError                (abstract)
    ├── LifeTooLong           more than 24 h, and the settings do not allow it
    ├── ShortCodeMismatch     the code typed in is not that of the request on the screen
    ├── CardNotReviewed       what is to be signed is not what a review has read out of the request's bytes
    ├── AnswerPolicyInvalid   the file with the rules cannot be used
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
