"""Endpoint functions of the admin socket."""

from __future__ import annotations

import json
from collections.abc import Mapping

from appliance.console.operations import Operations
from appliance.errors import RequestMalformed
from appliance.web.peer import Peer
from est.exchange import Call, Reply
from est.transfer import read_json

MAX_OPERATION_BODY = 4 * 1024 * 1024


class AdminRoutes:
    """HOME/run/admin.sock: whoever may open the socket (mode 0600) is the administrator."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def operation(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """POST /v1/operations/{name}: JSON arguments in, JSON result out."""
        arguments = read_json(call.body or b"{}", max_bytes=MAX_OPERATION_BODY, max_depth=8)
        if not isinstance(arguments, dict):
            raise RequestMalformed("arguments are a JSON object")
        result = await self._operations.call(params["name"], arguments)
        return Reply(200, "application/json", body=json.dumps(result, ensure_ascii=False).encode())
