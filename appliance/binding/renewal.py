"""The renewal proof (`agent-renewal+jwt`): the key of the live credential vouches for the next key.

Without it any process behind the same proxy could ride on an approval that still counts.
"""

from __future__ import annotations

from datetime import datetime

from appliance.binding import jws
from appliance.binding.claims import Claims
from appliance.binding.errors import RenewalProofMismatch
from appliance.binding.facts import Limits, seconds
from appliance.binding.identifier import Kind
from est.signer import Signer

TYP = "agent-renewal+jwt"
_CLAIMS = frozenset({"sub", "cnf", "nonce", "aud", "iat", "exp"})


def seal(signer: Signer, *, sub: str, jkt: str, nonce: str, aud: str, iat: int, exp: int) -> str:
    """A proof by the live credential's key for the new key with thumbprint `jkt`."""
    claims = {"sub": sub, "cnf": {"jkt": jkt}, "nonce": nonce, "aud": aud, "iat": iat, "exp": exp}
    return jws.seal(claims, typ=TYP, signer=signer, header={"kid": jws.jkt(signer.public_key())})


def kid_of(token: str) -> str | None:
    """The live credential's key that a proof says it is signed with, to find that credential; raises Malformed."""
    return jws.read(token).kid


def check(
    token: str,
    live_key: jws.PublicKey,
    *,
    sub: str,
    jkt: str,
    nonce: str,
    server_id: str,
    now: datetime,
    limits: Limits,
) -> None:
    """Refuses a proof that is not the live key's word for exactly this request.

    Raises Malformed, SignatureInvalid, TokenTypeWrong, Claim..., RenewalProofMismatch (field `claim`).
    """
    claims = Claims(jws.unseal(token, typ=TYP, key=live_key).claims, "renewal proof")
    claims.check_names(_CLAIMS)
    said = (
        ("sub", claims.identifier("sub", Kind.AGENT), sub),
        ("cnf", claims.jkt(), jkt),
        ("nonce", claims.nonce("nonce"), nonce),
        ("aud", claims.text("aud"), server_id),
    )
    for name, found, due in said:
        if found != due:
            raise RenewalProofMismatch(f"the renewal proof names another {name}", claim=name)
    iat, exp = claims.window()
    at = seconds(now)
    if exp - iat > limits.window_seconds or at > exp + limits.skew_seconds:
        raise RenewalProofMismatch("the renewal proof is over or may be used for too long", claim="exp")
    if iat > at + limits.skew_seconds:
        raise RenewalProofMismatch("the renewal proof comes from the future", claim="iat")
