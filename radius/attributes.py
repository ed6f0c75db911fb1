"""Decision -> RADIUS reply attributes: RFC 2868 tunnel attributes as RFC 3580, section 3.31 uses them for VLANs.

The three tunnel attributes are untagged: VLANs are digits or a name that begins with a letter, so the first octet of
Tunnel-Private-Group-Id can never be read as a tag (RFC 2868, section 3.6). A role travels as Aruba-User-Role (vendor
14823), which other makers read too; Filter-Id is the standard's name for what a switch shall apply. A session with an
end is asked again, not dropped: Termination-Action is RADIUS-Request (RFC 3580, section 3.17). A reject carries none of
all that.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from radius.decide import Decision
from radius.request import clean_text

TUNNEL_TYPE_VLAN: Final = 13
TUNNEL_MEDIUM_IEEE_802: Final = 6
MAX_VALUE_BYTES: Final = 253


class Attribute(NamedTuple):
    """One reply attribute: dictionary name, type octet (RFC 2865), the value as text and as octets, a vendor or 0."""

    name: str
    code: int
    text: str
    octets: bytes
    vendor: int = 0


ARUBA: Final = 14823
_AGAIN: Final = Attribute("Termination-Action", 29, "RADIUS-Request", (1).to_bytes(4, "big"))
_VLAN: Final = (
    Attribute("Tunnel-Type", 64, "VLAN", TUNNEL_TYPE_VLAN.to_bytes(4, "big")),
    Attribute("Tunnel-Medium-Type", 65, "IEEE-802", TUNNEL_MEDIUM_IEEE_802.to_bytes(4, "big")),
)


def to_attributes(decision: Decision, *, reply_message: bool = True) -> tuple[Attribute, ...]:
    """What goes into the Access-Accept or Access-Reject for `decision`, in wire order.

    Accept and guest: VLAN, User-Name (the agent, so that accounting follows the certificate and not the outer EAP
    identity), Class (the issuing transaction), and what the rule adds. `reply_message` adds the reason in words.
    """
    found: list[Attribute] = []
    vlan = decision.vlan
    if decision.verdict != "reject" and vlan is not None and (vlan if isinstance(vlan, str) else 1 <= vlan <= 4094):
        found += _VLAN
        found.append(_text("Tunnel-Private-Group-Id", 81, str(vlan)))
        if 0 < len(decision.agent_id) <= MAX_VALUE_BYTES and decision.agent_id.isascii():
            found.append(_text("User-Name", 1, decision.agent_id))
        if decision.txn:
            found.append(_text("Class", 25, decision.txn))
        if decision.filter_id:
            found.append(_text("Filter-Id", 11, decision.filter_id))
        if decision.role:
            found.append(_text("Aruba-User-Role", 1, decision.role)._replace(vendor=ARUBA))
        if (seconds := decision.session_timeout) is not None:
            found.append(Attribute("Session-Timeout", 27, str(seconds), seconds.to_bytes(4, "big")))
            found.append(_AGAIN)
    if reply_message:
        found.append(_text("Reply-Message", 18, message(decision)))
    return tuple(found)


def message(decision: Decision) -> str:
    """One line for the user: verdict, reason code, meaning. No department, owner or agent: switches log it."""
    head = "rejected" if decision.vlan is None else f"VLAN {decision.vlan}"
    return f"{head}: {decision.reason_code}: {decision.note or decision.reason}"


def _text(name: str, code: int, value: str) -> Attribute:
    if len(value) <= MAX_VALUE_BYTES and value.isascii() and value.isprintable():
        return Attribute(name, code, value, value.encode())
    octets = clean_text(value).encode("utf-8", "replace")[:MAX_VALUE_BYTES].decode("utf-8", "ignore").encode()
    return Attribute(name, code, octets.decode(), octets)
