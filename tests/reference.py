"""Writes the generated pages of the manual: `python -m tests.reference`; test_docs.py compares them with the code.

Everything comes from the tables that the code itself runs on, in their order, so a page changes only when they do. What
a table cannot say (what an endpoint is for) stands here beside its name, and a missing entry stops the generator.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from appliance import audit, rollover_states
from appliance.cli import application
from appliance.commands.invocation import EVERYWHERE
from appliance.identity import challenge_states
from appliance.owner.gateway import routes as gateway_routes
from appliance.owner.gateway import states as gateway_states
from appliance.proxy import agent_api
from appliance.registrar.hints import HINTS, hint
from appliance.registrar.maker_options import Options
from appliance.settings import RegistrarSettings, Settings, describe_settings, sample_file
from appliance.store import requests
from appliance.web import routes
from appliance.web.problems import all_leaves, status_of
from appliance.web.routes import Route
from brski import states
from brski.audit_log import RULES, Concern
from brski.dialect import SWITCHES
from est.errors import Refusal
from lab.__main__ import _parser as lab_parser
from lab.misbehave import MISBEHAVIOURS
from tests import reference_radius
from tests.markdown import head, table

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "appliance" / "docs"

PURPOSES: Mapping[str, str] = {
    "est.cacerts": "the CA certificates, as certs-only CMS (RFC 7030, section 4.1)",
    "est.simpleenroll": "first LDevID: by a pledge after its voucher, or with a one-time enrolment secret",
    "est.simplereenroll": "renewal of an LDevID, over TLS with the old one, names unchanged",
    "est.fullcmc": "404: not offered; the answer says what is",
    "est.serverkeygen": "a key pair made here and its certificate, where the EST label makes keys (`est.serverkeygen`)",
    "registrar.csrattrs": "what the caller's CSR must have (`application/csrattrs`)",
    "registrar.request_voucher": "a pledge's voucher-request in, the MASA's voucher out; 202 while it waits",
    "registrar.voucher_status": "the pledge says whether it took the voucher; after a yes its history is judged",
    "registrar.enroll_status": "the pledge or proxy says how its enrolment ended",
    "identity.nonce": "a nonce for an agent key, and the agent identifier that goes with it",
    "identity.enroll": "a composite request in, certificate and WIT out",
    "identity.request_status": "how a request stands; the same result as often as it is asked",
    "identity.challenges": "what waits for the calling owner's answer; a long poll of at most 25 s by `Prefer: wait=N` "
    "(RFC 7240)",
    "identity.answer": "the owner's signed yes or no to a challenge",
    "identity.gateways": "address and pinned key of an owner's gateways, for a proxy that may use them",
    "gateway.enroll": "a proxy's composite request in; 202 until the owner has decided, then what the server answered",
    "identity.spiffe_bundle": "the SPIFFE bundle of the trust domain: who signs certificates and WITs of agents",
    "identity.own_standing": "the calling owner's standing approvals",
    "identity.hand_in_standing": "a standing approval of the calling owner, to be counted from now on",
    "identity.withdraw_standing": "withdraws one for good; credentials issued under it stay",
    "identity.classify_own": "gives a class of `identity.owner_classes` to an agent of the calling owner that has none",
    "identity.own_issued": "everything that was issued in the calling owner's name, and the approvals behind it",
    "identity.trust": "root, names and keys that agents, proxies and verifiers pin",
    "access.decide": "one login as rlm_rest's JSON in, reply attributes out",
    "access.fail": "a login that FreeRADIUS rejected without asking, as rlm_rest's JSON: it gets a row in the log",
    "access.accounting": "one accounting message (RFC 2866) as rlm_rest's JSON in; 204 once it is stored",
    "radius.configuration": "what a RADIUS server on another machine renders from; by its certificate",
    "health.healthz": "200 while the process serves",
    "health.readyz": "200 while it can do its work, 503 with the checks that fail",
    "pki.crl": "the revocation list of an issuing CA, DER",
    "pki.ocsp": "an OCSP request in, its answer out, signed or an error; always 200 (RFC 6960)",
    "pki.ocsp_get": "the same with the request in base64 behind the address, so that caches may answer",
    "audit.checkpoint": "The newest signed checkpoint of the audit log, a compact JWS; 404 before the first one.",
    "audit.key": "The key that checkpoints verify with, a JWK.",
    "pki.ca": "a CA certificate, DER: root, devices, agents, infrastructure, or a later generation by its label",
    "console.openapi": "this table as OpenAPI 3.1",
    "console.problem": "what a reason means; the `type` of every problem document leads here",
    "console.docs": "this manual",
    "scim.config": "what the SCIM server can do (RFC 7644, section 4)",
    "scim.types": "its kinds of resources",
    "scim.type": "one of them",
    "scim.schemas": "the attributes that are kept (RFC 7643, section 7)",
    "scim.schema": "one schema",
    "scim.users": "users that pass a filter, page by page",
    "scim.create_user": "a new user, who becomes an owner; or one that comes back",
    "scim.user": "one user",
    "scim.replace_user": "a user as it is now; `active` stays where it is not said",
    "scim.patch_user": "parts of a user; `active` false suspends the owner",
    "scim.delete_user": "the user is gone for the client, the owner suspended and kept",
    "scim.groups": "groups that pass a filter, page by page",
    "scim.create_group": "a new group",
    "scim.group": "one group, without members where `excludedAttributes` says so",
    "scim.replace_group": "a group as it is now",
    "scim.patch_group": "name or members of a group",
    "scim.delete_group": "the group is gone, its members stay",
    "console.operation": "one administrative operation, for the command line beside a running appliance",
    "agent.nonce": "a nonce for the caller's key, and its agent identifier",
    "agent.enroll": "the agent's request in, with its owner's approval where the agent brings it; the proxy adds "
    "evidence and passes it on, to the server or to the owner's gateway",
    "agent.trust": "the campus root and the RADIUS server's name, for the agent's supplicant",
}

_LISTENERS: Mapping[str, str] = {
    "device": "TCP `web.device_port`, TLS 1.2 or 1.3; a client certificate is asked for and judged per route",
    "decision": "TCP `web.decision_host`:`web.decision_port`, HTTPS",
    "pki": "TCP `web.pki_port`, plain HTTP: everything it answers is signed",
    "console": "TCP `web.console_port`, HTTPS",
    "admin": "Unix socket `HOME/run/admin.sock`, mode 0600, while the appliance runs",
    "agent": "Unix socket of the identity proxy, `proxy.socket`",
    "gateway": "TCP `listen` of an owner's gateway, TLS 1.2 or 1.3 with a server key that proxies pin; only for "
    "proxies with their domain certificate",
}

_TABLES: tuple[tuple[str, Mapping[tuple[Any, Any], Any], str, type[Enum]], ...] = (
    (
        "The pledge about itself",
        states.PLEDGE,
        "Lives in memory on the proxy. Only `enrolled` survives a restart; anything before it begins again with a new "
        "nonce.",
        states.PledgeState,
    ),
    (
        "The registrar about a pledge",
        states.RECORD,
        "Stored in table `pledges`, keyed by IDevID issuer and serial number, written in the transaction of its audit "
        "entry. EST answers the pledge only in "
        + ", ".join(f"`{state.value}`" for state in states.RecordState if state in states.EST_OPEN)
        + ".",
        states.RecordState,
    ),
    (
        "The MASA about a device",
        states.DEVICE,
        "Kept by the manufacturer's service (in the laboratory: the mock MASA). It says whether the device may be "
        "claimed; its audit log forgets nothing.",
        states.DeviceState,
    ),
    (
        "The identity server about a parked request",
        challenge_states.CHALLENGE,
        "Server-mediated model, and wherever others approve beside the agent's owner. Stored in table `challenges`, "
        "one row per request and approver, each arrow one conditional statement in the transaction of its audit "
        "entry; `expired` is not stored, it is what `waiting` is after its time. The credential is begun when enough "
        "approved and the same request is handed in again, with fresh evidence. An arrow that is not here is refused "
        "as `challenge-over`.",
        challenge_states.ChallengeState,
    ),
    (
        "An owner's gateway about a request",
        gateway_states.GATEWAY,
        "Owner-mediated model. Stored in the gateway's own queue file, each arrow one conditional statement together "
        "with the entry in its record of decisions; `expired` is not stored, it is what anything that waits, or an "
        "approval that was not used, is after its time. An arrow that is not here is refused as "
        "`gateway-request-over`.",
        gateway_states.QueueState,
    ),
    (
        "The appliance about the rollover of a CA",
        rollover_states.ROLLOVER,
        "Stored in table `rollovers`, for the root and for each issuing CA alike; each arrow is one conditional "
        "statement in the transaction of its audit entry. `prepared`: the new key and its certificates exist. "
        "`published`: cacerts, trust files, the embedded RADIUS server, CRL and OCSP know both; the servers' chains "
        "hold under both roots. `signing-with-new`: the new one signs, what the old one signed is accepted. "
        "`old-retired`: the old one counts no more. What is not here is refused as `rollover-out-of-order`.",
        rollover_states.RolloverState,
    ),
)


# -- settings


def settings_page() -> str:
    """One table per section, and what each setting takes."""
    parts = [
        head("Settings", "the models in `appliance/settings`"),
        "Precedence: `--set section.key=value`, environment `APPLIANCE_<SECTION>__<KEY>`, the file "
        "`HOME/appliance.toml`, default. Lists are written with commas on the command line and in the environment. An "
        "unknown key stops the start. `appliance settings` shows each value with its origin; `appliance check` "
        "validates them. A complete file to start from: [appliance.toml](appliance.toml).\n",
    ]
    sections: dict[str, list[Sequence[str]]] = {}
    for dotted, default, meaning in describe_settings():
        section, _, key = dotted.partition(".")
        row = (f"`{dotted}`", takes(field(section, key)), f"`{default}`" if default else "", meaning)
        sections.setdefault(section, []).append(row)
    for section, rows in sections.items():
        parts.append(f"## [{section}]\n\n" + table(("setting", "takes", "default", "meaning"), rows))
    return "\n".join(parts)


def field(section: str, key: str) -> FieldInfo:
    """A setting's field in its model."""
    model = Settings.model_fields[section].annotation
    assert model is not None
    found: FieldInfo = model.model_fields[key]
    return found


