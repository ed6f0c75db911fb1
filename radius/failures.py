"""Why a login ended before policy was asked, out of the words of OpenSSL and FreeRADIUS: words -> reason codes.

OpenSSL's numbers of failed path validation are those of x509_vfy.h, alerts those of RFC 8446, section 6. The texts of
FreeRADIUS are those of 3.2 and were recorded from it; what is not known becomes `radius-rejected` with its own words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from radius.errors import HookMalformed
from radius.hook import AKI, read_request, values_of
from radius.reasons import REASONS
from radius.request import MAC_BYPASS, AccessRequest, clean_text

# X509_V_ERR_* -> (reason code, words)
VERIFY: Final = {
    2: ("tls-unknown-ca", "issuer certificate not found"),
    3: ("tls-handshake-failed", "no revocation list of the issuing CA is at hand"),
    9: ("tls-certificate-not-yet-valid", "certificate is not yet valid"),
    10: ("tls-certificate-expired", "certificate has expired"),
    12: ("tls-handshake-failed", "the revocation list of the issuing CA has expired"),
    18: ("tls-unknown-ca", "self-signed certificate"),
    19: ("tls-unknown-ca", "self-signed certificate in the chain"),
    20: ("tls-unknown-ca", "issued by an unknown CA"),
    21: ("tls-unknown-ca", "issued by an unknown CA"),
    23: ("tls-certificate-revoked", "certificate is on the revocation list"),
    24: ("tls-unknown-ca", "issued by a certificate that is no CA"),
    26: ("tls-certificate-unsuitable", "not a TLS client's certificate"),
}
# what a supplicant's alert means for the administrator
ALERTS: Final = {
    "close notify": "the supplicant closed the session",
    "unexpected message": "the supplicant got a message that it did not expect",
    "bad record mac": "a packet arrived damaged at the supplicant",
    "handshake failure": "the supplicant shares no cipher or curve with the RADIUS server",
    "bad certificate": "the supplicant takes the RADIUS server's certificate for damaged",
    "unsupported certificate": "the supplicant does not support the RADIUS server's kind of certificate",
    "certificate revoked": "the supplicant holds the RADIUS server's certificate for revoked",
    "certificate expired": "the supplicant holds the RADIUS server's certificate for expired; look at its clock too",
    "certificate unknown": "the supplicant does not accept the RADIUS server's certificate: root or server name wrong",
    "illegal parameter": "the supplicant got a value that it does not allow",
    "unknown ca": "the supplicant does not know the CA of the RADIUS server's certificate: campus root missing",
    "access denied": "the supplicant's own rules forbid the RADIUS server's certificate",
    "decode error": "the supplicant could not read a message",
    "decrypt error": "the supplicant could not verify a signature",
    "protocol version": "the supplicant speaks none of the TLS versions allowed here",
    "insufficient security": "the supplicant wants stronger ciphers",
    "internal error": "the supplicant broke off; its own log says why, often a wrong server name",
    "user canceled": "the user broke off",
    "no renegotiation": "the supplicant refuses renegotiation",
    "unrecognized name": "the supplicant does not know the server's name",
    "no application protocol": "the supplicant wants another application protocol",
}
_VERIFY_SAID: Final = re.compile(r"OpenSSL says error (\d{1,3})\b")
_FREERADIUS: Final = (  # what a module said -> (reason code, words)
    (re.compile(r"peer did not return a certificate"), "tls-certificate-missing", "no certificate came"),
    (re.compile(r"No mutually acceptable types found"), "eap-method-refused", "no EAP method in common"),
    (re.compile(r"no shared cipher|no suitable (?:key share|signature)"), "tls-handshake-failed",
     "no cipher, curve or signature algorithm in common"),
    (re.compile(r"unsupported protocol|wrong version|version too low"), "tls-handshake-failed",
     "no TLS version in common"),
    (re.compile(r"bad signature|signature.*(?:mismatch|wrong)"), "tls-handshake-failed",
     "the signature does not fit the certificate"),
    (re.compile(r"No EAP session matching"), "eap-login-unknown", "the conversation was over already"),
    (re.compile(r"(?:malformed|invalid) EAP|EAP-Message.*(?:too short|malformed)|Invalid length", re.IGNORECASE),
     "eap-malformed", "an EAP packet breaks the rules"),
    (re.compile(r"Failed reading from OpenSSL|\(TLS\).*(?:fail|rror)"), "tls-handshake-failed", ""),
)  # fmt: skip
_LOG_LINES: Final = (
    (re.compile(r"Ignoring request to \w+ address .{1,80} from unknown client (?P<address>[0-9A-Fa-f.:]+) port"),
     "nas-unknown", "a packet from an address that is no NAS"),
    (re.compile(r"Received packet from (?P<address>[0-9A-Fa-f.:]+) with invalid Message-Authenticator"),
     "radius-secret-wrong", "the Message-Authenticator does not verify"),
    (re.compile(r"Insecure packet from host (?P<address>[0-9A-Fa-f.:]+): *Packet does not contain required Message"),
     "radius-not-authenticated", "no Message-Authenticator"),
    (re.compile(r"(?:Malformed RADIUS packet|WARNING: Malformed) .{0,20}?from host (?P<address>[0-9A-Fa-f.:]+)"),
     "radius-malformed", "a malformed packet"),
)  # fmt: skip
LOG_CODES: Final = {code: words for _, code, words in _LOG_LINES}
"""What becomes of packets that FreeRADIUS tells of in its log alone: reason code -> words."""
_CLIENT: Final = re.compile(r"\(from client ([A-Za-z0-9._-]{1,63})\)")


class Failure(NamedTuple):
    """A login that ended before policy: what is known of it, the reason code, one line of evidence."""

    request: AccessRequest
    code: str
    detail: str


def alert_words(text: str) -> str:
    """A supplicant's alert in plain words, followed by its name; the text itself where the alert is not known."""
    lowered = text.lower()
    for name in sorted(ALERTS, key=len, reverse=True):
        if name in lowered:
            return f"{ALERTS[name]} (alert {name})"
    return clean_text(text, 120)


