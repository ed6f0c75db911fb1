"""The way to owners' gateways: found through the identity server, pinned by the key that the owner's record names.

The server says where an owner's gateways are and which key each has (D-4); names, chains and dates of their
certificates mean nothing. A gateway with another key is shown no octet of HTTP. Several gateways of one owner are
tried one after the other (A-97).
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from dataclasses import dataclass

from appliance.binding.identifier import Kind, read_kind
from appliance.clock import Clock
from appliance.proxy.connection import Connection, Target, open_pinned
from appliance.proxy.errors import IdentityServerAway, OwnerGatewayAway, OwnerGatewayMissing
from appliance.proxy.link import RETRY_AFTER_SECONDS, Sender, ServerLink
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from est.errors import EstError
from est.exchange import Call, Reply
from est.transfer import read_json

log = logging.getLogger(__name__)

FRESH_SECONDS = 30.0
"""How long the server's word about an owner's gateways is used without asking again."""
MAX_OWNERS = 256
MAX_GATEWAYS = 8
CALL_SECONDS = 30.0
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Place:
    """One gateway: where it listens, and the SHA-256 of its key's SubjectPublicKeyInfo."""

    target: Target
    pin: bytes


@dataclass(slots=True)
class _Owner:
    places: tuple[_Place, ...]
    asked_at: float


class Gateways:
    """Calls to owners' gateways, over connections that are kept."""

    def __init__(self, server: Sender, state: ProxyState, clock: Clock, timing: Timing) -> None:
        self._server = server
        self._state = state
        self._clock = clock
        self._timing = timing
        self._owners: OrderedDict[str, _Owner] = OrderedDict()
        self._links: dict[_Place, ServerLink] = {}

    async def send(self, owner_id: str, call: Call) -> Reply:
        """One call to the first gateway of this owner that answers; raises OwnerGatewayMissing, OwnerGatewayAway."""
        because = ""
        for place in await self._places(owner_id):
            try:
                return await self._link(place).send(call)
            except IdentityServerAway as refusal:
                because = str(refusal.fields.get("because", ""))
                log.warning("owner gateway away owner=%s at=%s because=%s", owner_id, place.target.authority, because)
        self._owners.pop(owner_id, None)  # it may have moved, or have another key
        raise OwnerGatewayAway(
            "no gateway of this owner can be reached now", retry_after_seconds=RETRY_AFTER_SECONDS, because=because
        )

    def renewed(self) -> None:
        """Connections made with the old LDevID are not used again."""
        for link in self._links.values():
            link.renewed()

    async def close(self) -> None:
        for link in self._links.values():
            await link.close()

    async def _places(self, owner_id: str) -> tuple[_Place, ...]:
        known = self._owners.get(owner_id)
        now = self._clock.monotonic()
        if known is not None and now - known.asked_at < FRESH_SECONDS:
            return known.places
        name = read_kind(owner_id, Kind.OWNER).segments[-1]
        try:
            reply = await self._server.send(
                Call("GET", f"/v1/owners/{name}/gateways", headers={"accept": "application/json"})
            )
        except IdentityServerAway:
            if known is None:
                raise
            return known.places  # a gateway works on while the server is away, and so do we
        if reply.status != 200:
            raise OwnerGatewayMissing("the identity server knows no gateway of this owner for this proxy")
        while len(self._owners) >= MAX_OWNERS:
            self._owners.popitem(last=False)
        places = _read_places(reply.body)
        self._owners[owner_id] = _Owner(places, now)
        await self._forget_links()
        return places

    def _link(self, place: _Place) -> ServerLink:
        link = self._links.get(place)
        if link is None:

            async def opened() -> Connection:
                return await open_pinned(
                    place.target, place.pin, self._state.credential(), seconds=self._timing.connect
                )

            link = self._links[place] = ServerLink(
                self._state, place.target, self._clock, self._timing, opener=opened, call_seconds=CALL_SECONDS
            )
        return link

    async def _forget_links(self) -> None:
        named = {place for owner in self._owners.values() for place in owner.places}
        for place in [one for one in self._links if one not in named]:
            await self._links.pop(place).close()


def _read_places(body: bytes) -> tuple[_Place, ...]:
    """The server's answer; raises OwnerGatewayMissing when it names none that can be used."""
    try:
        value = read_json(body, max_bytes=65_536, max_depth=4)
        rows = value["gateways"] if isinstance(value, dict) else []
        places = tuple(
            _Place(Target.read(row["url"]), bytes.fromhex(row["spki_sha256"]))
            for row in rows[:MAX_GATEWAYS]
            if _SHA256.fullmatch(row["spki_sha256"])
        )
    except (EstError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise OwnerGatewayMissing("the identity server's word about this owner's gateways does not read") from cause
    if not places:
        raise OwnerGatewayMissing("the identity server names no gateway of this owner")
    return places