def takes(info: FieldInfo) -> str:
    """What values a setting takes, in words."""
    kind = info.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(kind))
    if get_origin(kind) is tuple:
        return "list"
    if get_origin(kind) is dict:
        return "tables"
    words = {bool: "true, false", int: "whole number", float: "number", str: "text", Path: "path"}[kind]  # type: ignore[index]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(one, name)}" for one in info.metadata for name, sign in signs.items() if hasattr(one, name)
    ]
    return " ".join([words, ", ".join(limits)]).strip()


# -- commands


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its words, in the order of `--help`."""

    def walk(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield words, command
            return
        for name, one in inner.items():
            yield from walk((*words, name), one)

    yield from walk((), typer.main.get_command(application()))


def cli_page() -> str:
    """Every command with its arguments and options."""
    parts = [
        head("Commands", "the Typer application in `appliance/cli.py`"),
        f"{EVERYWHERE}\n\n`--home` is `$APPLIANCE_HOME` where it is not given, then a per-user state folder. While "
        "`appliance run` holds a home, administrative commands reach it through `HOME/run/admin.sock`; otherwise they "
        "open the home themselves. Exit status: 0 done, 1 refused or failed (one line on standard error), 2 usage. "
        "`-o json` prints the result as JSON. `appliance --version` prints the version.\n",
    ]
    group = ""
    nouns = typer.main.get_command(application()).commands  # type: ignore[attr-defined]
    for words, command in commands():
        noun = words[0] if len(words) > 1 else ""
        if noun != group:
            group = noun
            parts.append(f"## appliance {noun}\n\n{nouns[noun].help}\n")
        parts.append(_command(words, command))
    return "\n".join(parts)


def _command(words: Sequence[str], command: Any) -> str:
    shown = [one for one in command.params if one.name != "help"]
    usage = ["appliance", *words]
    rows = []
    for one in shown:
        is_option = one.opts[0].startswith("-")
        name = one.opts[0] if is_option else (one.metavar or one.name.upper())
        value = "" if not is_option or one.is_flag else f" {one.metavar or _value_of(one)}"
        usage.append(f"{name}{value}" if one.required else f"[{name}{value}]")
        default = "required" if one.required else "" if one.default in (None, "", False) else f"`{one.default}`"
        rows.append((f"`{name}`", one.help or "", default))
    options = "\n" + table(("argument or option", "meaning", "default"), rows) if rows else ""
    return f"### appliance {' '.join(words)}\n\n    {' '.join(usage)}\n\n{command.help}\n{options}"


def _value_of(option: Any) -> str:
    return "N" if isinstance(option.default, int | float) else option.opts[0].strip("-").replace("-", "_").upper()


# -- HTTP


def http_page() -> str:
    """The route tables of the appliance, of the proxy's socket and of an owner's gateway."""
    parts = [
        head(
            "HTTP API",
            "`ROUTES` in `appliance/web/routes.py`, `appliance/proxy/agent_api.py` and "
            "`appliance/owner/gateway/routes.py`",
        ),
        "Refusals are RFC 9457 problem documents (`application/problem+json`) with a stable `reason` and a "
        "`request_id`; below `/.well-known/` they are one line of text. All reasons: [problems](problems.md). Paths "
        "that are not here are 404, other methods 405 with `Allow`. 202, 429 and 503 carry `Retry-After`. `{name}` "
        "stands for one path segment, `{name*}` for the rest of the path.\n\n"
        "Who: *anyone* needs nothing; *certificate* needs a client certificate that the service then judges; *token* "
        "needs `Authorization: Bearer`; *uid* is whoever may open the socket. Rate: *address* counts per address until "
        "the certificate is one of ours and per certificate then; *identity* counts per caller; *none* is unlimited.\n",
    ]
    every: tuple[Route, ...] = (*routes.ROUTES, *agent_api.ROUTES, *gateway_routes.ROUTES)
    for listener, where in _LISTENERS.items():
        rows = [
            (
                f"`{one.method} {one.path}`",
                PURPOSES[one.endpoint],
                one.who,
                ", ".join(f"`{kind}`" for kind in sorted(one.media_types)) or "any",
                f"{one.max_body // 1024} KiB" if one.max_body else "none",
                one.rate,
                f"{one.seconds:g} s",
            )
            for one in every
            if one.listener == listener
        ]
        names = ("route", "what it does", "who", "media types", "body", "rate", "deadline")
        parts.append(f"## {listener}\n\n{where}.\n\n" + table(names, rows))
    return "\n".join(parts)


# -- refusals


def problems_page() -> str:
    """Every refusal with its status, by package."""
    parts = [
        head("Problems", "the refusal classes and the status table in `appliance/web/statuses.py`"),
        "Every refusal has a stable reason: in the `reason` of a problem document, in the audit log, and on standard "
        "error. A running appliance explains each at `/problems/<reason>` of its console port. Statuses are those of "
        "the appliance's own HTTP ports; refusals of pledge, agent and owner tool never travel over HTTP, and their "
        "status says only of which kind they are.\n",
    ]
    groups: dict[str, list[Sequence[str]]] = {}
    for leaf in sorted(all_leaves(), key=lambda leaf: leaf.reason):
        place = ".".join(leaf.__module__.split(".")[: 2 if leaf.__module__.startswith("appliance.") else 1])
        status = status_of(leaf)
        row = (f"`{leaf.reason}`", "none" if status is None else str(status), summary(leaf))
        groups.setdefault(place, []).append(row)
    for place in sorted(groups):
        parts.append(f"## {place}\n\n" + table(("reason", "status", "meaning"), groups[place]))
    return "\n".join(parts)


def summary(leaf: type[Refusal]) -> str:
    """The first paragraph of a class's docstring on one line."""
    return re.sub(r"\s+", " ", inspect.cleandoc(leaf.__doc__ or "").partition("\n\n")[0])


