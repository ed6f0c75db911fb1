"""Calls to the Agent API over the proxy's socket."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from appliance.agent.answers import MAX_ANSWER, read_answer, refusal_of
from appliance.agent.errors import AgentApiAnswerUnusable, AgentApiUnreachable
from appliance.binding import composite
from appliance.web.unix_path import short_path


@dataclass(frozen=True, slots=True)
class AgentApi:
    """The Agent API of one proxy while it is open."""

    socket: Path
    session: aiohttp.ClientSession

    async def call(self, method: str, path: str, body: bytes | None = None) -> dict[str, object]:
        """What came with a 200; raises what `refusal_of` makes of another status, and as send()."""
        status, headers, answer = await self.send(method, path, body)
        if status != 200:
            raise refusal_of(status, answer, headers)
        return read_answer(answer)

    async def send(self, method: str, path: str, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of an answer; raises AgentApiUnreachable, AgentApiAnswerUnusable."""
        headers = {"content-type": composite.MEDIA_TYPE if path == "/v1/enroll" else "application/json"}
        try:
            async with self.session.request(
                method, f"http://agent-api{path}", data=body, headers=headers if body else None, allow_redirects=False
            ) as reply:
                answer = await reply.content.read(MAX_ANSWER + 1)
                while not reply.content.at_eof() and len(answer) <= MAX_ANSWER:
                    answer += await reply.content.read(MAX_ANSWER + 1)
                if len(answer) > MAX_ANSWER:
                    raise AgentApiAnswerUnusable(f"{path}: more than {MAX_ANSWER} bytes")
                return reply.status, reply.headers, answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise AgentApiUnreachable(f"{self.socket}: {str(error) or 'no answer in time'}") from error


@contextlib.asynccontextmanager
async def agent_api(socket: Path, *, call_seconds: float) -> AsyncIterator[AgentApi]:
    """Opens the Agent API at a socket; every call has a deadline of `call_seconds`."""
    timeout = aiohttp.ClientTimeout(total=call_seconds)
    with short_path(socket) as short:
        connector = aiohttp.UnixConnector(path=short)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            yield AgentApi(socket, session)
