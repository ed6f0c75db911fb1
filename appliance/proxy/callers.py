"""Which local user asked with which agent key: an answer goes only to the one who asked first (A-16).

Remembered across restarts, bounded in all and per user, forgotten a day after the last use (the life of a nonce).
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict

from appliance.clock import Clock
from appliance.proxy.errors import ProxyStateDamaged, RequestNotYours
from appliance.proxy.state import ProxyState

log = logging.getLogger(__name__)

MAX_KEYS = 4096
MAX_KEYS_PER_USER = 1024
KEPT_SECONDS = 86_400
_FILE = "callers.json"


class CallerBook:
    """Thumbprints of agent keys with the uid that brought them."""

    def __init__(self, state: ProxyState, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._owners: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._load()

    def claim(self, uid: int, jkt: str) -> None:
        """Note that `uid` uses this key. Raises RequestNotYours if another user did before."""
        now = self._clock.now().timestamp()
        known = self._owners.get(jkt)
        if known is not None and known[1] > now:
            if known[0] != uid:
                raise RequestNotYours("another local user has asked with this key")
            self._owners[jkt] = (uid, now + KEPT_SECONDS)
            self._owners.move_to_end(jkt)
            return
        self._owners[jkt] = (uid, now + KEPT_SECONDS)
        self._owners.move_to_end(jkt)
        self._shrink(uid, now)
        # lost on power failure at worst, never half written: the server still holds the nonce to its key
        entries = {key: list(value) for key, value in self._owners.items()}
        try:
            self._state.write(_FILE, json.dumps(entries, separators=(",", ":")).encode(), durable=False)
        except ProxyStateDamaged as refusal:
            log.warning("whose keys are whose will not survive a restart: %s", refusal.detail)

    def _shrink(self, uid: int, now: float) -> None:
        for key in [key for key, (_, until) in self._owners.items() if until <= now]:
            del self._owners[key]
        # a user who floods displaces its own entries only
        own = [key for key, (owner, _) in self._owners.items() if owner == uid]
        for key in own[: max(0, len(own) - MAX_KEYS_PER_USER)]:
            del self._owners[key]
        while len(self._owners) > MAX_KEYS:
            self._owners.popitem(last=False)

    def _load(self) -> None:
        body = self._state.read(_FILE)
        if body is None:
            return
        try:
            for key, (uid, until) in json.loads(body).items():
                self._owners[str(key)] = (int(uid), float(until))
        except (ValueError, TypeError, AttributeError):
            log.warning("callers.json does not read; local callers are learned anew")
            self._owners.clear()
