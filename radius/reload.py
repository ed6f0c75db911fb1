"""Whether a running FreeRADIUS 3.2 takes a change of its folder by HUP, or only by a restart.

A HUP makes it read its virtual servers anew and nothing else that counts here: clients (clients.conf), EAP with its
certificates and CAs, rlm_rest, the dictionary and every socket stay as they were when it started.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_SERVERS: Final = "sites-enabled/"
_AT_START: Final = re.compile(r"^(\t*)(?:listen|clients \w+) \{\n.*?^\1\}\n", re.MULTILINE | re.DOTALL)


def is_taken_by_hup(running: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether all that differs between two renderings is what virtual servers do with a packet."""
    if running.keys() != wanted.keys():
        return False
    changed = [name for name in wanted if running[name] != wanted[name]]
    return all(name.startswith(_SERVERS) and _fixed(running[name]) == _fixed(wanted[name]) for name in changed)


def _fixed(server: str) -> list[str]:
    """The blocks of a virtual server's file that are read at the start alone."""
    return [found[0] for found in _AT_START.finditer(server)]
