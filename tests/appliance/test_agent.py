"""The reference agent against a small Agent API on a Unix socket: what it writes, and what it does not put up with."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.agent import AgentOptions, AgentResult, request_credential
from appliance.binding import approval, composite, jws, request, token
from appliance.owner.review import review
from appliance.owner.sign import sign
from appliance.supplicant import supplicant_block
from est import csr
from est.errors import Refusal
from tests.appliance.binding.example import (
    AGENT,
    ISSUER,
    ORIGIN,
    OTHER_AGENT,
    OWNER,
    OWNER_RECORD,
    PROXY,
    SERVER,
    signer,
)
from tests.appliance.binding.example import private as example_key
from tests.support import NOW, FixedClock, key

Damage = Callable[[dict[str, Any]], None]


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _ca(name: str) -> x509.Certificate:
    public = key(name).public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(name))
        .serial_number(1)
        .public_key(public)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key(name), hashes.SHA256())
    )


class AgentApi:
    """What a proxy offers to agents, with the identity server behind it played by binding's own checks."""

    def __init__(self) -> None:
        self.ca = _ca("agent-ca")
        self.sub = AGENT
        self.seen: list[composite.Composite] = []
        self.parked = 0
        self.refusal: tuple[int, bytes] | None = None
        self.damage: dict[str, Damage] = {}
        self.names = [x509.UniformResourceIdentifier(AGENT)]
        self.signer_name = "agent-ca"
        self.public_key: Any = None
        self.trust = {
            "radius_server_name": "radius.campus.example",
            "server_id": SERVER,
            "trust_domain": "campus.example",
        }
        self.calls: list[str] = []

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/nonce", self.nonce)
        app.router.add_post("/v1/enroll", self.enroll)
        app.router.add_get("/v1/trust", self.root)
        return app

    def _answer(self, name: str, value: dict[str, Any], status: int = 200) -> web.Response:
        self.calls.append(name)
        self.damage.get(name, lambda _: None)(value)
        return web.json_response(value, status=status)

    async def nonce(self, call: web.Request) -> web.Response:
        asked = await call.json()
        assert set(asked) == {"jkt", "purpose"}
        self.jkt = asked["jkt"]
        return self._answer("nonce", {"nonce": "N" * 43, "sub": self.sub, "server_id": SERVER, "expires_in": 900})

    async def enroll(self, call: web.Request) -> web.Response:
        assert call.content_type == composite.MEDIA_TYPE
        whole = composite.read(await call.read())
        self.seen.append(whole)
        if self.refusal is not None:
            status, body = self.refusal
            return web.Response(status=status, body=body, content_type="application/problem+json")
        if self.parked > 0:
            self.parked -= 1
            return web.json_response({}, status=202, headers={"Retry-After": "7"})
        asked = request.unseal(whole.request)
        assert asked.jkt == self.jkt
        for one in whole.approvals:
            approval.check(one, asked, OWNER_RECORD, server_id=SERVER, proxy_id=PROXY, now=NOW)
        return self._answer("enroll", self._credential(asked, whole), 201)

    def _credential(self, asked: request.AgentRequest, whole: composite.Composite) -> dict[str, Any]:
        value: dict[str, Any] = {
            "not_after": "2026-01-01T20:00:00Z",
            "renew_after": "2026-01-01T17:20:00Z",
            "log_index": 7,
        }
        if whole.csr_der is not None:
            request.check_csr(asked, csr.read(whole.csr_der))
            leaf = (
                x509.CertificateBuilder()
                .subject_name(_name("agent"))
                .issuer_name(self.ca.subject)
                .serial_number(0xBEEF)
                .public_key(self.public_key or asked.key)
                .not_valid_before(NOW - timedelta(minutes=1))
                .not_valid_after(NOW + timedelta(hours=8))
                .add_extension(x509.SubjectAlternativeName(self.names), critical=False)
                .add_extension(
                    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                    critical=False,
                )
                .add_extension(
                    x509.AuthorityKeyIdentifier.from_issuer_public_key(key(self.signer_name).public_key()),
                    critical=False,
                )
                .sign(key(self.signer_name), hashes.SHA256())
            )
            value["certificate"] = leaf.public_bytes(Encoding.PEM).decode()
        if "wit" in asked.profiles:
            value["wit"] = token.seal(
                signer("ca"), kid="k", sub=asked.sub, iss=ISSUER, iat=asked.iat, exp=asked.iat + 3600, jti="A" * 22,
                key=self.public_key or asked.key, owner_claim="campus.example/owner",
            )  # fmt: skip
        return value

    async def root(self, call: web.Request) -> web.Response:
        return self._answer("trust", {"root": self.ca.public_bytes(Encoding.PEM).decode(), **self.trust})


