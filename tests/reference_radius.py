"""The generated pages about RADIUS: attributes and reason codes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources

from radius import (
    AccessRequest,
    Credential,
    CredentialRef,
    Facts,
    OwnerFact,
    Policy,
    decide,
    read_policy,
    to_attributes,
)
from radius.dynamic import CANNOT, CAUSES
from radius.hook import AKI, EXTENSION_PREFIX, NAS_ADDRESS, NAS_NAME, SAN, SERIAL, TLS_VERSION
from radius.nas_profiles import PROFILES, Order
from radius.reasons import REASONS, STAGES
from radius.wire import DISCONNECT_REQUEST
from tests.markdown import head, table


def attributes_page() -> str:
    """What is sent, what is read from FreeRADIUS, and the dictionary of the laboratory's peers."""
    sent: dict[str, dict[str, str]] = {}
    for verdict, department in (("accept", "R&D"), ("guest", "Astrology"), ("reject", "")):
        decision = decide(*_example(department or None))
        assert decision.verdict == verdict
        for one in to_attributes(decision):
            sent.setdefault(f"{one.name} ({one.code})", {})[verdict] = one.text
    rows = [
        (f"`{name}`", *(f"`{by[verdict]}`" if verdict in by else "" for verdict in ("accept", "guest", "reject")))
        for name, by in sent.items()
    ]
    read = (
        (AKI, "names the issuing CA; must be there exactly once"),
        (SERIAL, "the certificate's serial number; must be there exactly once"),
        (f"{EXTENSION_PREFIX}`*arc*`.2", "the OwnerId extension; compared with the store's row, never looked up"),
        (SAN, "the agent's name; compared with the store's row"),
        (NAS_NAME, "name of the NAS, put there by the rendered virtual server"),
        (NAS_ADDRESS, "address that its packets came from, likewise"),
        (TLS_VERSION, "TLS version, likewise"),
        ("NAS-Identifier", "used where the NAS has no name"),
        ("NAS-IP-Address", "used where the address is missing"),
        ("NAS-Port-Id", "the port, for the log; else NAS-Port"),
        ("Calling-Station-Id", "MAC address of the supplicant, for the log"),
        ("Called-Station-Id", "MAC address of the NAS, for the log"),
        ("User-Name", "the outer EAP identity: free text, logged, never interpreted"),
        ("Acct-Session-Id", "session, for the log and the table of sessions"),
    )
    return "\n".join(
        [
            head("RADIUS attributes", "`radius/attributes.py`, `radius/hook.py` and `radius/dictionary`"),
            "## What a login is answered\n\nExamples out of the real decision function. The tunnel attributes are "
            "those of RFC 3580, section 3.31, untagged. RFC 3579, section 2.6.5 "
            "wants no `Reply-Message` beside EAP: an accept has none; a reject has one for the NAS's log all the same, "
            "unless `access.reply_message` is off. "
            "The embedded server adds the MS-MPPE keys to every accept.\n",
            table(("attribute", "accept", "guest", "reject"), rows),
            "## What is read from FreeRADIUS\n\nrlm_rest posts every attribute of the login; these count. A missing or "
            "repeated issuer key or serial number is a reject.\n",
            table(("attribute", "use"), [(f"`{name}`", use) for name, use in read]),
            "## Dictionary of the laboratory's RADIUS peers\n",
            table(("attribute", "number", "type", "vendor"), list(dictionary())),
        ]
    )


def profiles_page() -> str:
    """What each kind of NAS is asked for."""
    rows = [
        (f"`{one.name}`", one.about, *(_order(one.order(want)) for want in ("change", "reauthenticate", "end")),
         "must" if one.signs_answers else "if it does")
        for one in PROFILES.values()
    ]  # fmt: skip
    causes = [
        (str(number), f"`{words}`", "never asked again" if number in CANNOT else "") for number, words in CAUSES.items()
    ]
    return "\n".join(
        [
            head("NAS profiles", "`PROFILES` in `radius/nas_profiles.py` and `CAUSES` in `radius/dynamic.py`"),
            "How `appliance nas add` and `appliance nas set` say what a NAS understands. A change is a login that "
            "stays good with another VLAN or role; an end is one that is good no more. `hostapd` was tried against "
            "hostapd, all orders against a NAS made with pyrad; the vendors' attributes are those of their manuals. "
            "Setting it up: [change live sessions](../howto/change-live-sessions.md).\n",
            table(("profile", "NAS", "change", "login anew", "end", "answers signed"), rows),
            "## Error-Cause\n\nWhat a NAS may say with its no (RFC 5176, section 3.6). After a cause that says never, "
            "a CoA is followed by a Disconnect; `session-context-not-found` ends the session here.\n",
            table(("number", "cause", ""), causes),
        ]
    )


def _order(order: Order) -> str:
    kind = "Disconnect-Request" if order.code == DISCONNECT_REQUEST else "CoA-Request"
    parts = ["the new reply attributes"] if order.with_attributes else []
    for vendor, code, value in order.vendor:
        text = value.decode() if value.isascii() and value.decode().isprintable() else str(int.from_bytes(value, "big"))
        parts.append(f"vendor {vendor}, type {code}: `{text}`")
    return kind + (" with " + "; ".join(parts) if parts else "")


def dictionary() -> Iterator[tuple[str, str, str, str]]:
    """The rows of radius/dictionary/dictionary: name, number, type, vendor."""
    vendor = ""
    text = (resources.files("radius") / "dictionary" / "dictionary").read_text(encoding="utf-8")
    for line in text.splitlines():
        match line.split():
            case ["BEGIN-VENDOR", name]:
                vendor = name
            case ["END-VENDOR", *_]:
                vendor = ""
            case ["ATTRIBUTE", name, number, kind, *flags]:
                yield f"`{name}`", number, " ".join([kind, *flags]), vendor


def _example(department: str | None) -> tuple[AccessRequest, Credential, Facts, Policy]:
    policy = read_policy(
        "version = 1\n[vlans]\nresearch = 20\nguest = 99\n"
        '[[rule]]\nname = "research"\ndepartment = "R&D"\nvlan = "research"\n',
        revision=1,
    )
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    origin, uuid = "spiffe://campus.example", "7f3a5d1e-0c4b-4a86-9d52-1b6c8e2f4a70"
    agent, owner = f"{origin}/agent/{uuid}", f"{origin}/owner/2b1f9c64-58d7-4e0a-8c3d-6a9e7b5d1f02"
    credential = Credential(
        "dual", agent, owner, 7, "agents", "issued", now, now + timedelta(hours=8), "agent-mediated", uuid
    )
    state = "active" if department else "suspended"
    facts = Facts(now, OwnerFact(owner, state, (department,) if department else ()))
    return AccessRequest(credential=CredentialRef("77c1", 7)), credential, facts, policy


def reasons_page() -> str:
    """The catalogue of decision reasons, stage by stage."""
    parts = [
        head("Reason codes", "`REASONS` in `radius/reasons.py`"),
        "Every decision carries one of these, in the decision log, in `appliance policy explain`, and a reject in its "
        "Reply-Message too. The stage is where the login stopped; what follows it was not looked at. How to read a "
        "decision: [the decision log](../howto/read-the-decision-log.md).\n",
    ]
    for stage in STAGES:
        rows = [
            (f"`{one.code}`", one.meaning, one.likely_cause, f"`{one.next_command}`")
            for one in REASONS.values()
            if one.stage == stage
        ]
        parts.append(f"## {stage}\n\n" + table(("code", "meaning", "likely cause", "next command"), rows))
    return "\n".join(parts)
