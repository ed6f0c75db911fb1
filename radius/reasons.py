"""The catalogue of reason codes: what each means, why it usually happens, and what to type next.

A Decision carries one code; log rows, a reject's Reply-Message, `appliance policy explain` and the manual all read
this table.
`<owner>`, `<agent>`, `<serial>` and `<nas>` in a command are replaced by the values of the login at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Stage = Literal["tls", "credential", "owner", "policy"]
STAGES: Final[tuple[Stage, ...]] = ("tls", "credential", "owner", "policy")


@dataclass(frozen=True, slots=True)
class Reason:
    """One row: `stage` is where the login stopped, `meaning` one public sentence."""

    code: str
    stage: Stage
    meaning: str
    likely_cause: str
    next_command: str


_EXPLAIN = "appliance policy explain --serial <serial> --issuer agents"
_ROWS: Final = (
    # tls: before policy is asked
    Reason("tls-unknown-ca", "tls", "The certificate was not issued by this campus's agents CA.",
           "A certificate of another campus or CA, or a proxy's LDevID used as an agent's credential.",
           "appliance agents list"),
    Reason("tls-certificate-expired", "tls", "The certificate has expired.",
           "The agent did not renew in time, or the clock of the RADIUS server is wrong.",
           "appliance agents show <agent>"),
    Reason("tls-certificate-not-yet-valid", "tls", "The certificate is not valid yet.",
           "The clock of the RADIUS server is behind.", "appliance doctor"),
    Reason("tls-certificate-unsuitable", "tls", "The certificate may not be used by a TLS client.",
           "A server's certificate was installed in the supplicant.", "appliance agents list"),
    Reason("tls-certificate-missing", "tls", "The supplicant presented no certificate.",
           "No client certificate is configured in the supplicant.",
           "appliance agent request --socket PATH --out DIR --owner ID --wait-approval FILE"),
    Reason("tls-refused-by-supplicant", "tls", "The supplicant broke off the TLS handshake.",
           "It does not trust the RADIUS server: wrong campus root or wrong server name in its configuration.",
           "appliance radius check"),
    Reason("tls-handshake-failed", "tls", "The TLS handshake failed.",
           "No TLS version or cipher in common, a damaged packet, or a signature that does not fit the certificate.",
           "appliance radius check"),
    Reason("eap-not-offered", "tls", "The NAS sent a login without EAP.",
           "The port is configured for MAC authentication or PAP.", "appliance nas list"),
    Reason("eap-method-refused", "tls", "The supplicant does not offer EAP-TLS.",
           "The supplicant is configured for another EAP method.", "appliance nas list"),
    Reason("eap-malformed", "tls", "The supplicant broke the EAP-TLS framing rules.",
           "A faulty or hostile supplicant.", "appliance nas list"),
    Reason("eap-timeout", "tls", "The supplicant did not finish the login in time.",
           "Packets were lost, or the supplicant was switched off.", "appliance nas list"),
    Reason("eap-login-unknown", "tls", "A packet goes on with a login that is not under way here.",
           "The RADIUS server was started again meanwhile, the login was over already, or it is another NAS's.",
           "appliance nas list"),
    Reason("credential-missing", "tls", "The login names no certificate: issuer key or serial number is absent.",
           "The NAC did a session resumption or does not pass the TLS-Client-Cert attributes on.",
           "appliance radius check"),
    Reason("credential-ambiguous", "tls", "The login names more than one certificate.",
           "The NAC passes several issuer keys or serial numbers on.", "appliance radius check"),
    Reason("credential-unreadable", "tls", "Issuer key, serial number or owner extension cannot be read.",
           "A certificate of another make, or a NAC that cuts attributes.", "appliance radius check"),
    Reason("tls-certificate-revoked", "tls", "The certificate is on its CA's revocation list.",
           "Its agent, owner or proxy was revoked.", "appliance agents list"),
    Reason("nas-unknown", "tls", "A RADIUS packet came from an address that is no NAS here.",
           "A new switch, a switch that sends from another of its addresses, or a stranger.",
           "appliance nas list"),
    Reason("radius-secret-wrong", "tls", "The Message-Authenticator of a RADIUS packet does not verify.",
           "The shared secret on the NAS is not the one that is registered here.", "appliance nas list"),
    Reason("radius-not-authenticated", "tls", "A RADIUS packet came without a Message-Authenticator.",
           "Old firmware on the NAS, or an attack (CVE-2024-3596): switch the attribute on at the NAS.",
           "appliance nas list"),
    Reason("radius-malformed", "tls", "A RADIUS packet breaks the rules of RFC 2865.",
           "A faulty or hostile sender.", "appliance nas list"),
    Reason("radius-overloaded", "tls", "Too many logins were under way at once.",
           "A whole building that comes back after a power cut, or a flood.", "appliance doctor"),
    Reason("decision-not-asked", "tls", "The RADIUS server rejected a login without a decision of the appliance.",
           "The appliance was down, slow or not trusted by the RADIUS server, or did not take its question.",
           "appliance radius check"),
    Reason("radius-rejected", "tls", "The RADIUS server rejected the login for a reason that is not known here.",
           "The evidence has its own words.", "appliance radius check"),
    Reason("mac-bypass-off", "tls", "A port asked by MAC address, and the policy has no MAC bypass.",
           "A device that does not speak 802.1X, at a port with MAC authentication.", "appliance policy show"),
    Reason("mac-bypass-unprotected", "tls", "A port asked by MAC address over a transport that can be forged.",
           "The NAS uses RADIUS over UDP; MAC bypass wants RadSec.", "appliance nas list"),
    Reason("mac-bypass-no-address", "tls", "A port asked by MAC address without a MAC address.",
           "The NAS puts something else into Calling-Station-Id.", "appliance nas list"),
    Reason("mac-bypass-stale", "tls", "A port asked by MAC address while the snapshot is too old to be trusted.",
           "The appliance lost its store, or the decision process lost the appliance.", "appliance doctor"),
    # credential
    Reason("credential-unknown", "credential", "The store has no certificate with this issuer and serial number.",
           "Issued by another appliance with the same CA, or the store was restored from an old backup.",
           _EXPLAIN),
    Reason("credential-not-agent", "credential", "The certificate is not an agent's.",
           "A proxy's, server's or NAS's certificate was used for a login.", _EXPLAIN),
    Reason("credential-pending", "credential", "The issuance of this certificate was never completed.",
           "The appliance stopped while issuing; the agent has to ask again.", "appliance agents show <agent>"),
    Reason("credential-revoked", "credential", "The certificate was revoked.",
           "Its agent, owner or proxy was revoked.", "appliance agents show <agent>"),
    Reason("credential-expired", "credential", "The credential has expired.",
           "The agent did not renew in time.", "appliance agents show <agent>"),
    Reason("credential-not-yet-valid", "credential", "The credential is not valid yet.",
           "Clocks disagree.", "appliance doctor"),
    Reason("credential-mismatch", "credential", "The certificate's names are not those that were issued.",
           "A forged or damaged certificate; treat as an attack until shown otherwise.",
           "appliance audit list"),
    Reason("agent-not-registered", "credential", "The agent is not registered.",
           "Its registration was never finished.", "appliance agents show <agent>"),
    Reason("agent-suspended", "credential", "The agent is suspended.",
           "An administrator suspended it.", "appliance agents resume <agent>"),
    Reason("proxy-suspended", "credential", "The proxy is suspended.",
           "An administrator suspended it.", "appliance proxies resume <agent>"),
    Reason("agent-revoked", "credential", "The agent was revoked.",
           "An administrator or its owner revoked it.", "appliance agents show <agent>"),
    # owner
    Reason("owner-absent", "owner", "The credential names no owner (single identity).",
           "It was issued without an owner approval; logins need an owner.", "appliance agents show <agent>"),
    Reason("owner-unknown", "owner", "The directory does not know the owner.",
           "The owner was never imported, or the snapshot is from before the import.", "appliance owners list"),
    Reason("owner-suspended", "owner", "The owner is suspended.",
           "An administrator suspended the owner.", "appliance owners resume <owner>"),
    Reason("owner-revoked", "owner", "The owner was revoked.",
           "The owner left.", "appliance owners list"),
    Reason("owner-not-active", "owner", "The owner is in a state that allows no login.",
           "The directory holds a state that this release does not know.", "appliance owners list"),
    # policy
    Reason("policy-missing", "policy", "No access policy is published.",
           "The appliance is new.", "appliance policy publish FILE"),
    Reason("snapshot-stale", "policy", "The directory snapshot is too old to be trusted.",
           "The appliance lost its store, or the decision process lost the appliance.", "appliance doctor"),
    Reason("department-missing", "policy", "The owner has no department.",
           "The directory's department column is empty.", "appliance owners import FILE.csv"),
    Reason("department-unmapped", "policy", "No rule of the policy takes this owner's department.",
           "A new department, or a rule that wants another owner kind or issuance model.", "appliance policy show"),
    Reason("credential-unmapped", "policy", "No rule of the policy takes this credential, which names no owner.",
           "A proxy or a single-identity credential at a port, site or time that its rules do not name.",
           "appliance policy show"),
    Reason("rule-rejected", "policy", "A rule of the policy rejects this login.",
           "The rule gives its own reason.", "appliance policy show"),
    Reason("mac-bypass", "policy", "A device that asked by MAC address may reach the onboarding VLAN.",
           "A device on its way in, or one that does not speak 802.1X.", "appliance pledges list"),
    Reason("rule-matched", "policy", "A rule of the policy takes this owner's department.",
           "All is well.", "appliance policy show"),
)  # fmt: skip

REASONS: Final[Mapping[str, Reason]] = MappingProxyType({row.code: row for row in _ROWS})


def next_command(code: str, **values: str) -> str:
    """The catalogue's command for `code` with `<name>` places filled where a value is known."""
    command = REASONS[code].next_command
    if "<" not in command:
        return command
    for name, value in values.items():
        if value:
            command = command.replace(f"<{name}>", value)
    return command
