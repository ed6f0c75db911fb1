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
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from appliance.agent.answers import MAX_ANSWER, Answer, read_answer, refusal_of, retry_after_seconds
from appliance.agent.credential import check_chain, check_wit
from appliance.agent.errors import AgentApiAnswerUnusable, AgentApiUnreachable, ApprovalNotGiven, AttemptUnfinished
from appliance.binding import composite, evidence, jws, renewal, request
from appliance.binding.claims import members
from appliance.binding.errors import Malformed
from appliance.binding.facts import SERVER_MEDIATED_SECONDS, Model
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.request import AgentRequest
from appliance.clock import Clock, SystemClock
from appliance.errors import KeyFileExists, KeyFileMissing, KeyMalformed
from appliance.supplicant import supplicant_block
from appliance.web.unix_path import short_path
from est import csr
from est.errors import EstError
from est.signer import KeySigner, Signer
from est.transfer import read_json

POLL_SECONDS = 0.2
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
        _check_no_old_approval(options.wait_approval)
        options.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._undone_on_failure():
            async with self._session() as session:
                return await self._run(session)

    async def resume(self) -> AgentResult:
        """Hands in once more what an earlier process had ready."""
        body = _read_file(self._options.out / COMPOSITE_FILE)
        if body is None:
            raise AttemptUnfinished("the earlier attempt had nothing to hand in yet")
        handed_in = composite.read(body)
        for name in (ROOT_FILE, CHAIN_FILE, WIT_FILE, SUPPLICANT_FILE, RESULT_FILE):
            (self._options.out / name).unlink(missing_ok=True)
        async with self._session() as session:
            trust = Answer(await self._call(session, "GET", "/v1/trust", None, 200))
            return await self._hand_in(session, handed_in.request, body, trust)

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        timeout = aiohttp.ClientTimeout(total=self._options.call_seconds)
        with short_path(self._options.socket) as socket:
            connector = aiohttp.UnixConnector(path=socket)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                yield session

    async def _run(self, session: aiohttp.ClientSession) -> AgentResult:
        key = self._key()
        signer = KeySigner(key)
        asked = {"jkt": jws.jkt(signer.public_key()), "purpose": self._purpose}
        if self._options.agent_id is not None:
            asked["sub"] = self._options.agent_id
        granted = Answer(await self._call(session, "POST", "/v1/nonce", json.dumps(asked).encode(), 200))
        agent_id = granted.text("sub")
        read_kind(agent_id, Kind.AGENT)
        trust = Answer(await self._call(session, "GET", "/v1/trust", None, 200))
        # before anybody is asked to approve: an approval is good for one credential, and that must be usable
        self._supplicant_block(trust)
        csr_der, token = self._ask(signer, agent_id, granted)
        request_file = self._write("request.jws", token.encode("ascii"))
        csr_file = self._write("csr.der", csr_der) if csr_der is not None else None
        if self._options.standing:
            approvals = tuple(one for one in self._options.standing if "." in one)
        else:
            approval = await self._approval(token, request_file, csr_file)
            approvals = (approval,) if approval is not None else ()
        body = composite.write(composite.Composite(token, csr_der, approvals, self_asserted=self._options.claims))
        self._write(COMPOSITE_FILE, body)
        return await self._hand_in(session, token, body, trust)

    async def _hand_in(self, session: aiohttp.ClientSession, token: str, body: bytes, trust: Answer) -> AgentResult:
        issued = await self._enroll(session, body, request.short_code(jws.s256(token)))
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

    async def _approval(self, token: str, request_file: Path, csr_file: Path | None) -> str | None:
        options = self._options
        if options.approval_command is not None:
            approval_file = options.out / "approval.jws"
            await self._run_command(options.approval_command, request_file, csr_file, approval_file)
        elif options.wait_approval is not None:
            approval_file = options.wait_approval
            code = request.short_code(jws.s256(token))
            self._tell(f"waiting for the owner's approval of {request_file} in {approval_file}; code {code}")
        else:
            return None
        while not (text := _read_token(approval_file)):
            if options.approval_command is not None:
                raise ApprovalNotGiven(f"the approval command wrote no approval to {approval_file}")
            if self._clock.monotonic() >= self._deadline:
                raise ApprovalNotGiven(f"no approval came to {approval_file} within {options.wait_seconds:g} s")
            await self._pause(POLL_SECONDS)
        return text

    async def _run_command(self, command: str, request_file: Path, csr_file: Path | None, approval_file: Path) -> None:
        paths = {"{request}": request_file, "{csr}": csr_file or "", "{approval}": approval_file}
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ApprovalNotGiven("the approval command has an open quote") from error
        for placeholder, path in paths.items():
            words = [word.replace(placeholder, str(path)) for word in words]
        if not words:
            raise ApprovalNotGiven("the approval command is empty")
        self._make_way(approval_file)
        try:
            # standard output belongs to our own result; the command's text goes beside it
            process = await asyncio.create_subprocess_exec(*words, stdout=2)
        except OSError as error:
            raise ApprovalNotGiven(f"the approval command does not start: {error.strerror}") from error
        try:
            status = await asyncio.wait_for(process.wait(), self._options.wait_seconds)
        except TimeoutError as error:
            raise ApprovalNotGiven("the approval command took too long") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status != 0:
            raise ApprovalNotGiven(f"the approval command ended with status {status}", status=status)

    @property
    def _who_asks(self) -> str:
        """Who asks the owner, where that is not the agent."""
        waits = {Model.SERVER_MEDIATED: "the server asks", Model.OWNER_MEDIATED: "the owner's gateway asks"}
        return waits.get(Model(self._options.model), "")

    @property
    def _is_asked(self) -> bool:
        """Whether the server asks the owner."""
        return self._options.model == Model.SERVER_MEDIATED

    async def _enroll(self, session: aiohttp.ClientSession, body: bytes, code: str) -> Answer:
        told = False
        while True:
            status, headers, answer = await self._send(session, "POST", "/v1/enroll", body)
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

    async def _call(
        self, session: aiohttp.ClientSession, method: str, path: str, body: bytes | None, due: int
    ) -> dict[str, object]:
        status, headers, answer = await self._send(session, method, path, body)
        if status != due:
            raise refusal_of(status, answer, headers)
        return read_answer(answer)

    async def _send(
        self, session: aiohttp.ClientSession, method: str, path: str, body: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"content-type": composite.MEDIA_TYPE if path == "/v1/enroll" else "application/json"}
        try:
            async with session.request(
                method, f"http://agent-api{path}", data=body, headers=headers if body else None, allow_redirects=False
            ) as reply:
                answer = await reply.content.read(MAX_ANSWER + 1)
                while not reply.content.at_eof() and len(answer) <= MAX_ANSWER:
                    answer += await reply.content.read(MAX_ANSWER + 1)
                if len(answer) > MAX_ANSWER:
                    raise AgentApiAnswerUnusable(f"{path}: more than {MAX_ANSWER} bytes")
                return reply.status, reply.headers, answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise AgentApiUnreachable(f"{self._options.socket}: {str(error) or 'no answer in time'}") from error

    def _make_way(self, path: Path) -> None:
        """An approval of an earlier attempt must not pass for the one that the command is about to write."""
        path.unlink(missing_ok=True)
        self._written.append(path)

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


def new_key_file(path: Path) -> str:
    """Makes an agent's key in a new file that only its user may read; answers its thumbprint. Raises KeyFileExists."""
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise KeyFileExists(f"{path} exists already and is not written over") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return jws.jkt(key.public_key())


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """An agent's key out of its file; raises KeyFileMissing, KeyMalformed."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise KeyFileMissing(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise KeyMalformed(f"{path} is not an unencrypted private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise KeyMalformed(f"{path} does not hold a P-256 key")
    return key


def _check_no_old_approval(path: Path | None) -> None:
    """A file that is there before the request is made cannot be its approval."""
    if path is not None and path.exists():
        raise ApprovalNotGiven(f"{path} exists already, from an earlier request: take it away first")


def _read_file(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _read_token(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    # a file that is still being written has not all its parts
    by_passkey = text.count("~") == 3 and not text.endswith("~")
    return text if by_passkey or (text.count(".") == 2 and not text.endswith(".")) else None
