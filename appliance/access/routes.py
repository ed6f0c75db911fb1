"""The decision port: bytes to AccessRequest, Decision to rlm_rest's answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from appliance.access.service import AccessService
from appliance.access.sessions import SessionService
from appliance.access.sites import LABEL, RadiusSites, token_name
from appliance.errors import NotPermitted, TokenRequired
from appliance.web.peer import Peer
from appliance.web.routes import Handler
from est.exchange import Call, Reply
from est.transfer import read_json_pairs
from radius.accounting import read_accounting_json
from radius.decide import Decision, refuse
from radius.dropped import read_dropped
from radius.failures import Failure, read_failure
from radius.hook import read_hook, write_answer
from radius.request import MAC_BYPASS

MAX_BODY = 65_536


class AccessRoutes:
    """Endpoint functions of the decision port."""

    def __init__(
        self,
        service: AccessService,
        sessions: SessionService,
        *,
        owner_id_oid: str,
        reply_message: bool,
        sites: RadiusSites | None = None,
    ) -> None:
        """`sites`: callers are on other machines, and each must be one of these (its certificate and its token)."""
        self._service = service
        self._sessions = sessions
        self._sites = sites
        self._owner_id_oid = owner_id_oid
        self._reply_message = reply_message

    def decide(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """POST /v1/decide, once per login: rlm_rest's attributes in, reply attributes out; it never waits."""
        self._check_token(call, peer)
        decision = self._service.authorize(read_hook(_document(call), owner_id_oid=self._owner_id_oid))
        answer = write_answer(decision, reply_message=self._reply_message)
        self._sessions.accepted(decision)
        return Reply(200, "application/json", body=answer)

    def fail(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """POST /radius/failure: the attributes of a login that FreeRADIUS rejected without asking; it becomes a row.

        So do packets that it dropped, which its supervisor counts and tells.
        """
        self._check_token(call, peer)
        document = _document(call)
        dropped = read_dropped(document)
        if dropped is None:
            failure = read_failure(document, owner_id_oid=self._owner_id_oid)
            self._service.failed(failure.request, self._why(failure))
        for failure, times in dropped or ():
            self._service.failed(failure.request, refuse(failure.request, failure.code, failure.detail), times)
        return Reply(204)

    async def accounting(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """POST /radius/accounting: an accounting message as rlm_rest posts it; 204 once it is stored."""
        self._check_token(call, peer)
        await self._sessions.account(read_accounting_json(_document(call)))
        return Reply(204)

    def _why(self, failure: Failure) -> Decision:
        """The refusal to log; a port that asked by MAC address gets the policy's own reason against it, if it has one.

        FreeRADIUS asks us only about those that the policy and their transport allow.
        """
        if failure.request.method == MAC_BYPASS:
            decision = self._service.simulate(failure.request)
            if decision.verdict == "reject":
                return decision
        return refuse(failure.request, failure.code, failure.detail)

    def _check_token(self, call: Call, peer: Peer) -> None:
        """A RADIUS server's token; from another machine also the certificate of the same server."""
        scheme, _, token = call.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenRequired("the decision port wants a bearer token")
        token = token.strip()
        holder = self._service.check_token(token)
        if self._sites is not None and holder != token_name(self._sites.name_of(peer)):
            raise NotPermitted("the bearer token is not that of the server whose certificate was shown")
        self._service.served_with(holder, token)


def decision_endpoints(sites: RadiusSites) -> Mapping[str, Handler]:
    """What RADIUS servers on other machines ask at the decision port beside decisions."""

    async def configuration(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        return await sites.configuration(call, peer)

    return {"radius.configuration": configuration}


def est_endpoints(sites: RadiusSites, others: Mapping[str, Handler]) -> Mapping[str, Handler]:
    """EST endpoints where the label of RADIUS servers leads to `sites`, and everything else to `others`."""
    own: Mapping[str, Callable[[Call, Peer], Awaitable[Reply]]] = {
        "est.cacerts": sites.cacerts,
        "registrar.csrattrs": sites.csrattrs,
        "est.simpleenroll": sites.simpleenroll,
        "est.simplereenroll": sites.simplereenroll,
    }

    def either(name: str) -> Handler:
        theirs, ours = others[name], own[name]

        def handler(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply | Awaitable[Reply]:
            return ours(call, peer) if params.get("label") == LABEL else theirs(call, peer, params)

        return handler

    return {**others, **{name: either(name) for name in own}}


def _document(call: Call) -> object:
    return read_json_pairs(call.body, max_bytes=MAX_BODY)
