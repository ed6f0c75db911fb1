"""What came back, looked at before it is kept, and the supplicant's configuration for it."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.agent.errors import CredentialNotOurs, SupplicantValueUnusable
from appliance.binding import jws, verify
from appliance.binding.errors import BindingError
from appliance.binding.request import AgentRequest
from est import chains
from est.errors import EstError
from est.keys import spki

_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def check_chain(
    chain_pem: str, root_pem: str, *, key: ec.EllipticCurvePublicKey, agent_id: str, at: datetime
) -> x509.Certificate:
    """The end-entity certificate of a chain, if it is for this key and name and leads to the root.

    Raises CredentialNotOurs.
    """
    try:
        leaf, *rest = x509.load_pem_x509_certificates(chain_pem.encode("ascii"))
        anchors = chains.TrustAnchors(x509.load_pem_x509_certificates(root_pem.encode("ascii")))
        chains.check(leaf, rest, anchors, at=at, policy=verify.AGENT)
        named = verify.agent_id_of(leaf)
    except (ValueError, EstError, BindingError) as error:
        raise CredentialNotOurs(f"the certificate does not hold: {error}") from error
    if spki(leaf) != spki(key):
        raise CredentialNotOurs("the certificate is for another key")
    if named != agent_id:
        raise CredentialNotOurs("the certificate names another agent")
    return leaf


def supplicant_block(radius_server_name: str, trust_domain: str, *, root: Path, chain: Path, key: Path) -> str:
    """A wpa_supplicant configuration for wired EAP-TLS; raises SupplicantValueUnusable.

    Root and server name belong together: with the root alone any campus certificate could pose as the RADIUS server.
    The outer identity says the trust domain and nothing about the agent (RFC 9190, section 2.1.7).
    """
    for name, value in (("radius_server_name", radius_server_name), ("trust_domain", trust_domain)):
        if not _HOST.fullmatch(value):
            raise SupplicantValueUnusable(f"{name} is not a host name", name=name)
    for name, path in (("ca_cert", root), ("client_cert", chain), ("private_key", key)):
        # wpa_supplicant takes the octets between the outer quotes as they are
        if '"' in str(path) or not str(path).isprintable():
            raise SupplicantValueUnusable(f"the path of {name} has a character that cannot stand there", name=name)
    lines = (
        "ap_scan=0",
        "eapol_version=2",
        "network={",
        "    key_mgmt=IEEE8021X",
        "    eapol_flags=0",
        "    eap=TLS",
        f'    identity="anonymous@{trust_domain}"',
        f'    ca_cert="{root}"',
        f'    domain_match="{radius_server_name}"',
        f'    client_cert="{chain}"',
        f'    private_key="{key}"',
        '    phase1="tls_disable_tlsv1_3=0"',
        "}",
    )
    return "\n".join(lines) + "\n"


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
