"""The story of one bootstrap, step by step: kept in the state folder and told to whoever listens while it happens.

Steps carry public facts only: reason slugs, hints for the operator, fingerprints. Never secrets, keys or bodies.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from appliance.clock import Clock
from est.errors import Refusal

log = logging.getLogger(__name__)

Listener = Callable[[dict[str, object]], None]
"""Gets every event as a JSON-ready object with a member `event`."""

HINTS: Mapping[str, str] = {
    "peer-unreachable": "is the registrar running, and the port open between here and there?",
    "peer-connection-closed": "the registrar probably does not know this device's manufacturer",
    "tls-handshake-failed": "the registrar probably does not know this device's manufacturer, or speaks no TLS 1.2",
    "registrar-refused": "look at `appliance pledges knocking` on the registrar for the reason",
    "voucher-signature-invalid": "the voucher is not from this device's manufacturer: wrong MASA, or an attack",
    "voucher-for-other-device": "the MASA answered for another serial number",
    "voucher-for-other-request": "an old voucher was replayed",
    "domain-not-pinned": "the server on this connection is not the one that the manufacturer vouches for",
    "server-untrusted": "the server's chain does not end in the configured anchor",
    "server-not-authorized": "right CA, wrong server: neither the configured name nor the RA mark",
    "fingerprint-mismatch": "compare proxy.est_fingerprint with `appliance` on the server, by a way you trust",
    "enrollment-refused": "is the one-time secret right and unspent, the pledge admitted?",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened. `code` is "ok" or the slug of a refusal; `milliseconds` since the step before."""

    name: str
    at: datetime
    milliseconds: float
    code: str
    hint: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        body: dict[str, object] = {
            "step": self.name,
            "at": self.at.isoformat(timespec="milliseconds"),
            "ms": round(self.milliseconds, 1),
            "code": self.code,
        }
        if self.hint:
            body["hint"] = self.hint
        return body | dict(self.facts)


@dataclass(frozen=True, slots=True)
class BootstrapReport:
    """How an LDevID was got, or why not: method, outcome (`ok` or a slug), ordered steps."""

    method: str
    outcome: str
    steps: tuple[Step, ...]

    def write(self) -> bytes:
        body = {"method": self.method, "outcome": self.outcome, "steps": [step.as_json() for step in self.steps]}
        return json.dumps(body, indent=2).encode() + b"\n"


class Reporter:
    """Collects the steps of one bootstrap. At most `MAX_STEPS` are kept: the first, and the latest."""

    MAX_STEPS = 200

    def __init__(self, method: str, clock: Clock, listener: Listener | None = None) -> None:
        self._method = method
        self._clock = clock
        self._listener = listener
        self._steps: list[Step] = []
        self._last = clock.monotonic()

    def step(self, name: str, code: str = "ok", hint: str = "", **facts: object) -> None:
        now = self._clock.monotonic()
        step = Step(name, self._clock.now(), (now - self._last) * 1000, code, hint, facts)
        self._last = now
        if len(self._steps) >= self.MAX_STEPS:
            del self._steps[self.MAX_STEPS // 2]
        self._steps.append(step)
        log.info("bootstrap step=%s code=%s ms=%.1f", name, code, step.milliseconds)
        if self._listener is not None:
            self._listener({"event": "step", **step.as_json()})

    def refused(self, name: str, refusal: Refusal, **facts: object) -> None:
        """A step that ended in a refusal: its slug, its public detail, and what an operator may do about it."""
        self.step(name, refusal.reason, HINTS.get(refusal.reason, ""), detail=refusal.detail, **facts)

    def report(self, outcome: str) -> BootstrapReport:
        return BootstrapReport(self._method, outcome, tuple(self._steps))
