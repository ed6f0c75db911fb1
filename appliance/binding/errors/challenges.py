"""What can be wrong with a binding challenge, the server's question to an owner."""

from __future__ import annotations

from appliance.binding.errors.base import BindingError


class ChallengeExpired(BindingError):
    """The binding challenge is over: nobody answered it in time. The agent must ask again."""

    reason = "challenge-expired"


class ChallengeNotYetValid(BindingError):
    """The binding challenge's `iat` lies in the future."""

    reason = "challenge-not-yet-valid"


class ChallengeWindowTooLong(BindingError):
    """The binding challenge wants to be answerable for longer than allowed; field `limit` in seconds."""

    reason = "challenge-window-too-long"


class ChallengeWrongServer(BindingError):
    """The binding challenge is not from the server that the request is addressed to."""

    reason = "challenge-wrong-server"


class ChallengeWrongOwner(BindingError):
    """The binding challenge is addressed to another owner."""

    reason = "challenge-wrong-owner"


class ChallengeForOtherRequest(BindingError):
    """The binding challenge names another request, agent or key than the request beside it."""

    reason = "challenge-for-other-request"


class ChallengeInconsistent(BindingError):
    """The binding challenge says something else than the request that it names; field `claim`."""

    reason = "challenge-inconsistent"
