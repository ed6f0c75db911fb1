"""How pledges and join proxies find this registrar: DNS-SD over mDNS (RFC 8995, appendix B).

Join proxies look for `_brski-registrar._tcp`. Where the registrar takes pledges itself it announces `_brski-proxy._tcp`
as well, with the same port: on a flat network a pledge cannot tell the difference (RFC 8995, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.mdns.announcer import PROBE_SECONDS
from appliance.mdns.announcer import Announcer as MdnsAnnouncer
from brski import discovery


class Announcer(MdnsAnnouncer):
    """The registrar's announcement, from `start` to `stop`."""

    def __init__(
        self,
        *,
        interfaces: Sequence[str],
        host: str,
        port: int,
        instance: str,
        as_proxy: bool = True,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        super().__init__(
            interfaces=interfaces,
            host=host,
            port=port,
            instance=instance,
            services=(discovery.REGISTRAR_SERVICE, *((discovery.PROXY_SERVICE,) if as_proxy else ())),
            probe_seconds=probe_seconds,
        )
