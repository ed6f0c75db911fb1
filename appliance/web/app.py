"""App: the routes of one listener joined with their endpoints; a Call goes in, a Reply comes out, always.

No socket here: web.server feeds it, and tests call handle() directly.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from appliance.errors import AnswerTooSlow, CertificateRequired, RouteUnknown
from appliance.web.limits import Limits
from appliance.web.peer import Peer
from appliance.web.problems import one_line, problem, status_of
from appliance.web.routes import OPTIONAL, ROUTES, Handler, ListenerName, Route
from est.errors import BodyTooLarge, MediaTypeNotAccepted, MethodNotAllowed, Refusal
from est.exchange import Call, Reply

_log = logging.getLogger(__name__)
_NO_PARAMETERS: Mapping[str, str] = {}
_PARAMETER = re.compile(r"\{(\w+)(\*?)\}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A route with its endpoint function."""

    route: Route
    handler: Handler


class Match(NamedTuple):
    """The entry for a request, and the path's parameters."""

    entry: Entry
    params: Mapping[str, str]


class App:
    """Dispatch, limits, deadline and error answers of one listener."""

    def __init__(self, entries: Iterable[Entry], limits: Limits | None) -> None:
        self._limits = limits
        self._fresh_ids: list[str] = []
        self._fixed: dict[str, dict[str, Entry]] = {}
        self._patterns: dict[str, tuple[re.Pattern[str], dict[str, Entry]]] = {}
        for entry in entries:
            path = entry.route.path
            if "{" not in path:
                methods = self._fixed.setdefault(path, {})
            else:
                methods = self._patterns.setdefault(path, (_pattern(path), {}))[1]
            methods[entry.route.method] = entry

    def new_request_id(self) -> str:
        """A name for one request in logs, audit and answers; the system is asked for randomness once in 256 times."""
        if not self._fresh_ids:
            drawn = os.urandom(256 * 8).hex()
            self._fresh_ids = [drawn[at : at + 16] for at in range(0, len(drawn), 16)]
        return self._fresh_ids.pop()

    def match(self, method: str, path: str) -> Match:
        """Find the route; raises RouteUnknown or MethodNotAllowed. HEAD is GET without the body."""
        methods = self._fixed.get(path)
        params = _NO_PARAMETERS
        if methods is None:
            for pattern, candidates in self._patterns.values():
                found = pattern.fullmatch(path)
                if found is not None:
                    methods, params = candidates, found.groupdict()
                    break
            else:
                raise RouteUnknown("nothing is here")
        entry = methods.get("GET" if method == "HEAD" else method)
        if entry is None:
            allow = sorted({*methods, "HEAD"} if "GET" in methods else methods)
            raise MethodNotAllowed("this path has other methods", allow=", ".join(allow))
        return Match(entry, params)

    def admit(self, match: Match, media_type: str, peer: Peer, content_length: int | None) -> None:
        """Everything that is checked before the body is read: certificate, rate, media type, announced length."""
        route = match.entry.route
        if self._limits is not None:
            self._limits.check(route.rate, peer)
        if route.who == "certificate" and peer.certificate is None:
            raise CertificateRequired("this needs a client certificate in the TLS handshake")
        if route.media_types and media_type not in route.media_types:
            raise MediaTypeNotAccepted("the body has another media type", expected=sorted(route.media_types))
        if content_length is not None and content_length > route.max_body:
            raise BodyTooLarge("the body is too large", limit=route.max_body)

    async def handle(self, call: Call, peer: Peer) -> Reply:
        """The whole way of one request that is in memory already; never raises, except when cancelled."""
        request_id = self.new_request_id()
        try:
            match = self.match(call.method, call.path)
            self.admit(match, call.media_type, peer, len(call.body))
            tagged = replace(call, headers={**call.headers, "x-request-id": request_id})
            async with asyncio.timeout(match.entry.route.seconds):
                reply = match.entry.handler(tagged, peer, match.params)
                return reply if isinstance(reply, Reply) else await reply
        except TimeoutError:
            return refuse(too_slow(), call.method, call.path, peer, request_id)
        except Exception as error:  # noqa: BLE001 - the one door through which every error becomes an answer
            return refuse(error, call.method, call.path, peer, request_id)


def refuse(error: Exception, method: str, path: str, peer: Peer, request_id: str) -> Reply:
    """Log an error and answer it: refusals in one line, anything else with its traceback."""
    reply = problem(error, path=path, request_id=request_id)
    where = (
        f"method={one_line(method, 20)!r} path={one_line(path, 200)!r} address={peer.address} request_id={request_id}"
    )
    if isinstance(error, Refusal) and (status_of(error) or 500) != 500:
        _log.info("event=refused reason=%s status=%d detail=%r %s", error.reason, reply.status, error.detail, where)
    else:
        _log.error("event=request-failed status=%d error=%r %s", reply.status, error, where, exc_info=error)
    return reply


def too_slow() -> AnswerTooSlow:
    """The refusal for an endpoint that overran its route's deadline."""
    return AnswerTooSlow("the answer took too long", retry_after_seconds=5)


def build_app(
    listener: ListenerName,
    endpoints: Mapping[str, Handler],
    *,
    limits: Limits | None = None,
    routes: Iterable[Route] = ROUTES,
) -> App:
    """The app of one listener; LookupError names the endpoints that are missing."""
    mine = [
        route
        for route in routes
        if route.listener == listener and (route.endpoint in endpoints or route.endpoint not in OPTIONAL)
    ]
    missing = sorted({route.endpoint for route in mine} - set(endpoints))
    if missing:
        raise LookupError(f"the {listener} port lacks endpoints: {', '.join(missing)}")
    return App([Entry(route, endpoints[route.endpoint]) for route in mine], limits)


def _pattern(path: str) -> re.Pattern[str]:
    parts = []
    end = 0
    for found in _PARAMETER.finditer(path):
        parts.append(re.escape(path[end : found.start()]))
        parts.append(f"(?P<{found[1]}>{'.+' if found[2] else '[^/]+'})")
        end = found.end()
    return re.compile("".join(parts) + re.escape(path[end:]))
