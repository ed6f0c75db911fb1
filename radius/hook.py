"""rlm_rest's JSON: the attributes of a login -> AccessRequest, Decision -> answer.

FreeRADIUS 3.2 posts `{"Attribute-Name": {"type": "string", "value": ["..."]}, ...}` once per EAP-TLS login, from the
virtual server that eap `tls {}` names, after it has verified the chain; for a port that asks by MAC address, from the
virtual server of its listener. Every value of the answer is sent with
`do_xlat: false`: FreeRADIUS would otherwise expand `%{...}` in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from json.encoder import encode_basestring_ascii as _quoted
from typing import Final

from radius.attributes import Vlan, as_text, message, of_login, of_outcome, outcome_of
from radius.decide import Decision
from radius.errors import HookMalformed
from radius.request import (
    EAP_TLS,
    MAC_BYPASS,
    MAX_TEXT,
    AccessRequest,
    CredentialRef,
    clean_text,
    read_owner_id,
)

AKI: Final = "TLS-Client-Cert-X509v3-Authority-Key-Identifier"
SERIAL: Final = "TLS-Client-Cert-Serial"
SAN: Final = "TLS-Client-Cert-X509v3-Subject-Alternative-Name"
EXTENSION_PREFIX: Final = "TLS-Client-Cert-"
NAS_NAME: Final = "Tmp-String-0"  # the client's name in clients.conf, put there by our virtual server
NAS_ADDRESS: Final = "Tmp-String-1"  # the address its packets came from
TLS_VERSION: Final = "Tmp-String-2"
TRANSPORT: Final = "Tmp-String-3"  # `radsec`, put there by the virtual server behind the TLS listener
MAX_ATTRIBUTES: Final = 400
_CALL_CHECK: Final = (["Call-Check"], ["10"])
_OF_EAP: Final = ("EAP-", "TLS-")
_AKI_TEXT = re.compile(r"(?:keyid:)?((?:[0-9A-Fa-f]{2}:){0,63}[0-9A-Fa-f]{2})\Z")
_SERIAL_TEXT = re.compile(r"[0-9A-Fa-f]{1,40}\Z")


def read_hook(document: object, *, owner_id_oid: str) -> AccessRequest:
    """The login in rlm_rest's parsed JSON document; `owner_id_oid` is the dotted OID of the OwnerId extension.

    Exactly one issuer key and one serial number make a credential; anything else comes back without one and with the
    reason in `defect`, so that the login is rejected and logged. A request of service type Call-Check without a trace
    of EAP is a port that asks by MAC address. Raises HookMalformed when the document as a whole is
    not of rlm_rest's form.
    """
    return read_request(values_of(document), owner_id_oid=owner_id_oid)


def read_request(values: Mapping[str, list[str]], *, owner_id_oid: str) -> AccessRequest:
    """The login in a document's attributes, as values_of() found them."""
    credential, defect = _credential(values)
    owner_hint: str | None = None
    hints = values.get(EXTENSION_PREFIX + owner_id_oid, [])
    if len(hints) > 1:
        defect = defect or "credential-ambiguous"
    elif hints:
        try:
            owner_hint = read_owner_id(bytes.fromhex(hints[0].removeprefix("0x")))
        except (ValueError, HookMalformed):  # not hex, or not an OwnerId: the login is rejected, not the call
            defect = defect or "credential-unreadable"
    sans = values.get(SAN, [])
    method, transport = EAP_TLS, ""
    if values.get("Service-Type") in _CALL_CHECK and not any(name.startswith(_OF_EAP) for name in values):
        method, transport, credential, defect = MAC_BYPASS, _transport(values), None, ""
    return AccessRequest(
        nas=_one(values, NAS_NAME) or _one(values, "NAS-Identifier"),
        nas_address=_one(values, NAS_ADDRESS) or _one(values, "NAS-IP-Address"),
        nas_port=_one(values, "NAS-Port-Id") or _one(values, "NAS-Port"),
        calling_station=_one(values, "Calling-Station-Id"),
        called_station=_one(values, "Called-Station-Id"),
        user_name=_one(values, "User-Name"),
        session=_one(values, "Acct-Session-Id"),
        tls_version=_one(values, TLS_VERSION).removeprefix("TLS ").removeprefix("TLSv"),
        credential=credential,
        owner_id_hint=owner_hint,
        san=", ".join(sans) if sans else None,
        defect=defect,
        method=method,
        transport=transport,
        nas_identifier=_one(values, "NAS-Identifier"),
    )


