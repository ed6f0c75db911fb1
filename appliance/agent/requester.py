"""One attempt to get a credential, from a new key to the files that 802.1X needs.

The private key is made here and stays here. The owner's approval comes from a command that is run without a shell, or
from a file that somebody puts in place. At the end there are: key, chain, WIT, campus root, and a wpa_supplicant block.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from appliance.agent import approvals
from appliance.agent.answers import Answer, read_answer, refusal_of, retry_after_seconds
from appliance.agent.api_calls import AgentApi, agent_api
from appliance.agent.credential import check_chain, check_wit
from appliance.agent.errors import AttemptUnfinished
from appliance.agent.key_file import load_key
from appliance.binding import composite, evidence, jws, renewal, request
from appliance.binding.claims import members
from appliance.binding.errors import Malformed
from appliance.binding.facts import SERVER_MEDIATED_SECONDS, Model
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.request import AgentRequest
from appliance.clock import Clock, SystemClock
from appliance.errors import KeyFileExists
from appliance.supplicant import supplicant_block
from est import csr
from est.errors import EstError
from est.signer import KeySigner, Signer
from est.transfer import read_json

KEY_FILE, CHAIN_FILE, ROOT_FILE = "agent.key.pem", "chain.pem", "root.pem"
WIT_FILE, SUPPLICANT_FILE, RESULT_FILE = "wit.txt", "wpa_supplicant.conf", "result.json"
COMPOSITE_FILE = "composite.json"


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """What to ask for, where, and how the owner's approval comes: by a command, in a file, or not through the agent."""

    socket: Path
    out: Path
    owner: str | None = None
    model: str = "agent-mediated"
    profiles: tuple[str, ...] = ("x509", "wit")
    ttl_seconds: int = 8 * 3600
    label: str | None = None
    claims: Mapping[str, object] = field(default_factory=dict, hash=False)
    """What the agent says about itself, from `read_claims`; its proxy marks it so in the evidence."""
    txn: str | None = None
    call_seconds: float = 60.0
    """Deadline of one call to the Agent API."""
    wait_seconds: float = 600.0
    """How long to wait for an approval, and for a parked request."""
    approval_command: str | None = None
    """Command line with the placeholders {request}, {csr} and {approval}; split as a shell would, run without one."""
    wait_approval: Path | None = None
    approvals: int = 1
    """How many approvals must stand in that file, one to a line."""
    key: Path | None = None
    """A key that is there already, from `new_key_file`; None: a new one is made in `out`."""
    agent_id: str | None = None
    """Ask for this identifier again; None: the one that comes with the nonce."""
    previous: Signer | None = None
    """The key of the live credential: this is a renewal, and that key vouches for the new one."""
    standing: tuple[str, ...] = ()
    """Standing approvals, or their hashes where the server has them, under which a renewal asks nobody."""
    named: Path | None = None
    """The folder that configurations name; None: `out`."""
    keeps_unfinished: bool = False
    """Leave the files of an attempt that failed, so that `resume_credential` can finish it."""

    @property
    def key_file(self) -> Path:
        """Where the key is, or will be."""
        return self.key or self.out / KEY_FILE

    @property
    def folder(self) -> Path:
        """Where programs will look for the files."""
        return (self.named or self.out).absolute()


@dataclass(frozen=True, slots=True)
class AgentResult:
    """What was issued; the same as result.json."""

    agent_id: str
    owner_id: str | None
    server_id: str
    serial: str
    not_after: str
    renew_after: str | None
    log_index: int | None
    short_code: str
    folder: str
    files: Mapping[str, str] = field(default_factory=dict)


Pause = Callable[[float], Awaitable[None]]
Tell = Callable[[str], None]


async def request_credential(
    options: AgentOptions, *, clock: Clock | None = None, pause: Pause = asyncio.sleep, tell: Tell | None = None
) -> AgentResult:
    """Asks for one credential and writes it to `options.out`, which must not hold one yet.

    `tell` gets a line for people: what is waited for, with the short code that the owner must see too (A-92).

    A failed attempt takes its private key away again. Raises AgentError leaves, KeyFileExists, binding's and est's.
    """
    return await AgentRequester(options, clock or SystemClock(), pause, tell).run()


def read_claims(path: Path | None) -> Mapping[str, object]:
    """What an agent says about itself, from a JSON file; nothing without one. Raises Malformed, Claim... ."""
    if path is None:
        return {}
    try:
        value = read_json(path.read_bytes(), max_bytes=evidence.MAX_SELF_ASSERTED_BYTES)
    except (OSError, EstError) as cause:
        raise Malformed(f"{path} cannot be read as JSON", object="claims") from cause
    return evidence.read_self_asserted(members(value, "claims"))


async def resume_credential(
    options: AgentOptions, *, clock: Clock | None = None, pause: Pause = asyncio.sleep, tell: Tell | None = None
) -> AgentResult:
    """Finishes an attempt that was handed in, or about to be, when its process ended; the same bytes go once more.

    Raises as request_credential(), and AttemptUnfinished if it had not come so far.
    """
    return await AgentRequester(options, clock or SystemClock(), pause, tell).resume()