# -- audit


def audit_page() -> str:
    """Every audit event."""
    return "\n".join(
        [
            head("Audit events", "`EVENTS` in `appliance/audit.py`"),
            "`appliance audit list | verify | export` read the log. An entry is canonical JSON with the members `seq`, "
            "`time`, `event`, `actor` (`kind`, `identifier`, `fingerprint`, `address`), `object`, `outcome` (`done`, "
            "`refused`, `failed`), `reason`, `request_id`, `fields`; its hash is SHA-256 over the previous hash and "
            "that JSON. It is written in the transaction of the change that it tells of. CSRs, vouchers and tokens "
            "appear by their SHA-256; secrets never do.\n",
            table(("event", "meaning"), [(f"`{name}`", text) for name, text in audit.EVENTS.items()]),
        ]
    )


# -- laboratory and states


def misbehaviours_page() -> str:
    """The knobs of the lab's MASA."""
    rows = [
        (f"`{one.name}`", one.effect, f"`{one.default}`" if one.default else "takes none", one.requirement)
        for one in MISBEHAVIOURS
    ]
    return "\n".join(
        [
            head("Misbehaviours", "`MISBEHAVIOURS` in `lab/misbehave.py`"),
            "Knobs that make the laboratory's MASA wrong on purpose: `python -m lab masa --dir DIR --break KNOB,KNOB`. "
            "`python -m lab break` lists them. For laboratories only.\n",
            table(("knob", "effect", "value", "requirement shown"), rows),
            "## The MASA that they break\n",
            "It keeps every check of RFC 8995, sections 5.5 to 5.8, and forgets nothing: sales, vouchers and log are "
            "in DIR/masa.sqlite, committed before a voucher leaves. Options of `python -m lab masa`:\n",
            table(("option", "what it does"), _options("masa")),
            "On the same port, for tests, a corner without authentication:\n",
            table(
                ("request", "what it does"),
                [
                    ("`GET /lab/requests`", "what was asked and answered, oldest first, with the SHA-256 of each body"),
                    ("`DELETE /lab/requests`", "forget everything: requests, log, states, sales"),
                    ("`PUT /lab/broken`", "a JSON list of knobs, in place of those of the start"),
                    ("`GET /lab/devices/SERIAL`", "state, owners, buyers and log of a device"),
                    (
                        "`PUT /lab/devices/SERIAL`",
                        '`{"event": "blocked"}`, `{"event": "released"}`, or `{"sold_to": PEM}`: only a buyer\'s '
                        "domain gets `verified` vouchers",
                    ),
                ],
            ),
        ]
    )