class Owner:
    """An owner who answers as soon as the request lies there, by putting an approval file in place."""

    def __init__(self, folder: Path, approval_file: Path) -> None:
        self.folder, self.file = folder, approval_file
        self.pauses: list[float] = []
        self.is_slow_writer = False

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if self.is_slow_writer and len(self.pauses) < 3:
            self.file.write_text("eyJhbGciOiJFUzI1NiJ9.eyJ")
        elif (asked := self.folder / "request.jws").exists():
            card = review(asked.read_bytes(), owner_id=OWNER, now=NOW, csr_der=(self.folder / "csr.der").read_bytes())
            self.file.write_text(sign(card, signer("owner"), now=NOW) + "\n")


def _run(api: AgentApi, options: AgentOptions, *, clock: FixedClock | None = None, pause: Any = None) -> AgentResult:
    async def go() -> AgentResult:
        runner = web.AppRunner(api.application())
        await runner.setup()
        try:
            await web.UnixSite(runner, str(options.socket)).start()
            return await request_credential(options, clock=clock or FixedClock(), pause=pause or asyncio.sleep)
        finally:
            await runner.cleanup()

    return asyncio.run(go())


@pytest.fixture
def options(tmp_path: Path) -> AgentOptions:
    return AgentOptions(
        socket=tmp_path / "agent.sock", out=tmp_path / "out", owner=OWNER, wait_approval=tmp_path / "a.jws"
    )


def _with_owner(api: AgentApi, options: AgentOptions, **more: Any) -> AgentResult:
    assert options.wait_approval is not None
    return _run(api, options, pause=Owner(options.out, options.wait_approval).pause, **more)


