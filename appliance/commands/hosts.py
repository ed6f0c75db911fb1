"""Verbs that run on other machines: the identity proxy, the owner's tool, the reference agent."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.commands.gateway import as_events, gateway
from appliance.commands.invocation import FileUnreadable, group, invocation, passphrase, show, tell

if TYPE_CHECKING:
    from appliance.binding.webauthn import Authenticator
    from appliance.owner.review import ReviewCard
    from appliance.settings import ProxySettings
    from est.signer import Signer

proxy = group("The identity proxy (runs beside the agents).")
owner = group("The owner's tool (runs with the owner).")
agent = group("The reference agent.")
owner.add_typer(gateway, name="gateway")

KeyOption = Annotated[
    Path,
    typer.Option(
        help="The approval key that `keygen` made, or what stands for one: passkey.json, token-key.json, tpm-key.json."
    ),
]
OwnerOption = Annotated[str, typer.Option("--owner", help="Your owner identifier.")]
RequestOption = Annotated[Path, typer.Option(help="The agent's request.")]
CsrOption = Annotated[Path | None, typer.Option(help="The agent's PKCS#10, when the request names one.")]
ServerOption = Annotated[str, typer.Option(help="Server identifier that you work with; default: shown, not compared.")]

BesideOption = Annotated[
    str, typer.Option("--beside", help="The agent's own owner, where that is not you and you approve beside it.")
]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as cause:
        raise FileUnreadable(f"cannot read {path}: {cause.strerror}") from cause


def approval_key(path: Path) -> Signer | Authenticator:
    """The owner's approval key: in a file, or in a token, TPM or passkey for which a file stands."""
    from appliance.owner.keys import load
    from appliance.owner.passkey import is_passkey_file, load_passkey
    from appliance.owner.token_key import is_token_file, load_token_key
    from appliance.owner.tpm_key import is_tpm_file, load_tpm_key

    if is_tpm_file(path):
        return load_tpm_key(path, passphrase=passphrase())
    if is_token_file(path):
        return load_token_key(path)
    return load_passkey(path) if is_passkey_file(path) else load(path, passphrase=passphrase())


@proxy.command("run")
def proxy_run(
    state: Annotated[Path, typer.Option(help="State folder: keys, certificate, anchors.")],
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="Settings file with a [proxy] section.")
    ] = None,
    gateway_config: Annotated[
        Path | None, typer.Option("--gateway", help="Run this owner's gateway too, in the same process: its file.")
    ] = None,
    gateway_state: Annotated[
        Path | None, typer.Option(help="The gateway's state folder; default: `gateway` in --state.")
    ] = None,
) -> None:
    """Bootstrap if needed, keep the LDevID fresh, serve the Agent API; in the foreground, SIGTERM stops it."""
    from appliance.clock import SystemClock
    from appliance.log import set_up_logging
    from appliance.proxy.run import run_proxy
    from appliance.settings import load_settings

    found = load_settings(state, invocation().assignments, file=settings_file)

    set_up_logging(found.settings.log)
    if gateway_config is None:
        asyncio.run(run_proxy(found.settings.proxy, state, SystemClock(), tell))
    else:
        work = _proxy_with_gateway(found.settings.proxy, state, gateway_config, gateway_state or state / "gateway")
        asyncio.run(work)


