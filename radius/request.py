"""AccessRequest: what a RADIUS server tells us about one login, as values.

Both RADIUS engines end here: FreeRADIUS through radius.hook, the embedded server directly. Nothing in it has been
judged; in particular `user_name` is the outer EAP identity, free text that anybody may choose.
"""

from __future__ import annotations

from typing import NamedTuple

from radius.errors import HookMalformed

MAX_TEXT = 253
MAX_OWNER_ID = 120
EAP_TLS = "eap-tls"
MAC_BYPASS = "mac-bypass"
IA5_STRING = 0x16


class CredentialRef(NamedTuple):
    """The name of a certificate: `aki` = authority key identifier as lower-case hex, `serial` = its number."""

    aki: str
    serial: int


class AccessRequest(NamedTuple):
    """One EAP-TLS login whose certificate chain the RADIUS server has verified, or a port that asks by MAC address.

    `method` says which (`eap-tls`, `mac-bypass`); `transport` how the request came: `udp`, `loopback`, `radsec`, or
    empty where nobody said.
    `nas` is the name of the NAS whose shared secret was used, `nas_address` where its packets came from; the other
    texts are the NAS's own words (`nas_identifier` is what it calls itself). `owner_id_hint` and `san` come from the
    certificate and are compared with what the store says, never looked up: `san` is OpenSSL's text, `URI:spiffe://...`.
    `defect` is empty, or the reason code that says why `credential` is absent or not to be trusted.
    """

    nas: str = ""
    nas_address: str = ""
    nas_port: str = ""
    calling_station: str = ""
    called_station: str = ""
    user_name: str = ""
    session: str = ""
    tls_version: str = ""
    credential: CredentialRef | None = None
    owner_id_hint: str | None = None
    san: str | None = None
    defect: str = ""
    method: str = EAP_TLS
    transport: str = ""
    nas_identifier: str = ""


def clean_text(value: str, limit: int = MAX_TEXT) -> str:
    """`value` fit for one line of a log, a terminal or a Reply-Message: printable characters only, cut to `limit`."""
    if len(value) <= limit and value.isprintable():
        return value
    return "".join(char if char.isprintable() else "?" for char in value[:limit])


def read_owner_id(der: bytes) -> str:
    """The owner id in the OwnerId extension: one IA5String of 1 to 120 characters, nothing around it.

    Raises HookMalformed for anything else.
    """
    if len(der) < 3 or der[0] != IA5_STRING or der[1] != len(der) - 2 or der[1] > MAX_OWNER_ID:
        raise HookMalformed("the OwnerId extension is not an IA5String of 1 to 120 characters")
    try:
        text = der[2:].decode("ascii")
    except UnicodeDecodeError as cause:
        raise HookMalformed("the OwnerId extension is not ASCII") from cause
    if not text.isprintable():
        raise HookMalformed("the OwnerId extension has control characters")
    return text
