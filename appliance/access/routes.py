"""The decision port: bytes to AccessRequest, Decision to rlm_rest's answer."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.access.service import AccessService
from appliance.access.sessions import SessionService
from appliance.errors import TokenRequired
from appliance.web.peer import Peer
from est.exchange import Call, Reply
from est.transfer import read_json_pairs
from radius.accounting import read_accounting_json
from radius.decide import refuse
from radius.failures import read_failure
from radius.hook import read_hook, write_answer

MAX_BODY = 65_536
MAX_DEPTH = (
    256  # any depth that the decoder bears: what is nested at all deeper than an attribute is refused by the hook
)


class AccessRoutes:
    """Endpoint functions of the decision port."""

    def __init__(
        self, service: AccessService, sessions: SessionService, *, owner_id_oid: str, reply_message: bool
    ) -> None:
        self._service = service
        self._sessions = sessions
        self._owner_id_oid = owner_id_oid
        self._reply_message = reply_message

    def decide(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """POST /v1/decide, once per login: rlm_rest's attributes in, reply attributes out; it never waits."""
        self._check_token(call)
        decision = self._service.authorize(read_hook(_document(call), owner_id_oid=self._owner_id_oid))
        answer = write_answer(decision, reply_message=self._reply_message)
        self._sessions.accepted(decision)
        return Reply(200, "application/json", body=answer)

    def fail(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """POST /radius/failure: the attributes of a login that FreeRADIUS rejected without asking; it becomes a row."""
        self._check_token(call)
        failure = read_failure(_document(call), owner_id_oid=self._owner_id_oid)
        self._service.failed(failure.request, refuse(failure.request, failure.code, failure.detail))
        return Reply(204)

    async def accounting(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """POST /radius/accounting: an accounting message as rlm_rest posts it; 204 once it is stored."""
        self._check_token(call)
        await self._sessions.account(read_accounting_json(_document(call)))
        return Reply(204)

    def _check_token(self, call: Call) -> None:
        scheme, _, token = call.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenRequired("the decision port wants a bearer token")
        self._service.check_token(token.strip())


def _document(call: Call) -> object:
    return read_json_pairs(call.body, max_bytes=MAX_BODY, max_depth=MAX_DEPTH)