class AgentRequester:
    """One attempt to get a credential."""

    def __init__(self, options: AgentOptions, clock: Clock, pause: Pause, tell: Tell | None = None) -> None:
        self._tell = tell or (lambda line: None)
        self._options = options
        self._clock = clock
        self._pause = pause
        self._deadline = clock.monotonic() + options.wait_seconds
        self._written: list[Path] = []

    async def run(self) -> AgentResult:
        """The whole way, from a new key to result.json."""
        options = self._options
        if options.owner is not None:
            read_kind(options.owner, Kind.OWNER)
        approvals.check_no_old_one(options.wait_approval)
        options.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._undone_on_failure():
            async with agent_api(self._options.socket, call_seconds=self._options.call_seconds) as api:
                return await self._run(api)

    async def resume(self) -> AgentResult:
        """Hands in once more what an earlier process had ready."""
        body = _read_file(self._options.out / COMPOSITE_FILE)
        if body is None:
            raise AttemptUnfinished("the earlier attempt had nothing to hand in yet")
        handed_in = composite.read(body)
        for name in (ROOT_FILE, CHAIN_FILE, WIT_FILE, SUPPLICANT_FILE, RESULT_FILE):
            (self._options.out / name).unlink(missing_ok=True)
        async with agent_api(self._options.socket, call_seconds=self._options.call_seconds) as api:
            trust = Answer(await api.call("GET", "/v1/trust"))
            return await self._hand_in(api, handed_in.request, body, trust)

    async def _run(self, api: AgentApi) -> AgentResult:
        key = self._key()
        signer = KeySigner(key)
        asked = {"jkt": jws.jkt(signer.public_key()), "purpose": self._purpose}
        if self._options.agent_id is not None:
            asked["sub"] = self._options.agent_id
        granted = Answer(await api.call("POST", "/v1/nonce", json.dumps(asked).encode()))
        agent_id = granted.text("sub")
        read_kind(agent_id, Kind.AGENT)
        trust = Answer(await api.call("GET", "/v1/trust"))
        # before anybody is asked to approve: an approval is good for one credential, and that must be usable
        self._supplicant_block(trust)
        csr_der, token = self._ask(signer, agent_id, granted)
        request_file = self._write("request.jws", token.encode("ascii"))
        csr_file = self._write("csr.der", csr_der) if csr_der is not None else None
        if self._options.standing:
            given = tuple(one for one in self._options.standing if "." in one)
        else:
            given = await self._approvals(token, request_file, csr_file)
        body = composite.write(composite.Composite(token, csr_der, given, self_asserted=self._options.claims))
        self._write(COMPOSITE_FILE, body)
        return await self._hand_in(api, token, body, trust)

    async def _hand_in(self, api: AgentApi, token: str, body: bytes, trust: Answer) -> AgentResult:
        issued = await self._enroll(api, body, request.short_code(jws.s256(token)))
        return self._keep(request.unseal(token), issued, trust.text("root"), self._supplicant_block(trust))

    @property
    def _purpose(self) -> str:
        return "issue" if self._options.previous is None else "renew"

    def _supplicant_block(self, trust: Answer) -> str:
        if "x509" not in self._options.profiles:
            return ""
        folder = self._options.folder
        return supplicant_block(
            trust.text("radius_server_name"),
            trust.text("trust_domain"),
            root=folder / ROOT_FILE,
            chain=folder / CHAIN_FILE,
            key=self._named_key.absolute(),
        )

    @property
    def _named_key(self) -> Path:
        options = self._options
        return options.folder / KEY_FILE if options.named is not None else options.key_file

    def _key(self) -> ec.EllipticCurvePrivateKey:
        if self._options.key is not None:
            return load_key(self._options.key)
        key = ec.generate_private_key(ec.SECP256R1())
        self._write(KEY_FILE, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
        return key

    def _ask(self, signer: KeySigner, agent_id: str, granted: Answer) -> tuple[bytes | None, str]:
        options = self._options
        csr_der = None
        if "x509" in options.profiles:
            common_name = x509.NameAttribute(NameOID.COMMON_NAME, agent_id.rpartition("/")[2])
            san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(agent_id)])
            csr_der = csr.build(subject=x509.Name([common_name]), key=signer, san=san)
        iat = int(self._clock.now().timestamp())
        token = request.seal(
            signer,
            sub=agent_id,
            owner=options.owner,
            aud=granted.text("server_id"),
            iat=iat,
            exp=iat + min(granted.whole("expires_in"), SERVER_MEDIATED_SECONDS if self._is_asked else 86_400),
            jti=jws.base64url(secrets.token_bytes(16)),
            nonce=granted.text("nonce"),
            model=options.model,
            profiles=options.profiles,
            ttl=options.ttl_seconds,
            csr_der=csr_der,
            label=options.label,
            txn=options.txn,
            purpose=self._purpose,
            prev=self._vouched(signer, agent_id, granted, iat),
            standing=tuple(jws.s256(one) if "." in one else one for one in options.standing),
        )
        request.unseal(token)
        return csr_der, token

    def _vouched(self, signer: KeySigner, agent_id: str, granted: Answer, iat: int) -> str | None:
        """The word of the live credential's key for the new one (A-106)."""
        previous = self._options.previous
        if previous is None:
            return None
        return renewal.seal(
            previous,
            sub=agent_id,
            jkt=jws.jkt(signer.public_key()),
            nonce=granted.text("nonce"),
            aud=granted.text("server_id"),
            iat=iat,
            exp=iat + min(granted.whole("expires_in"), SERVER_MEDIATED_SECONDS if self._is_asked else 86_400),
        )

    async def _approvals(self, token: str, request_file: Path, csr_file: Path | None) -> tuple[str, ...]:
        options = self._options
        if options.approval_command is not None:
            file = options.out / "approval.jws"
            words = approvals.command_words(options.approval_command, request=request_file, csr=csr_file, approval=file)
            # one of an earlier attempt must not pass for the one that the command is about to write
            file.unlink(missing_ok=True)
            self._written.append(file)
            return await approvals.from_command(words, file, seconds=options.wait_seconds)
        if options.wait_approval is None:
            return ()
        code = request.short_code(jws.s256(token))
        self._tell(f"waiting for the owner's approval of {request_file} in {options.wait_approval}; code {code}")
        return await approvals.from_file(
            options.wait_approval,
            clock=self._clock,
            deadline=self._deadline,
            seconds=options.wait_seconds,
            pause=self._pause,
            count=options.approvals,
        )

    @property
    def _who_asks(self) -> str:
        """Who asks the owner, where that is not the agent."""
        waits = {Model.SERVER_MEDIATED: "the server asks", Model.OWNER_MEDIATED: "the owner's gateway asks"}
        return waits.get(Model(self._options.model), "")

    @property
    def _is_asked(self) -> bool:
        """Whether the server asks the owner."""
        return self._options.model == Model.SERVER_MEDIATED

    async def _enroll(self, api: AgentApi, body: bytes, code: str) -> Answer:
        told = False
        while True:
            status, headers, answer = await api.send("POST", "/v1/enroll", body)
            if status in (200, 201):  # 200: the answer to this very request was lost before, the proxy fetched it again
                return Answer(read_answer(answer))
            if status not in (202, 429, 503):
                raise refusal_of(status, answer, headers)
            if status == 202 and self._who_asks and not told:
                told = True
                self._tell(f"{self._who_asks} the owner; code {code}")
            wait = retry_after_seconds(headers)
            if self._clock.monotonic() + wait >= self._deadline:
                raise refusal_of(status, answer, headers)
            await self._pause(wait)

    def _keep(self, asked: AgentRequest, issued: Answer, root_pem: str, block: str) -> AgentResult:
        options = self._options
        agent_id = asked.sub
        files = {"key": self._named_key, "root": self._write(ROOT_FILE, root_pem.encode("ascii"))}
        serial = ""
        if "x509" in asked.profiles:
            chain_pem = issued.text("certificate")
            leaf = check_chain(chain_pem, root_pem, key=asked.key, agent_id=agent_id, at=self._clock.now())
            serial = f"{leaf.serial_number:x}"
            files["chain"] = self._write(CHAIN_FILE, chain_pem.encode("ascii"))
            files["supplicant"] = self._write(SUPPLICANT_FILE, block.encode())
        if "wit" in asked.profiles:
            wit = issued.text("wit")
            check_wit(wit, asked)
            files["wit"] = self._write(WIT_FILE, wit.encode("ascii") + b"\n")
        result = AgentResult(
            agent_id=agent_id,
            owner_id=asked.owner,
            server_id=asked.aud,
            serial=serial,
            not_after=str(issued.value("not_after")),
            renew_after=issued.optional_text("renew_after"),
            log_index=issued.optional_whole("log_index"),
            short_code=request.short_code(asked.rqh),
            folder=str(options.folder),
            files={name: str(self._as_named(path)) for name, path in files.items()},
        )
        self._write(RESULT_FILE, json.dumps(asdict(result), indent=2).encode() + b"\n")
        return result

    def _as_named(self, path: Path) -> Path:
        return self._options.folder / path.name if path.parent == self._options.out else path.absolute()

    def _write(self, name: str, content: bytes, *, mode: int = 0o644) -> Path:
        path = self._options.out / name
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        except FileExistsError as error:
            raise KeyFileExists(f"{path} exists already: choose another folder") from error
        self._written.append(path)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        return path

    @contextlib.contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        done = False
        try:
            yield
            done = True
        finally:
            if not done and not self._options.keeps_unfinished:
                for path in self._written:
                    path.unlink(missing_ok=True)


def _read_file(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
