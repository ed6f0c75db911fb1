"""Approving beforehand: the bounds as a card, and the signature over exactly what the card says (A-90, A-107).

The owner writes the bounds; nothing of them comes from an agent. The claims are made first, shown as they will be
signed, and signed as they were shown, after the owner has typed the card's code.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from appliance.binding import jws, standing, webauthn
from appliance.binding import request as requests
from appliance.binding.facts import PROFILES
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.standing import Platform, StandingApproval
from appliance.binding.webauthn import Authenticator
from appliance.owner.errors import LifeTooLong, ShortCodeMismatch
from appliance.owner.sign import LONG_LIFE_SECONDS
from est.signer import Signer

DAYS = 30
LONGEST_DAYS = 90


@dataclass(frozen=True, slots=True)
class StandingCard:
    """A standing approval before its signature: its claims, and what they say."""

    claims: Mapping[str, object]
    approval: StandingApproval
    short_code: str
    """First 40 bits of the hash of the claims."""


def prepare(
    *,
    owner_id: str,
    agent_id: str,
    server_id: str,
    proxies: Sequence[str],
    platform: Platform,
    now: datetime,
    days: float = DAYS,
    max_ttl: int = 8 * 3600,
    max_uses: int | None = None,
    agent_class: str | None = None,
    profiles: Sequence[str] = PROFILES,
) -> StandingCard:
    """The bounds as claims, read as everybody else will read them. Raises Identifier..., LifeTooLong, Claim... ."""
    origin = read_kind(owner_id, Kind.OWNER).origin
    read_kind(agent_id, Kind.AGENT, origin=origin)
    for one in proxies:
        read_kind(one, Kind.PROXY, origin=origin)
    if days > LONGEST_DAYS:
        raise LifeTooLong(f"a standing approval ends after {LONGEST_DAYS} days at most", limit=LONGEST_DAYS * 86_400)
    if max_ttl > LONG_LIFE_SECONDS:
        raise LifeTooLong("credentials of more than 24 h are not approved beforehand", limit=LONG_LIFE_SECONDS)
    iat = int(now.timestamp())
    claims = standing.draft(
        iss=owner_id,
        sub=agent_id,
        aud=server_id,
        iat=iat,
        exp=iat + int(timedelta(days=days).total_seconds()),
        jti=jws.base64url(secrets.token_bytes(16)),
        max_ttl=max_ttl,
        max_uses=max_uses,
        proxies=proxies,
        platform=platform,
        profiles=profiles,
        agent_class=agent_class,
    )
    approval = standing.of_claims(claims)
    digest = jws.s256(json.dumps(claims, sort_keys=True, separators=(",", ":")))
    return StandingCard(claims, approval, requests.short_code(digest))


def render(card: StandingCard) -> str:
    """The card as plain text, one fact per line."""
    one = card.approval
    rows = [
        ("STANDING APPROVAL", "you will not be asked again within these bounds"),
        ("agent", one.sub),
        ("you", one.iss),
        ("server", one.aud),
        ("may renew", ", ".join(one.profiles)),
        ("longest life", f"{one.ttl} s for each credential"),
        ("how often", f"{one.max_uses} times" if one.max_uses is not None else "as often as needed"),
        ("until", datetime.fromtimestamp(one.exp, UTC).strftime("%Y-%m-%d %H:%M UTC")),
        *(("only by proxy", proxy) for proxy in one.proxies),
        ("only on device", one.platform.ueid.hex()),
        *(("only program", jws.unbase64url(digest, "digest").hex()) for digest in one.platform.executables),
        ("only as user", f"uid {one.platform.uid}"),
        ("agent class", one.agent_class or "any"),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in rows) + "\n"


def sign(card: StandingCard, signer: Signer | Authenticator, typed: str) -> StandingApproval:
    """The signed approval, once the owner has typed the card's code; raises ShortCodeMismatch."""
    if typed.replace("-", "").replace(" ", "").upper() != card.short_code.replace("-", ""):
        raise ShortCodeMismatch("that is not the code on the card; nothing was approved")
    key = signer.public_key()
    return standing.unseal(standing.seal(signer, card.claims), key, passkey=webauthn.passkey_of(signer))
