"""What a RADIUS worker and the process that decides say to each other: JSON behind four octets of length.

A worker reads what strangers send, so nothing that it says is trusted to be more than data: no pickles, every message
is read field by field, and one that cannot be read ends the worker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, get_args, get_origin, get_type_hints

from radius.clients import NasClient
from radius.decide import Decision, Step, refuse
from radius.errors import WorkerMessageMalformed as MessageMalformed
from radius.reasons import REASONS
from radius.request import MAX_TEXT, AccessRequest, CredentialRef, clean_text

MAX_FROM_WORKER: Final = 1 << 17
MAX_TO_WORKER: Final = 1 << 26  # the table of NAS is one message
_TEXTS: Final = frozenset(name for name in AccessRequest._fields if name not in ("credential", "owner_id_hint", "san"))


def write(message: Mapping[str, Any]) -> bytes:
    """One message."""
    text = json.dumps(message, separators=(",", ":")).encode()
    return len(text).to_bytes(4, "big") + text


class Reader:
    """Takes octets of a stream and gives whole messages."""

    def __init__(self, most: int) -> None:
        """`most` octets may one message have."""
        self._most = most
        self._octets = bytearray()

    def feed(self, octets: bytes) -> list[dict[str, Any]]:
        """The messages that are whole now. Raises MessageMalformed."""
        self._octets += octets
        found = []
        while len(self._octets) >= 4:
            length = int.from_bytes(self._octets[:4], "big")
            if length > self._most:
                raise MessageMalformed(f"a message of {length} octets")
            if len(self._octets) < 4 + length:
                break
            found.append(read(bytes(self._octets[4 : 4 + length])))
            del self._octets[: 4 + length]
        return found


def read(octets: bytes) -> dict[str, Any]:
    """One message without its length. Raises MessageMalformed."""
    try:
        found = json.loads(octets)
    except (ValueError, RecursionError) as cause:
        raise MessageMalformed("not JSON") from cause
    if not isinstance(found, dict):
        raise MessageMalformed("not an object")
    return found


def write_request(request: AccessRequest) -> dict[str, Any]:
    """A login; what is empty is left out."""
    found = {name: value for name, value in request._asdict().items() if value not in ("", None)}
    if request.credential is not None:
        found["credential"] = [request.credential.aki, f"{request.credential.serial:x}"]
    return found


def read_request(found: object) -> AccessRequest:
    """The login; texts are made fit to print once more. Raises MessageMalformed."""
    if not isinstance(found, dict):
        raise MessageMalformed("a request must be an object")
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name in _TEXTS and isinstance(value, str):
            values[name] = clean_text(value, MAX_TEXT)
        elif name in ("owner_id_hint", "san") and isinstance(value, str) and len(value) <= 4096:
            values[name] = value
        elif name == "credential":
            match value:
                case [str() as aki, str() as serial] if _is_hex(aki, 128) and _is_hex(serial, 64):
                    values[name] = CredentialRef(aki, int(serial, 16))
                case _:
                    raise MessageMalformed("a credential is two hex texts")
        else:
            raise MessageMalformed(f"field {name[:40]!r} of a request")
    return AccessRequest(**values)


def write_decision(decision: Decision) -> dict[str, Any]:
    """Everything but the request, which the asker has."""
    return decision._replace(request=None)._asdict()  # type: ignore[arg-type]


def read_decision(found: Mapping[str, Any], request: AccessRequest) -> Decision:
    """The decision on `request`."""
    values = {name: _whole(name, value) for name, value in found.items()}
    values["steps"] = tuple(Step(*step) for step in found["steps"])
    values["request"] = request
    return Decision._make(values[name] for name in Decision._fields)


def _whole(name: str, value: Any) -> Any:
    """Lists as the tuples, or named tuples, that they were."""
    if not isinstance(value, list):
        return value
    kind = _NAMED.get(name)
    items = tuple(tuple(one) if isinstance(one, list) else one for one in value)
    return items if kind is None else kind(*items)


def _named() -> dict[str, Any]:
    """Which fields of a Decision are named tuples."""
    found = {}
    for name, hint in get_type_hints(Decision).items():
        for kind in (hint,) if get_origin(hint) is tuple else get_args(hint) or (hint,):
            if hasattr(kind, "_fields"):
                found[name] = kind
    return found


_NAMED: Final = _named()


def write_failure(decision: Decision) -> dict[str, Any]:
    """A login that failed before policy: request, code, evidence."""
    failed = next((step for step in decision.steps if step.outcome == "fail"), decision.steps[0])
    return {"request": write_request(decision.request), "code": decision.reason_code, "detail": failed.evidence}


def read_failure(found: Mapping[str, Any]) -> Decision:
    """The refusal made anew. Raises MessageMalformed."""
    code, detail = found.get("code"), found.get("detail")
    if not isinstance(code, str) or code not in REASONS or not isinstance(detail, str):
        raise MessageMalformed("a failure needs a reason code and its detail")
    return refuse(read_request(found.get("request")), code, clean_text(detail, 300))


def write_clients(rows: list[NasClient]) -> list[list[Any]]:
    """The table of NAS."""
    return [[row.network, row.name, row.secret.decode("latin-1"), row.old_secret.decode("latin-1"), row.until]
            for row in rows]  # fmt: skip


def read_clients(found: list[list[Any]]) -> list[NasClient]:
    """The table of NAS."""
    return [
        NasClient(network, name, secret.encode("latin-1"), old.encode("latin-1"), until)
        for network, name, secret, old, until in found
    ]


def _is_hex(text: str, most: int) -> bool:
    return 0 < len(text) <= most and all(char in "0123456789abcdef" for char in text)
