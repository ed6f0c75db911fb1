"""The registrar's endpoints: names of the route table and what they call; bytes travel as Call and Reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from appliance.registrar.est_service import EstService
from appliance.registrar.reports import Reports
from appliance.registrar.service import RegistrarService
from appliance.web.peer import Peer
from appliance.web.routes import Handler
from est.exchange import Call, Reply


def endpoints(
    service: RegistrarService, reports: Reports, est: EstService, *, makes_keys: bool = False
) -> Mapping[str, Handler]:
    """Endpoint name to function, as appliance.web.routes names them; serverkeygen only where a label `makes_keys`."""
    keys = {"est.serverkeygen": _endpoint(est.serverkeygen)} if makes_keys else {}
    return {
        **keys,
        "registrar.request_voucher": _endpoint(service.request_voucher),
        "registrar.voucher_status": _endpoint(reports.voucher_status),
        "registrar.enroll_status": _endpoint(reports.enroll_status),
        "registrar.csrattrs": _endpoint(est.csrattrs),
        "est.cacerts": _endpoint(est.cacerts),
        "est.simpleenroll": _endpoint(est.simpleenroll),
        "est.simplereenroll": _endpoint(est.simplereenroll),
        "est.fullcmc": _endpoint(est.fullcmc),
    }


def _endpoint(serve: Callable[[Call, Peer], Awaitable[Reply]]) -> Handler:
    """The paths of these endpoints have no parameters of their own; the EST label stands in the path itself."""

    def handler(call: Call, peer: Peer, params: Mapping[str, str]) -> Awaitable[Reply]:
        return serve(call, peer)

    return handler