def dialects_page() -> str:
    """What may be tolerated of one manufacturer's devices and MASA."""
    return "\n".join(
        [
            head("Dialects", "`SWITCHES` in `brski/dialect.py`"),
            "Implementations in the field depart from RFC 8995 and RFC 8366. What is tolerated is said for each "
            "manufacturer, as a list of switches such as `base64-bodies,legacy-key`; nothing is tolerated unless it is "
            "named. No switch touches a signature, a chain, a serial number or the comparison of nonces.\n",
            "Read in every dialect: eContentType id-data beside the voucher's own, dates with up to nine fraction "
            "digits, idevid-issuer as extension value or bare key identifier, a MASA URI without its ASN.1 wrapper, "
            "leaves that nobody knows, status messages whose version is a string.\n",
            table(("switch", "what is tolerated"), [(f"`{name}`", meaning) for name, meaning in SWITCHES.items()]),
        ]
    )


def _options(verb: str) -> list[tuple[str, str]]:
    """The options of a verb of the laboratory, out of its own parser."""
    (verbs,) = (one for one in lab_parser()._actions if isinstance(one, argparse._SubParsersAction))
    options = [one for one in verbs.choices[verb]._actions if one.dest != "help"]
    return [(f"`{' '.join(filter(None, (one.option_strings[0], one.metavar)))}`", one.help or "") for one in options]