def _reason(call: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as refusal:
        call()
    return refusal.value.reason


@pytest.mark.req("A-13", "A-40")
def test_agent_gets_its_credential_with_an_approval_that_somebody_puts_in_place(options: AgentOptions) -> None:
    api = AgentApi()
    result = _with_owner(api, options)
    assert result.agent_id == AGENT and result.owner_id == OWNER and result.serial == "beef" and result.log_index == 7
    own = load_pem_private_key((options.out / "agent.key.pem").read_bytes(), None)
    leaf = x509.load_pem_x509_certificate((options.out / "chain.pem").read_bytes())
    assert leaf.public_key() == own.public_key()
    assert jws.jkt(own.public_key()) == api.jkt
    assert json.loads((options.out / "result.json").read_text())["serial"] == "beef"
    assert (options.out / "wit.txt").read_text().count(".") == 2
    assert api.calls == ["nonce", "trust", "enroll"] and len(api.seen[0].approvals) == 1


@pytest.mark.req("A-16")
def test_private_key_is_the_agent_s_alone_and_never_sent(options: AgentOptions) -> None:
    api = AgentApi()
    before = os.umask(0)
    try:
        _with_owner(api, options)
    finally:
        os.umask(before)
    assert stat.S_IMODE((options.out / "agent.key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(options.out.stat().st_mode) == 0o700
    assert b"PRIVATE" not in composite.write(api.seen[0])


def test_supplicant_block_pins_root_and_server_name_together(options: AgentOptions) -> None:
    _with_owner(AgentApi(), options)
    block = (options.out / "wpa_supplicant.conf").read_text()
    for line in (
        "key_mgmt=IEEE8021X",
        "eap=TLS",
        f'ca_cert="{options.out.absolute()}/root.pem"',
        'domain_match="radius.campus.example"',
        f'client_cert="{options.out.absolute()}/chain.pem"',
        f'private_key="{options.out.absolute()}/agent.key.pem"',
        'phase1="tls_disable_tlsv1_3=0"',
    ):
        assert line in block
    assert AGENT.rpartition("/")[2] not in block


APPROVE = """
import sys
from pathlib import Path
from appliance.owner.review import review
from appliance.owner.sign import sign
from tests.appliance.binding.example import OWNER, signer
from tests.support import NOW
request, csr, approval = map(Path, sys.argv[1:4])
card = review(request.read_bytes(), owner_id=OWNER, now=NOW, csr_der=csr.read_bytes())
approval.write_text(sign(card, signer("owner"), now=NOW))
print("approved", sys.argv[4])
"""


def _command(options: AgentOptions, *words: str) -> AgentOptions:
    return replace(options, wait_approval=None, approval_command=shlex.join(words))


def test_approval_command_gets_paths_and_runs_without_a_shell(
    options: AgentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "approve with space.py"
    script.write_text(APPROVE)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    hostile = f"$(touch {tmp_path}/pwned); `touch {tmp_path}/pwned` | > {tmp_path}/pwned"
    command = _command(options, sys.executable, str(script), "{request}", "{csr}", "{approval}", hostile)
    assert _run(AgentApi(), command).agent_id == AGENT
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "words",
    [("false",), ("true",), ("/nowhere/at/all",), ()],
    ids=["fails", "writes nothing", "does not exist", "empty"],
)
def test_approval_command_without_an_approval_gives_no_credential(
    options: AgentOptions, words: tuple[str, ...]
) -> None:
    api = AgentApi()
    assert _reason(lambda: _run(api, _command(options, *words))) == "approval-not-given"
    assert api.calls == ["nonce", "trust"]


def test_approval_command_with_an_open_quote_is_refused(options: AgentOptions) -> None:
    command = replace(options, wait_approval=None, approval_command="approve 'x")
    assert _reason(lambda: _run(AgentApi(), command)) == "approval-not-given"


def test_approval_command_that_hangs_is_ended(options: AgentOptions) -> None:
    command = replace(_command(options, "sleep", "60"), wait_seconds=0.3)
    assert _reason(lambda: _run(AgentApi(), command)) == "approval-not-given"


def test_approval_that_never_comes_ends_the_attempt_and_takes_the_key_away(options: AgentOptions) -> None:
    clock = FixedClock()

    async def pause(seconds: float) -> None:
        clock.advance(seconds)

    quick = replace(options, wait_seconds=5)
    assert _reason(lambda: _run(AgentApi(), quick, clock=clock, pause=pause)) == "approval-not-given"
    assert list(options.out.iterdir()) == []


def test_half_written_approval_file_is_waited_for(options: AgentOptions) -> None:
    assert options.wait_approval is not None
    owner = Owner(options.out, options.wait_approval)
    owner.is_slow_writer = True
    assert _run(AgentApi(), options, pause=owner.pause).agent_id == AGENT


def test_several_approvals_are_waited_for_and_all_go_along(options: AgentOptions) -> None:
    assert options.wait_approval is not None
    owner, api = Owner(options.out, options.wait_approval), AgentApi()
    lines: list[str] = []

    async def pause(seconds: float) -> None:
        await owner.pause(seconds)
        if owner.file.exists():
            lines.append(owner.file.read_text())  # another signature each time
            owner.file.write_text("".join(lines[:3]))

    assert _run(api, replace(options, approvals=3), pause=pause).agent_id == AGENT
    (sent,) = api.seen
    assert sent.approvals == tuple(line.strip() for line in lines[:3]) and len(set(sent.approvals)) == 3


def test_approval_file_of_an_earlier_request_is_not_taken(options: AgentOptions) -> None:
    assert options.wait_approval is not None
    options.wait_approval.write_text("a.b.c")
    api = AgentApi()
    assert _reason(lambda: _run(api, options)) == "approval-not-given"
    assert api.calls == []


def test_without_an_owner_no_approval_is_awaited(options: AgentOptions) -> None:
    single = replace(options, owner=None, wait_approval=None)
    api = AgentApi()
    assert _run(api, single).owner_id is None
    assert api.seen[0].approvals == ()


@pytest.mark.req("A-98")
def test_parked_request_is_asked_again_unchanged_until_it_is_issued(options: AgentOptions) -> None:
    api = AgentApi()
    api.parked = 3
    assert options.wait_approval is not None
    owner = Owner(options.out, options.wait_approval)
    _run(api, options, pause=owner.pause)
    assert len(api.seen) == 4 and len(set(api.seen)) == 1
    assert owner.pauses[-3:] == [7.0, 7.0, 7.0]


def test_parked_request_is_given_up_at_the_deadline(options: AgentOptions) -> None:
    api = AgentApi()
    api.parked = 10**6
    clock = FixedClock()
    assert options.wait_approval is not None
    owner = Owner(options.out, options.wait_approval)

    async def pause(seconds: float) -> None:
        clock.advance(seconds)
        await owner.pause(seconds)

    assert _reason(lambda: _run(api, replace(options, wait_seconds=60), clock=clock, pause=pause)) == "issuance-refused"
    assert len(api.seen) <= 10


def test_refusal_of_the_server_is_passed_on_as_printable_text(options: AgentOptions) -> None:
    api = AgentApi()
    problem = {"type": "/problems/self-approval", "reason": "self-approval", "detail": "no\x1b[2J\u202e"}
    api.refusal = (403, json.dumps(problem).encode())
    with pytest.raises(Refusal) as refusal:
        _with_owner(api, options)
    assert refusal.value.fields == {"status": 403, "problem": "self-approval"}
    assert refusal.value.detail == "self-approval (403): no[2J"
    assert not (options.out / "agent.key.pem").exists()


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"\xff", b'{"reason":"a","reason":"b"}', b"[" * 5000, b'{"reason":{}}', b'{"type":7}'],
)
def test_refusal_in_any_other_form_is_still_a_refusal(options: AgentOptions, body: bytes) -> None:
    api = AgentApi()
    api.refusal = (400, body)
    assert _reason(lambda: _with_owner(api, options)) == "issuance-refused"


def _set(name: str, value: object) -> Damage:
    return lambda answer: answer.__setitem__(name, value)


@pytest.mark.parametrize(
    ("where", "damage", "reason"),
    [
        ("nonce", _set("nonce", None), "agent-api-answer-unusable"),
        ("nonce", _set("nonce", 7), "agent-api-answer-unusable"),
        ("nonce", _set("nonce", "short"), "claim-malformed"),
        ("nonce", _set("sub", OWNER), "identifier-kind-wrong"),
        ("nonce", _set("sub", "../../etc"), "identifier-malformed"),
        ("nonce", _set("expires_in", "soon"), "agent-api-answer-unusable"),
        ("nonce", _set("expires_in", 0), "agent-api-answer-unusable"),
        ("enroll", _set("certificate", None), "agent-api-answer-unusable"),
        ("enroll", _set("certificate", "junk"), "credential-not-ours"),
        ("enroll", _set("wit", "a.b.c"), "credential-not-ours"),
        ("enroll", _set("wit", None), "agent-api-answer-unusable"),
        ("enroll", _set("not_after", None), "agent-api-answer-unusable"),
        ("trust", _set("root", "junk"), "credential-not-ours"),
        ("trust", _set("radius_server_name", 'x"\n}\nnetwork={'), "supplicant-value-unusable"),
        ("trust", _set("radius_server_name", "*"), "supplicant-value-unusable"),
        ("trust", _set("radius_server_name", ""), "supplicant-value-unusable"),
        ("trust", _set("trust_domain", 'a"b'), "supplicant-value-unusable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "damage",
)
def test_each_answer_that_is_not_as_agreed_is_refused_and_leaves_nothing(
    options: AgentOptions, where: str, damage: Damage, reason: str
) -> None:
    api = AgentApi()
    api.damage[where] = damage
    assert _reason(lambda: _with_owner(api, options)) == reason
    assert list(options.out.iterdir()) == []


@pytest.mark.req("A-16")
def test_credential_of_another_key_name_or_ca_is_not_kept(options: AgentOptions) -> None:
    for change in (
        {"public_key": example_key("stranger").public_key()},
        {"names": [x509.UniformResourceIdentifier(OTHER_AGENT)]},
        {"names": [x509.UniformResourceIdentifier(AGENT), x509.UniformResourceIdentifier(OWNER)]},
        {"signer_name": "stranger-ca"},
    ):
        api = AgentApi()
        vars(api).update(change)
        assert _reason(lambda api=api: _with_owner(api, options)) == "credential-not-ours"
        assert options.wait_approval is not None
        options.wait_approval.unlink()


def test_folder_that_holds_a_credential_is_left_alone(options: AgentOptions) -> None:
    _with_owner(AgentApi(), options)
    before = (options.out / "agent.key.pem").read_bytes()
    assert options.wait_approval is not None
    options.wait_approval.unlink()
    assert _reason(lambda: _with_owner(AgentApi(), options)) == "key-file-exists"
    assert (options.out / "agent.key.pem").read_bytes() == before


def test_socket_that_nobody_listens_on_is_said(options: AgentOptions) -> None:
    assert _reason(lambda: asyncio.run(request_credential(options, clock=FixedClock()))) == "agent-api-unreachable"


def test_answer_that_never_ends_is_cut_off(options: AgentOptions) -> None:
    api = AgentApi()
    api.damage["nonce"] = _set("padding", "x" * 300_000)
    assert _reason(lambda: _run(api, options)) == "agent-api-answer-unusable"


def test_slow_answer_ends_at_the_call_s_deadline(options: AgentOptions) -> None:
    api = AgentApi()

    async def never(call: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    api.nonce = never
    assert _reason(lambda: _run(api, replace(options, call_seconds=0.3))) == "agent-api-unreachable"


@pytest.mark.parametrize("path", ['/tmp/a"b', "/tmp/a\nb", "/tmp/a\u202eb", "/tmp/a\udce4b", "/tmp/a\tb"])
def test_path_that_cannot_be_quoted_is_refused(path: str) -> None:
    good = Path("/tmp/x")
    for name in ("root", "chain", "key"):
        paths = {"root": good, "chain": good, "key": good, name: Path(path)}
        assert _reason(lambda paths=paths: supplicant_block("r.example", "campus.example", **paths)) == (
            "supplicant-value-unusable"
        )


def test_folder_with_letters_of_any_script_is_written_as_it_is(options: AgentOptions, tmp_path: Path) -> None:
    elsewhere = replace(options, out=tmp_path / "Jos\u00e9 s agents")
    _with_owner(AgentApi(), elsewhere)
    assert f'client_cert="{elsewhere.out.absolute()}/chain.pem"' in (elsewhere.out / "wpa_supplicant.conf").read_text()


def test_folder_that_no_supplicant_could_use_is_refused_before_anybody_is_asked(
    options: AgentOptions, tmp_path: Path
) -> None:
    api = AgentApi()
    elsewhere = replace(options, out=tmp_path / 'a "b"')
    assert _reason(lambda: _with_owner(api, elsewhere)) == "supplicant-value-unusable"
    assert api.calls == ["nonce", "trust"]


def test_wit_alone_needs_no_csr_and_no_supplicant(options: AgentOptions) -> None:
    only = replace(options, profiles=("wit",), owner=None, wait_approval=None)
    api = AgentApi()
    result = _run(api, only)
    assert result.serial == "" and not (options.out / "chain.pem").exists() and api.seen[0].csr_der is None


def test_request_of_the_agent_is_what_the_owner_reviews(options: AgentOptions) -> None:
    api = AgentApi()
    result = _with_owner(api, replace(options, label="notes", txn="job-7", ttl_seconds=1800))
    asked = request.unseal(api.seen[0].request)
    assert (asked.label, asked.txn, asked.ttl, asked.aud) == ("notes", "job-7", 1800, SERVER)
    assert result.short_code == request.short_code(asked.rqh)
    assert asked.exp - asked.iat == 900 and asked.sub.startswith(ORIGIN)