def write_answer(decision: Decision, *, reply_message: bool = True) -> bytes:
    """The JSON document that makes FreeRADIUS do what `decision` says.

    It is put together by hand, because a general encoder takes longer over it than the decision took.
    """
    said = message(decision) if reply_message else ""
    members = [_of_outcome(decision.verdict == "reject", *outcome_of(decision), said)]
    for name, _, text, octets, _ in of_login(decision):
        # octets: FreeRADIUS reads hex without a chance of interpretation
        members.append(_member(f"reply:{name}", f"0x{octets.hex()}" if name == "Class" else text))
    return f"{{{','.join(members)}}}".encode()


@lru_cache(maxsize=4096)
def _of_outcome(is_reject: bool, vlan: Vlan | None, filter_id: str, role: str, is_asked_again: bool, said: str) -> str:
    """The members that many logins have in common, as text."""
    members = [_REJECT if is_reject else _ACCEPT]
    members += [_member(f"reply:{one.name}", one.text) for one in of_outcome(vlan, filter_id, role, is_asked_again)]
    if said:
        members.append(_member("reply:Reply-Message", as_text(said)))
    return ",".join(members)


def _member(name: str, text: str) -> str:
    # without an operator rlm_rest takes `:=`, and each member less is a dozen of its allocations
    return f'"{name}":{{"value":[{_quoted(text)}],"do_xlat":false}}'


_ACCEPT, _REJECT = (_member("control:Auth-Type", verdict) for verdict in ("Accept", "Reject"))


def values_of(document: object) -> dict[str, list[str]]:
    """Every attribute's values as texts, in one loop: it runs for each of some thirty attributes of each login.

    The document is a dict of dicts, or tuples of pairs as est.transfer.read_json_pairs() gives them. Raises
    HookMalformed when it is not of rlm_rest's form, or names something twice.
    """
    if isinstance(document, dict):
        document = tuple((name, _pairs(one)) for name, one in document.items())
    if type(document) is not tuple:
        raise HookMalformed("the body must be a JSON object of attributes")
    if len(document) > MAX_ATTRIBUTES:
        raise HookMalformed(f"more than {MAX_ATTRIBUTES} attributes")
    values: dict[str, list[str]] = {}
    for name, entry in document:
        if type(entry) is tuple and len(entry) == 2:  # as rlm_rest writes them
            (first, _), (second, found) = entry
            if second != "value" or first != "type":
                found = _value_of(name, entry)
        else:
            found = _value_of(name, entry)
        if type(found) is list and len(found) == 1 and type(found[0]) is str:
            values[name] = found  # nearly every attribute of nearly every login
            continue
        if not isinstance(found, list):
            found = [found]
        for at, value in enumerate(found):
            if type(value) is str:
                continue
            if type(value) is not int:
                raise HookMalformed(f"attribute {clean_text(name, 80)} has a value that is neither text nor number")
            found = [*found[:at], str(value), *found[at + 1 :]]
        values[name] = found
    if len(values) != len(document):
        raise HookMalformed("the body names an attribute twice")
    return values


def _pairs(entry: object) -> object:
    if type(entry) is dict:
        return tuple(entry.items())
    return None if type(entry) is tuple else entry


def _value_of(name: object, entry: object) -> object:
    """`value` of an attribute whose members come in another order or number."""
    if type(entry) is not tuple or type(name) is not str:
        raise HookMalformed("each attribute must be an object with type and value")
    members = dict(entry)
    if len(members) != len(entry):
        raise HookMalformed(f"attribute {clean_text(name, 80)} has a member twice")
    return members.get("value")


def _one(values: Mapping[str, list[str]], name: str) -> str:
    found = values.get(name)
    if not found:
        return ""
    text = found[0]
    return text if len(text) <= MAX_TEXT and text.isprintable() else clean_text(text)


def _transport(values: Mapping[str, list[str]]) -> str:
    """How the NAS's packet came: what the RadSec listener's virtual server says, else by the address it came from."""
    if values.get(TRANSPORT) == ["radsec"]:
        return "radsec"
    found = values.get(NAS_ADDRESS, [])
    try:
        return "loopback" if len(found) == 1 and ip_address(found[0]).is_loopback else "udp"
    except ValueError:
        return "udp"


def _credential(values: Mapping[str, list[str]]) -> tuple[CredentialRef | None, str]:
    """(reference, defect): AKI as `77:C1:...`, perhaps with `keyid:` before and a line feed behind; serial as hex."""
    akis, serials = values.get(AKI, []), values.get(SERIAL, [])
    if not akis or not serials:
        return None, "credential-missing"
    if len(akis) > 1 or len(serials) > 1:
        return None, "credential-ambiguous"
    aki, text = _AKI_TEXT.match(akis[0].strip()), serials[0]
    serial = int(text, 16) if _SERIAL_TEXT.match(text) else 0
    if aki is None or not serial:
        return None, "credential-unreadable" if akis[0].strip() and text else "credential-missing"
    return CredentialRef(aki[1].replace(":", "").lower(), serial), ""
