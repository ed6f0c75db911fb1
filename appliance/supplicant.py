"""The wpa_supplicant configuration with which an agent's host or an identity proxy logs in at a wired port."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from appliance.errors import ApplianceError

_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


class SupplicantValueUnusable(ApplianceError):
    """A value cannot stand in a wpa_supplicant configuration; field `name`."""

    reason: ClassVar[str] = "supplicant-value-unusable"


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
