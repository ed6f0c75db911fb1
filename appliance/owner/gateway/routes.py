"""The gateway's endpoint for proxies: Call and Peer in, Reply out."""

from __future__ import annotations

import json
from collections.abc import Mapping

from appliance.binding import composite
from appliance.owner.gateway.service import GatewayService, Pending
from appliance.web.peer import Peer
from appliance.web.routes import Handler, Route
from est.errors import MediaTypeNotAccepted
from est.exchange import Call, Reply

JSON = "application/json"
PROBLEM = "application/problem+json"
ENROLL_PATH = "/v1/gateway/enroll"

ROUTES: tuple[Route, ...] = (
    Route(
        "gateway", "POST", ENROLL_PATH, "gateway.enroll", "certificate", frozenset({composite.MEDIA_TYPE}),
        composite.MAX_BYTES, "address", 60,
    ),
)  # fmt: skip
"""Every route of the gateway; the rates of proxies, agents and all are the service's own."""


def endpoints(service: GatewayService) -> Mapping[str, Handler]:
    """Endpoint names of ROUTES with their functions."""

    async def enroll(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        if call.media_type.partition(";")[0].strip().lower() != composite.MEDIA_TYPE:
            raise MediaTypeNotAccepted(f"a composite request is {composite.MEDIA_TYPE}")
        answer = await service.enroll(call.body, peer)
        headers = {"cache-control": "no-store"}
        if isinstance(answer, Pending):
            headers["retry-after"] = str(answer.retry_after_seconds)
            body = {"rqh": answer.rqh, "retry_after": answer.retry_after_seconds}
            return Reply(202, JSON, headers, json.dumps(body).encode("ascii"))
        if answer.retry_after:
            headers["retry-after"] = answer.retry_after
        media_type = JSON if answer.status in (200, 201) else PROBLEM
        return Reply(answer.status, media_type, headers, json.dumps(answer.value).encode("ascii"))

    return {"gateway.enroll": enroll}
