"""The proxy's word about one agent: what the kernel shows of the calling process, signed with the LDevID key.

An EAT (RFC 9711) bound to the server's nonce, the agent's key and the hash of its request. Everything in it was seen by
this proxy, but for the claims that `self_asserted` names: those are the agent's own word, passed on. The key is in
software, and the token's claims do not pretend otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from cryptography import x509
from cryptography.x509.oid import NameOID

from appliance.binding import evidence, jws
from appliance.binding.request import AgentRequest
from appliance.binding.tpm_quote import TpmQuote
from appliance.clock import Clock
from appliance.proxy.caller import Measurement
from est.signer import Signer

LIFE_SECONDS = 240
_MAX_TEXT = 512
_IN_CONTAINER = re.compile(
    r"(?:/(?P<folder>docker|kubepods|lxc|libpod|machine)\b[^:]*)?/(?:(?P<runtime>docker|crio|cri-containerd|libpod)-)?"
    r"(?P<id>[0-9a-f]{64})(?:\.scope)?(?:/|$)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Device:
    """What stays the same in all evidence of one proxy."""

    identifier: str
    ueid: bytes
    oemid: str | None = None
    hwmodel: str | None = None

    @classmethod
    def of(cls, identifier: str, ueid_hex: str, idevid: x509.Certificate | None) -> Device:
        """With maker and model as the IDevID's subject names them, where there is one."""
        oem = model = None
        if idevid is not None:
            oem = _attribute(idevid, NameOID.ORGANIZATION_NAME)
            model = _attribute(idevid, NameOID.ORGANIZATIONAL_UNIT_NAME) or _attribute(idevid, NameOID.COMMON_NAME)
        return cls(identifier, bytes.fromhex(ueid_hex), oem, model)


def attest(
    device: Device,
    signer: Signer,
    clock: Clock,
    request: AgentRequest,
    seen: Measurement,
    said: Mapping[str, object],
    *,
    key_by_proxy: bool = False,
    quote: TpmQuote | None = None,
) -> str:
    """The evidence token about the process that handed in `request`; `said` is what the agent says of itself.

    `key_by_proxy`: the key was made here for that process, and the token says so. `quote` is the machine's own word.
    """
    now = int(clock.now().timestamp())
    return evidence.seal(
        signer,
        iss=device.identifier,
        iat=now,
        exp=now + LIFE_SECONDS,
        nonce=request.nonce,
        rqh=request.rqh,
        jkt=request.jkt,
        ueid=device.ueid,
        oemid=device.oemid,
        hwmodel=device.hwmodel,
        dbgstat="enabled" if seen.traced else "disabled",
        agent={
            "executable": _printable(seen.executable),
            "executable_digest": {"alg": "sha-256", "hash": jws.base64url(seen.executable_sha256)},
            "uid": seen.uid,
            **({} if seen.gid is None else {"gid": seen.gid}),
            "pid": seen.pid,
            "cgroup": _printable(_own_cgroup(seen.cgroups)),
            "container": _container(seen),
            **({"boot_id": _printable(seen.boot_id)} if seen.boot_id else {}),
            "swname": _printable(PurePath(seen.executable).name),
            **said,
            **({"self_asserted": sorted(said)} if said else {}),
            **({"key_origin": evidence.BY_PROXY} if key_by_proxy else {}),
        },
        quote=quote,
    )


def _own_cgroup(lines: tuple[str, ...]) -> str:
    """The unified hierarchy's line, else the first that says more than the root."""
    for line in lines:
        if line.startswith("0::") and line != "0::/":
            return line
    return next((line for line in lines if not line.endswith(":/")), lines[0] if lines else "none")


def _container(seen: Measurement) -> str:
    """A hint, no proof: runtime and identifier that the control group's name speaks of, `apart` for namespaces of its
    own without such a name, else `none`."""
    for line in seen.cgroups:
        found = _IN_CONTAINER.search(line)
        if found is not None:
            return f"{found['runtime'] or found['folder'] or 'container'}:{found['id']}"
    return "apart" if seen.is_apart else "none"


def _printable(text: str) -> str:
    """A path is chosen by whoever installed the program: one line of ASCII, never empty."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:_MAX_TEXT] or "?"


def _attribute(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str | None:
    try:
        found = certificate.subject.get_attributes_for_oid(oid)
    except ValueError:
        return None
    value = found[0].value if found else None
    return _printable(value)[:64] if isinstance(value, str) else None