async def _proxy_with_gateway(settings: ProxySettings, state: Path, config: Path, gateway_state: Path) -> None:
    """One to one: proxy and owner's gateway in one process, each with its own keys, and TLS between them (A-51)."""
    from appliance.clock import SystemClock
    from appliance.owner.gateway.config import load_gateway_config
    from appliance.owner.gateway.run import run_gateway
    from appliance.proxy.run import run_proxy

    clock, found = SystemClock(), load_gateway_config(config)
    beside = asyncio.create_task(run_gateway(found, gateway_state, clock, as_events, passphrase=passphrase()))
    serving = asyncio.create_task(run_proxy(settings, state, clock, tell))
    try:
        await asyncio.wait((beside, serving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (beside, serving):
            task.cancel()
        await asyncio.wait((beside, serving))
    for task in (serving, beside):
        if not task.cancelled():
            task.result()


@proxy.command("attestation-key")
def proxy_attestation_key(
    tcti: Annotated[str, typer.Option("--tpm", help="TCTI of the TPM.")] = "device:/dev/tpmrm0",
    pcrs: Annotated[str, typer.Option(help="Registers to show, separated by commas.")] = "0,2,4,7",
) -> None:
    """Show what an appraisal policy wants to know of this machine: its TPM's quoting key, and its registers now."""
    import secrets

    from appliance import tpm
    from est.keys import spki_sha256

    made = tpm.quote(tcti, [int(one) for one in pcrs.split(",") if one.strip().isdecimal()], secrets.token_bytes(32))
    registers = {str(number): value.hex() for number, value in made.pcrs.items()}
    show({"attestation_key": spki_sha256(made.key).hex(), "pcrs": registers})


@proxy.command("join")
def proxy_join(
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="Settings file with a [join] section.")
    ] = None,
) -> None:
    """Join proxy: carry pledges' connections to the registrar, octet for octet; in the foreground, SIGTERM stops it."""
    from appliance.clock import SystemClock
    from appliance.log import set_up_logging
    from appliance.proxy.join import run_join
    from appliance.settings import load_settings
    from appliance.signals import until_signalled

    found = load_settings(None, invocation().assignments, file=settings_file)
    set_up_logging(found.settings.log)
    asyncio.run(until_signalled(run_join(found.settings.join, SystemClock(), tell)))


@owner.command("keygen")
def owner_keygen(
    out: Annotated[Path, typer.Option(help="Folder for key and statement.")],
    ref: Annotated[str, typer.Option(help="You, as the campus directory calls you.")],
    trust_domain: Annotated[str, typer.Option(help="The campus' trust domain.")] = "campus.example",
    scheme: Annotated[str, typer.Option(help="spiffe or wimse.")] = "spiffe",
    pkcs11_module: Annotated[Path | None, typer.Option(help="PKCS#11 library: make the key in its token.")] = None,
    card: Annotated[str, typer.Option("--token", help="Label of the token.")] = "owner",
    pin_file: Annotated[Path | None, typer.Option(help="File with the token's PIN, mode 0600.")] = None,
    label: Annotated[str, typer.Option(help="How the key's label in the token begins.")] = "owner",
    tpm: Annotated[str, typer.Option(help="TCTI of a TPM 2.0, such as device:/dev/tpmrm0: make the key in it.")] = "",
) -> None:
    """Make an approval key and the statement that the administrator registers; --passphrase-file encrypts the key.

    With --pkcs11-module or --tpm the key is made in a token or TPM and stays there.
    """
    from appliance.clock import SystemClock
    from appliance.owner.keys import keygen
    from appliance.owner.token_key import keygen_in_token
    from appliance.owner.tpm_key import keygen_in_tpm

    if tpm and pkcs11_module is not None:
        raise typer.BadParameter("either --pkcs11-module or --tpm")
    now, audience = SystemClock().now(), f"{scheme}://{trust_domain}"
    if tpm:
        made = keygen_in_tpm(out, ref=ref, audience=audience, now=now, tcti=tpm, passphrase=passphrase())
    elif pkcs11_module is None:
        made = keygen(out, ref=ref, audience=audience, now=now, passphrase=passphrase())
    elif pin_file is None:
        raise typer.BadParameter("--pkcs11-module wants --pin-file")
    else:
        made = keygen_in_token(
            out,
            ref=ref,
            audience=audience,
            now=now,
            module=pkcs11_module,
            token=card,
            pin_file=pin_file,
            label=label,
        )
    show(
        {
            "key": str(made.key_file),
            "statement": str(made.statement_file),
            "jkt": made.jkt,
            "encrypted": made.is_encrypted,
            "next": f"give the statement to your administrator: appliance owners add-key {ref} owner-key.jwt",
        }
    )


def _card(owner_id: str, request: Path, csr: Path | None, server_id: str, beside: str) -> ReviewCard:
    from appliance.clock import SystemClock
    from appliance.owner.review import review

    return review(
        _bytes(request),
        owner_id=owner_id,
        now=SystemClock().now(),
        csr_der=_bytes(csr) if csr else None,
        server_id=server_id or None,
        beside=beside or None,
    )


