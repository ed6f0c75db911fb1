"""Signing what was reviewed: an owner's yes or no to exactly the request on the card, never wider."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime

from appliance.binding import approval as approvals
from appliance.binding import jws, webauthn
from appliance.binding import request as requests
from appliance.binding.errors import RequestExpired, SelfApproval
from appliance.binding.facts import Limits
from appliance.binding.webauthn import Authenticator
from appliance.owner.errors import CardNotReviewed, LifeTooLong, ShortCodeMismatch
from appliance.owner.review import ReviewCard
from est.signer import Signer

LONG_LIFE_SECONDS = 86_400


def sign(
    card: ReviewCard,
    signer: Signer | Authenticator,
    *,
    now: datetime,
    deny: bool = False,
    profiles: Sequence[str] | None = None,
    ttl_seconds: int | None = None,
    usable_seconds: int | None = None,
    expected_code: str | None = None,
    allow_long_lives: bool = False,
    nonce: str | None = None,
    limits: Limits | None = None,
    org: str | None = None,
) -> str:
    """The owner approval (or denial) for a reviewed card, as a compact JWS that has been read back.

    `profiles` and `ttl_seconds` may narrow what was asked; `usable_seconds` is how long the approval may be used, at
    most until the request itself ends; `expected_code` is the short code that the owner saw at the other end,
    `nonce` that of the server's challenge, where the server has asked, `org` the hash of organisational material that
    goes along. Raises CardNotReviewed, ShortCodeMismatch, SelfApproval, LifeTooLong, RequestExpired, ApprovalWidened.
    """
    limits = limits or Limits()
    # the bytes are read again here: what is signed is what they say, whatever happened to the card in between
    request = requests.unseal(card.request.token)
    if request != card.request or request.owner != (card.beside or card.owner_id):
        raise CardNotReviewed("the card does not say what the request's bytes say")
    if expected_code is not None and not _same_code(expected_code, requests.short_code(request.rqh)):
        raise ShortCodeMismatch("the short code is not that of this request")
    kid = jws.jkt(signer.public_key())
    if kid == request.jkt:
        raise SelfApproval("this is the agent's own key")
    ttl = request.ttl if ttl_seconds is None else ttl_seconds
    if ttl > LONG_LIFE_SECONDS and not allow_long_lives and not deny:
        raise LifeTooLong("approvals of more than 24 h are switched off here", limit=LONG_LIFE_SECONDS)
    iat = int(now.timestamp())
    exp = min(iat + min(usable_seconds or limits.window_seconds, limits.window_seconds), request.exp)
    if exp <= iat:
        raise RequestExpired("the request is over: the agent must ask again")
    token = approvals.seal(
        signer,
        request,
        iss=card.owner_id,
        iat=iat,
        exp=exp,
        jti=jws.base64url(secrets.token_bytes(16)),
        nonce=nonce,
        profiles=profiles,
        ttl=ttl,
        proxy=card.proxy,
        deny=deny,
        org=org,
    )
    approvals.unseal(token, signer.public_key(), kid=kid, passkey=webauthn.passkey_of(signer))
    return token


def _same_code(typed: str, code: str) -> bool:
    wanted = code.replace("-", "")
    return hmac.compare_digest(typed.replace("-", "").replace(" ", "").upper().encode(), wanted.encode())
