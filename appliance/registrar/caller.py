"""Who is calling, as the audit log names it."""

from __future__ import annotations

from typing import NamedTuple

from appliance import audit
from appliance.audit import Actor
from appliance.web.peer import Peer
from est.exchange import Call


class Caller(NamedTuple):
    """The TLS client of one request: fingerprint of its certificate ("" without one), address, request id."""

    fingerprint: str
    address: str
    request_id: str

    def as_actor(self, kind: str, identifier: str) -> Actor:
        """The caller as an actor of the audit log."""
        if not self.fingerprint and not self.address:
            return audit.APPLIANCE
        return Actor(kind, identifier, self.fingerprint, self.address)


APPLIANCE = Caller("", "", "")
"""The appliance itself, where nobody called."""


def caller_of(call: Call, peer: Peer) -> Caller:
    """The caller behind a call."""
    fingerprint = peer.certificate_sha256
    return Caller("" if fingerprint is None else fingerprint.hex(), peer.address, call.headers.get("x-request-id", ""))