@owner.command("review")
def owner_review(
    owner_id: OwnerOption,
    request: RequestOption,
    csr: CsrOption = None,
    server_id: ServerOption = "",
    beside: BesideOption = "",
) -> None:
    """Show exactly what would be signed, decoded from the request's bytes."""
    from appliance.owner.review import render

    card = _card(owner_id, request, csr, server_id, beside)
    asked = card.request
    facts = {
        "agent": asked.sub, "owner": asked.owner, "server": asked.aud, "jkt": asked.jkt, "code": card.short_code,
        "model": str(asked.model), "purpose": asked.purpose, "profiles": list(asked.profiles), "ttl_seconds": asked.ttl,
        "expires": asked.exp, "claimed_label": asked.label, "request_sha256": asked.rqh,
    }  # fmt: skip
    show(facts, text=render(card))


@owner.command("sign")
def owner_sign(
    owner_id: OwnerOption,
    key: KeyOption,
    request: RequestOption,
    out: Annotated[Path, typer.Option(help="Where the approval goes.")],
    csr: CsrOption = None,
    server_id: ServerOption = "",
    code: Annotated[str, typer.Option(help="The short code that the proxy or administrator shows; must match.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts that decided already.")] = False,
    deny: Annotated[bool, typer.Option("--deny", help="Sign a no.")] = False,
    ttl_seconds: Annotated[int, typer.Option(help="Approve a shorter life; 0 = as asked.", min=0)] = 0,
    beside: BesideOption = "",
) -> None:
    """Show the request, ask, and sign exactly what was shown."""
    from appliance.clock import SystemClock
    from appliance.owner.keys import write_new
    from appliance.owner.review import render
    from appliance.owner.sign import sign

    signer = approval_key(key)
    card = _card(owner_id, request, csr, server_id, beside)
    print(render(card), file=sys.stderr)
    if not (yes or code):
        # the code is typed, never just confirmed: there is no default button
        code = typer.prompt(
            f"Type the code {card.short_code} to {'deny' if deny else 'approve'}, anything else to stop", err=True
        )
    token = sign(
        card,
        signer,
        now=SystemClock().now(),
        deny=deny,
        ttl_seconds=ttl_seconds or None,
        expected_code=code or None,
    )
    write_new(out, token.encode("ascii") + b"\n", 0o644)
    show({"approval": str(out), "agent": card.request.sub, "decision": "deny" if deny else "approve"})


@owner.command("client-keygen")
def owner_client_keygen(
    out: Annotated[Path, typer.Option(help="Folder for client key, certificate and statement.")],
    ref: Annotated[str, typer.Option(help="You, as the campus directory calls you.")],
    trust_domain: Annotated[str, typer.Option(help="The campus' trust domain.")] = "campus.example",
    scheme: Annotated[str, typer.Option(help="spiffe or wimse.")] = "spiffe",
) -> None:
    """Make the key with which `respond` connects, and the statement that the administrator registers."""
    from appliance.clock import SystemClock
    from appliance.owner.client_key import client_keygen

    made = client_keygen(out, ref=ref, audience=f"{scheme}://{trust_domain}", now=SystemClock().now())
    show(
        {
            "key": str(made.key_file),
            "certificate": str(made.certificate_file),
            "statement": str(made.statement_file),
            "jkt": made.jkt,
            "next": f"give the statement to your administrator: appliance owners add-client-key {ref} "
            f"{made.statement_file.name}",
        }
    )


@owner.command("respond")
def owner_respond(
    owner_id: OwnerOption,
    key: KeyOption,
    client: Annotated[Path, typer.Option(help="Folder that `client-keygen` made.")],
    server: Annotated[str, typer.Option(help="Address of the device port: https://HOST:PORT.")],
    root: Annotated[Path, typer.Option(help="The campus root certificate, PEM, by which the server is known.")],
    policy: Annotated[Path | None, typer.Option(help="Rules that answer; default: you are asked.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Answer what waits or comes within --wait, then end.")] = False,
    wait: Annotated[float, typer.Option(help="Longest wait of one call, seconds; at most 25.", min=0, max=25)] = 20.0,
) -> None:
    """Answer the server's challenges: each is shown as it would be signed; in the foreground, SIGTERM stops it."""
    from appliance.clock import SystemClock
    from appliance.commands.responding import asker, run_responder
    from appliance.owner.answer_policy import read_answer_policy

    clock = SystemClock()
    decide = asker(None if policy is None else read_answer_policy(_bytes(policy).decode("utf-8", "replace")), clock)
    signer = approval_key(key)
    asyncio.run(
        run_responder(server, root, client, signer, owner_id, clock, decide, tell, once=once, wait_seconds=wait)
    )


