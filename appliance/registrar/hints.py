"""What an administrator can do about a refusal, in one line: the reasons of the registrar, each with its next step.

`{device}` is the serial number or fingerprint to name on the command line, `{maker}` the manufacturer's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_AT_THE_DEVICE = "nothing to do here: the device sent something wrong; look at it, or ask {maker} for newer firmware"
_LATER = "wait, the pledge asks again; if it lasts, look whether the MASA of {maker} is in service"

REFUSED_AHEAD = "masa-refused (fetched ahead)"
"""Where the MASA refused before the device came: a nonceless voucher asks more of us (RFC 8995, section 5.5.4)."""

HINTS: Mapping[str, str] = MappingProxyType(
    {
        # the device's certificate and request
        "client-certificate-missing": "the device shows no IDevID: use a one-time secret, "
        "appliance est secret --for NAME",
        "device-serial-missing": "if {maker} keeps the serial number elsewhere: "
        "appliance manufacturers set {maker} serial-source=hardware-module-name (or common-name)",
        "manufacturer-unknown": "if you trust its maker: appliance manufacturers add MAKER-CA.pem --masa URL "
        "--masa-anchors MASA-TLS-CA.pem",
        "certificate-outside-validity": "if its dates may be ignored: appliance manufacturers set {maker} "
        "ignore-expiry=true; else correct the clock or the device",
        "pledge-not-authorized": "to let it in: appliance pledges admit {device}",
        "waiting-for-admission": "to let it in: appliance pledges admit {device}; else: "
        "appliance pledges refuse {device}",
        "pledge-clash": "two manufacturers' devices share issuer and serial number: compare the anchors in "
        "appliance manufacturers list",
        "request-signer-foreign": "the request was signed by another key than the TLS client's: a relay, or a device "
        "with two keys; do not admit it before you know which",
        "serial-number-mismatch": "the request names another serial number than its certificate: a faulty device, or "
        "somebody trying; look at it",
        "proximity-mismatch": "the device saw another registrar: look for a second one, or a man in the middle, on its "
        "network",
        "nonce-missing": "to take requests without a nonce: registrar.accept_nonceless = true",
        "nonce-invalid": "if {maker} sends longer ones: appliance manufacturers set {maker} dialect=long-nonces",
        "voucher-request-malformed": "if {maker} departs from RFC 8995, allow its dialect: "
        "appliance manufacturers set {maker} dialect=...; else look at the device",
        "voucher-request-signature-invalid": _AT_THE_DEVICE,
        "media-type-unsupported": _AT_THE_DEVICE,
        "voucher-format-not-acceptable": _AT_THE_DEVICE,
        "telemetry-malformed": _AT_THE_DEVICE,
        "rate-limited": "wait, it may ask again later; if many devices start at once: registrar.maker_rate, "
        "registrar.request_rate",
        # its MASA
        "masa-uri-invalid": "the IDevID names no usable MASA: appliance manufacturers set {maker} --masa URL "
        "masa-from=configured",
        "masa-unknown": "appliance manufacturers set {maker} --masa URL",
        "masa-not-allowed": "if that MASA is right: appliance manufacturers set {maker} masas=HOST:PORT, or "
        "masa-addresses=ADDRESS where its name leads to a private address",
        "masa-refused": "ask {maker} whether the device was sold to you; its MASA says no",
        REFUSED_AHEAD: "ask {maker} whether its MASA knows this registrar and whether the device was sold to you; if a "
        "subordinate CA issues its IDevIDs, say so in the column idevid-issuer: appliance pledges import FILE",
        "masa-format-refused": "the MASA of {maker} does not take this voucher format; ask {maker} which it takes",
        "masa-authentication-required": "register this registrar at {maker}, or give credentials: "
        "appliance manufacturers set {maker} masa-client-certificate=FILE masa-client-key=FILE (masa-basic-file=FILE)",
        "masa-credentials-unusable": "correct the files named in appliance manufacturers show {maker}; mode 0600",
        "masa-busy": "wait, the pledge asks again; if its MASA can take more at once: "
        "appliance manufacturers set {maker} masa-concurrency=16",
        "masa-answer-invalid": "the MASA of {maker} answered what RFC 8995 does not allow, in what way says "
        "appliance pledges show {device}: ask {maker}; for another Content-Type alone: "
        "appliance manufacturers set {maker} dialect=untyped-answers",
        "masa-unavailable": _LATER,
        "masa-unreachable": "look at name, firewall and TLS anchors of the MASA: appliance manufacturers show {maker}",
        "masa-timed-out": _LATER,
        "voucher-malformed": "the MASA of {maker} sent no voucher that can be read; ask {maker}",
        "voucher-signature-invalid": "the MASA of {maker} sent a voucher whose signature is broken; ask {maker}",
        "pin-missing": "the MASA of {maker} sent a voucher without our certificate; ask {maker}",
        # its history
        "audit-log-malformed": "the MASA of {maker} sent no audit log that can be read; ask {maker}",
        "device-history-refused": "see the findings in appliance pledges show {device}; to let it in with them: "
        "appliance pledges override {device} --reason TEXT",
        "device-history-unjudged": "EST opens when the MASA of {maker} tells the history; is it in service?",
        # enrolment
        "enrollment-not-open": "look at the last step in appliance pledges show {device}",
        "enrolled-already": "nothing: it has its certificate; a new one needs a new bootstrap of the device",
        "enrollment-credentials-missing": "make a one-time secret: appliance est secret --for NAME",
        "enrollment-secret-invalid": "make a new one-time secret: appliance est secret --for NAME",
        "proxy-revoked": "an identity that was revoked never comes back; to let the device in as a new one: "
        "appliance pledges admit {device}",
        "ldevid-not-accepted": "the certificate is expired, revoked or not ours: let the device bootstrap again",
        "too-many-ldevids": "revoke the proxy if this is strange: appliance proxies revoke {device}; else raise "
        "registrar.max_ldevids",
        "names-not-justified": _AT_THE_DEVICE,
        "enrollment-denied": "nothing: somebody said no in the list of waiting requests; when its time is over it "
        "may ask again",
        "est-label-not-yours": "use the label that the proxy enrolled under (proxy.est_label), or make it a secret "
        "for the other one: appliance est secret --for NAME --label LABEL",
        "csr-attribute-missing": "the device asked what its request must have, and left out what the refusal "
        "names; to let it, set est.csrattrs to tell",
        "tls-linking-failed": "the request is not bound to its TLS connection: something between ends TLS, or the "
        "client uses another binding",
        "name-change-refused": "the request wants another name (ChangeSubjectName); to let it set its common name: "
        "est.renaming under its label",
        "authority-not-wanted": "a registration authority asks where it may not; to let it: est.authorities under that "
        "label",
        "decrypt-key-unknown": "the client names a key that is not in est.shared_keys_file, or not that of its "
        "certificate",
        "key-encryption-required": "the client must name a key that its own is sealed with; to send keys in clear: "
        "est.serverkeygen",
        "key-weak": "the device's key can be computed by others: it must make a new one, with newer firmware if it "
        "made this one itself",
        "key-in-use": "two devices hold the same key: find the copy before you let either in",
        "out-of-order": "nothing: the message came when it meant nothing; the pledge begins again by itself",
        "registrar-certificate-unfit": "the appliance's own certificate is wrong: appliance doctor",
        "interrupted": "nothing: this host stopped in the middle; the pledge asks again by itself",
    }
)

_ELSE = "look up the reason at /problems/{reason} of the console, or in reference/problems.md"


def hint(reason: str, *, device: str = "", maker: str = "", because: str = "") -> str:
    """The line for a reason; `because` is the finer one, where the refusal knew it."""
    text = HINTS.get(because) or HINTS.get(reason) or (_ELSE if reason else "")
    names = {"{device}": device or "SERIAL", "{maker}": maker or "the manufacturer", "{reason}": reason}
    if not maker:
        text = text.replace("set {maker} ", "set NAME ").replace("show {maker}", "show NAME")
    for name, value in names.items():
        text = text.replace(name, _quoted(value) if name != "{reason}" else value)
    return text


def _quoted(value: str) -> str:
    """As it can be pasted into a shell; names of certificates hold anything."""
    if value == "the manufacturer" or all(one.isalnum() or one in "-_.:/@+" for one in value):
        return value
    return "'" + "".join(one if one.isprintable() else "?" for one in value).replace("'", "'\\''") + "'"