def read_failure(document: object, *, owner_id_oid: str) -> Failure:
    """The failure in the rlm_rest JSON that our FreeRADIUS configuration posts from Post-Auth-Type REJECT.

    Raises HookMalformed when the document is not of rlm_rest's form, or has no attribute at all.
    """
    values = values_of(document)
    if not values:
        raise HookMalformed("no attribute")
    request = read_request(values, owner_id_oid=owner_id_oid)
    said = [clean_text(one, 240) for one in values.get("Module-Failure-Message", [])[:32]]
    if request.method == MAC_BYPASS:  # one that policy and transport allow: the caller knows about the others
        return Failure(request, "decision-not-asked", "a port asked by MAC address, and no decision came")
    code, detail = _reason_of(said, values.keys())
    names = _certificate_names(values)
    return Failure(request, code, f"{detail}: {names}" if names else detail)


def read_log_line(line: str) -> Failure | None:
    """A packet that FreeRADIUS dropped, out of a line of its log; None for every other line.

    Release 3.2.1 says nothing about packets without a Message-Authenticator, and malformed ones, unless it debugs.
    """
    for pattern, code, _ in _LOG_LINES:
        if found := pattern.search(line):
            client = _CLIENT.search(line)
            return of_dropped(code, client[1] if client else "", found["address"])
    return None


def of_dropped(code: str, nas: str, address: str) -> Failure:
    """A packet from `address` that FreeRADIUS dropped for a reason of LOG_CODES."""
    return Failure(AccessRequest(nas=nas, nas_address=address), code, f"{LOG_CODES[code]} ({address})")


def _reason_of(said: Sequence[str], names: Collection[str]) -> tuple[str, str]:
    for one in said:
        if number := _VERIFY_SAID.search(one):
            code, words = VERIFY.get(int(number[1]), ("tls-handshake-failed", ""))
            return code, words or one
    for one in said:
        if "lert read:" in one:
            return "tls-refused-by-supplicant", alert_words(one.partition("lert read:")[2].partition(":")[2])
    for pattern, code, words in _FREERADIUS:
        for one in said:
            if pattern.search(one):
                return code, words or one
    if not any(name.startswith("EAP-") for name in names):
        return "eap-not-offered", "a request without EAP"
    if AKI in names:
        return "decision-not-asked", "the certificate was verified, and no decision came"
    return "radius-rejected", said[0] if said else REASONS["radius-rejected"].meaning


def _certificate_names(values: Mapping[str, list[str]]) -> str:
    """Subject and issuer of the certificate, as FreeRADIUS read them; of unproven origin."""
    subject = values.get("TLS-Client-Cert-Subject")
    issuer = values.get("TLS-Client-Cert-Issuer")
    if not subject or not issuer:
        return ""
    return f"{clean_text(subject[0], 80)}, issued by {clean_text(issuer[0], 80)}"