@agent.command("keygen")
def agent_keygen(out: Annotated[Path, typer.Option(help="New file for the key, PEM.")]) -> None:
    """Make an agent's key before its first request, so that an administrator can register the agent beforehand."""
    from appliance.agent import new_key_file

    show({"key": str(out), "jkt": new_key_file(out), "next": "appliance agents add --owner ... --proxy ... --jkt ..."})


@agent.command("sign-card")
def agent_sign_card(
    card: Annotated[Path, typer.Argument(help="A2A agent card, JSON.")],
    key: Annotated[Path, typer.Option(help="The agent's key, as `agent request` wrote it.")],
    out: Annotated[Path, typer.Option(help="Where the signed card goes.")],
) -> None:
    """Sign an A2A agent card with the agent's key; `appliance verify` checks it beside the credential."""
    import json

    from appliance.agent import load_key
    from appliance.binding import agent_card, jws
    from est.signer import KeySigner

    signer = KeySigner(load_key(key))
    signed = agent_card.sign(agent_card.read(_bytes(card)), signer)
    out.write_text(json.dumps(signed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    show({"card": str(out), "kid": jws.jkt(signer.public_key()), "signatures": len(signed["signatures"])})


@agent.command("request")
def agent_request(
    socket: Annotated[Path, typer.Option(help="The proxy's Agent API.")],
    out: Annotated[Path, typer.Option(help="Folder for key, chain, WIT and supplicant block.")],
    owner_id: Annotated[str, typer.Option("--owner", help="Identifier of the owner.")],
    model: Annotated[
        str, typer.Option(help="Issuance model: agent-mediated, owner-mediated or server-mediated.")
    ] = "agent-mediated",
    approval_command: Annotated[
        str, typer.Option(help="Command that writes the approval; {request}, {csr}, {approval} stand for files.")
    ] = "",
    wait_approval: Annotated[Path | None, typer.Option(help="Wait for the approval in this file.")] = None,
    needed: Annotated[
        int, typer.Option("--approvals", help="How many approvals to wait for there, one to a line.", min=1, max=8)
    ] = 1,
    label: Annotated[str, typer.Option(help="Name for people; shown to the owner as claimed by the agent.")] = "",
    claims: Annotated[
        Path | None, typer.Option(help="JSON file with what the agent says of itself: model, policy, abilities.")
    ] = None,
    ttl_seconds: Annotated[int, typer.Option(help="Life asked for, seconds.", min=60)] = 8 * 3600,
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for the approval.", min=1)] = 600.0,
    key: Annotated[Path | None, typer.Option(help="Key that `keygen` made; default: a new one in --out.")] = None,
) -> None:
    """Ask for a credential: key, request, the owner's approval, enrolment; writes everything to --out."""
    from dataclasses import asdict

    from appliance.agent import AgentOptions, request_credential
    from appliance.agent.requester import read_claims

    ways = bool(approval_command) + (wait_approval is not None)
    if model == "server-mediated" and ways:
        raise typer.BadParameter("in the server-mediated model the server asks the owner: no approval is brought")
    if model == "owner-mediated" and ways:
        raise typer.BadParameter("in the owner-mediated model the owner's gateway approves: no approval is brought")
    if model not in ("server-mediated", "owner-mediated") and ways != 1:
        raise typer.BadParameter("give either --approval-command or --wait-approval")
    options = AgentOptions(
        socket=socket,
        out=out,
        owner=owner_id,
        model=model,
        ttl_seconds=ttl_seconds,
        label=label or None,
        claims=read_claims(claims),
        wait_seconds=wait_seconds,
        approval_command=approval_command or None,
        wait_approval=wait_approval,
        approvals=needed,
        key=key,
    )
    show(asdict(asyncio.run(request_credential(options, tell=lambda line: print(line, file=sys.stderr, flush=True)))))
