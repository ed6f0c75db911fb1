"""What the owner's tool refuses, as classes; what is wrong with a request itself is binding's to say.

ApplianceError
└── OwnerError                (abstract)
    ├── LifeTooLong           more than 24 h, and the settings do not allow it
    ├── ShortCodeMismatch     the code typed in is not that of the request on the screen
    └── CardNotReviewed       what is to be signed is not what a review has read out of the request's bytes
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
