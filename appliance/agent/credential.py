"""What came back, looked at before it is kept."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.agent.errors import CredentialNotOurs
from appliance.binding import jws, verify
from appliance.binding.errors import BindingError
from appliance.binding.request import AgentRequest
from est import chains
from est.certificates import pem_certificates
from est.errors import EstError
from est.keys import spki


def check_chain(
    chain_pem: str, root_pem: str, *, key: ec.EllipticCurvePublicKey, agent_id: str, at: datetime
) -> x509.Certificate:
    """The end-entity certificate of a chain, if it is for this key and name and leads to the root.

    Raises CredentialNotOurs.
    """
    try:
        leaf, *rest = pem_certificates(chain_pem.encode("ascii"))
        anchors = chains.TrustAnchors(pem_certificates(root_pem.encode("ascii")))
        chains.check(leaf, rest, anchors, at=at, policy=verify.AGENT)
        named = verify.agent_id_of(leaf)
    except (ValueError, EstError, BindingError) as error:
        raise CredentialNotOurs(f"the certificate does not hold: {error}") from error
    if spki(leaf) != spki(key):
        raise CredentialNotOurs("the certificate is for another key")
    if named != agent_id:
        raise CredentialNotOurs("the certificate names another agent")
    return leaf


def check_wit(text: str, asked: AgentRequest) -> None:
    """The WIT is about us; whose signature it carries is for those to check who rely on it."""
    try:
        claims = jws.read_object(jws.read(text).payload, "WIT")
        confirmation = claims.get("cnf")
        key = jws.read_ec_jwk(confirmation.get("jwk") if isinstance(confirmation, dict) else None)
    except BindingError as error:
        raise CredentialNotOurs(f"the WIT cannot be read: {error}") from error
    if claims.get("sub") != asked.sub or key != asked.key:
        raise CredentialNotOurs("the WIT is for another agent or key")