def states_page() -> str:
    """The state tables, drawn."""
    where = (
        "brski/states.py",
        "appliance/identity/challenge_states.py",
        "appliance/owner/gateway/states.py",
        "appliance/rollover_states.py",
    )
    parts = [
        head("States", "the tables in " + ", ".join(f"`{one}`" for one in where)),
        "A record moves only along an arrow; anything else is refused (`out-of-order`, where not said otherwise) and "
        "changes nothing. Events "
        "are facts that were checked before. A hyphen in a name is an underscore in the picture's source.\n",
    ]
    for title, moves, text, kinds in _TABLES:
        first = next(iter(kinds))
        aliases = [
            f'    state "{one.value}" as {one.value.replace("-", "_")}' for one in kinds if "-" in str(one.value)
        ]
        kind, *rows = states.diagram(moves).splitlines()
        start = f"    [*] --> {str(first.value).replace('-', '_')}"
        parts.append(f"## {title}\n\n{text}\n\n```mermaid\n" + "\n".join([kind, *aliases, start, *rows]) + "\n```\n")
    return "\n".join(parts)


def pictures_page() -> str:
    """Each issuance model as one picture: where a request waits, drawn from its table, and what all have in common."""
    parts = [
        head(
            "The issuance models, drawn",
            "`appliance/owner/gateway/states.py`, `appliance/identity/challenge_states.py` and "
            "`appliance/store/requests.py`",
        ),
        "One request on its way to a credential. Boxes are the places that keep it, in a database file; what is inside "
        "survives a kill. The last box is the same in all three: there nonce, request and approval are spent in one "
        "transaction. What the models promise and what attacks them: [issuance models](issuance-models.md).\n",
    ]
    common = [
        "    state server {",
        f"        [*] --> {requests.PENDING}: nonce, request and approval spent",
        f"        {requests.PENDING} --> {requests.PENDING}: taken up after a crash",
        f"        {requests.PENDING} --> {requests.ISSUED}: signed and checked",
        "    }",
        "    server --> [*]: 201",
    ]
    waits: Mapping[str, tuple[str, Mapping[tuple[Any, Any], Any], type[Enum], str, str]] = {
        "Owner-mediated": (
            "gateway", gateway_states.GATEWAY, gateway_states.QueueState, "the proxy hands it to the owner's gateway",
            "the gateway submits what is approved, with the proxy's fresh evidence",
        ),
        "Server-mediated": (
            "parked", challenge_states.CHALLENGE, challenge_states.ChallengeState, "the proxy hands it to the server",
            "the agent hands it in again, with fresh evidence",
        ),
    }  # fmt: skip
    direct = ["stateDiagram-v2", "    [*] --> server: the agent brings request and approval, its proxy adds evidence"]
    parts.append("## Agent-mediated\n\n```mermaid\n" + "\n".join([*direct, *common]) + "\n```\n")
    for title, (box, moves, kinds, begins, goes_on) in waits.items():
        first = next(iter(kinds))
        inner = [f"        [*] --> {first.value}", *(f"    {row}" for row in states.diagram(moves).splitlines()[1:])]
        lines = [
            "stateDiagram-v2", f"    [*] --> {box}: {begins}", f"    state {box} {{", *inner, "    }",
            f"    {box} --> server: {goes_on}", *common,
        ]  # fmt: skip
        parts.append(f"## {title}\n\n```mermaid\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


# -- the registrar


def manufacturers_page() -> str:
    """Every option of a manufacturer."""
    rows = []
    for name, info in Options.model_fields.items():
        default = ",".join(info.default) if isinstance(info.default, tuple) else str(info.default)
        shown = default.lower() if isinstance(info.default, bool) else default
        rows.append((f"`{name.replace('_', '-')}`", f"`{shown}`" if shown else "", info.description or ""))
    return "\n".join(
        [
            head("Options of a manufacturer", "the model in `appliance/registrar/maker_options.py`"),
            "Given as OPTION=VALUE to `appliance manufacturers add` and `appliance manufacturers set`; lists have "
            "commas. `appliance manufacturers show` prints them, with `_` for `-`. The switches of `dialect`: "
            "[dialects](dialects.md).\n",
            table(("option", "default", "meaning"), rows),
        ]
    )


def history_page() -> str:
    """Every rule over a device's history."""
    default = get_args(RegistrarSettings.model_fields["audit_refuse"].annotation)[0]
    assert set(get_args(default)) == {one.value for one in Concern}
    refusing = RegistrarSettings().audit_refuse
    rows = [(f"`{one.value}`", "refuses" if one.value in refusing else "is reported", RULES[one]) for one in RULES]
    return "\n".join(
        [
            head("Rules over a device's history", "`RULES` in `brski/audit_log.py`"),
            "`registrar.audit_refuse` lists the rules that keep a device out (RFC 8995, section 5.8.3); the others are "
            "reported in its record. How to read and override a judgement: "
            "[judge a device's history](../howto/judge-a-history.md).\n",
            table(("rule", "by default", "what it says"), rows),
        ]
    )


def hints_page() -> str:
    """What to do about each refusal at the registrar."""
    return "\n".join(
        [
            head("What to do", "`HINTS` in `appliance/registrar/hints.py`"),
            "The line that `appliance pledges knocking`, `appliance pledges list` and `appliance pledges show` give "
            "for a reason, with the names filled in.\n",
            table(("reason", "what an administrator can do"), [(f"`{name}`", hint(name)) for name in HINTS]),
        ]
    )


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/settings.md": settings_page,
    "reference/appliance.toml": sample_file,
    "reference/cli.md": cli_page,
    "reference/http-api.md": http_page,
    "reference/problems.md": problems_page,
    "reference/audit-events.md": audit_page,
    "reference/radius-attributes.md": reference_radius.attributes_page,
    "reference/reason-codes.md": reference_radius.reasons_page,
    "reference/nas-profiles.md": reference_radius.profiles_page,
    "reference/dialects.md": dialects_page,
    "reference/misbehaviours.md": misbehaviours_page,
    "reference/manufacturers.md": manufacturers_page,
    "reference/history-rules.md": history_page,
    "reference/what-to-do.md": hints_page,
    "explanation/states.md": states_page,
    "explanation/model-pictures.md": pictures_page,
}
"""Every generated file by its path below appliance/docs, and what makes it."""


def main() -> None:
    """Writes every page."""
    for name, make in PAGES.items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
