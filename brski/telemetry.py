"""Status messages of the pledge: was the voucher good, did enrolment work (RFC 8995, sections 5.7 and 5.9.4).

Both bodies have one shape. What they say is a claim of whoever holds the TLS client certificate; nothing inside them
identifies a device.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from brski.errors import TelemetryMalformed
from brski.leaves import UNPRINTABLE
from est.errors import EstError
from est.transfer import read_json

VERSION = 1
MAX_BYTES = 8192
MAX_REASON = 256

_KNOWN = frozenset({"version", "status", "reason", "reason-context"})
_T = TypeVar("_T", bound="Status")


@dataclass(frozen=True, slots=True)
class Status:
    """One status message.

    `reason` is public text without control characters, `reason_context` any JSON object, `unknown` the names of members
    that this version does not know (to be logged, otherwise ignored).
    """

    status: bool
    reason: str = ""
    reason_context: Mapping[str, object] = field(default_factory=dict)
    version: int = VERSION
    unknown: tuple[str, ...] = ()

    @property
    def is_newer(self) -> bool:
        """Whether the message is of a version that a human should hear about (RFC 8995, section 5.7)."""
        return self.version > VERSION


class VoucherStatus(Status):
    """The pledge about the voucher; false stops its enrolment."""

    __slots__ = ()


class EnrollStatus(Status):
    """The pledge about its enrolment."""

    __slots__ = ()


def read_voucher_status(body: bytes) -> VoucherStatus:
    """The body of a POST to voucher_status; raises TelemetryMalformed."""
    return _read(VoucherStatus, body)


def read_enroll_status(body: bytes) -> EnrollStatus:
    """The body of a POST to enrollstatus; raises TelemetryMalformed."""
    return _read(EnrollStatus, body)


def write(message: Status) -> bytes:
    """The JSON body of a status message; `reason` is left out on success (RFC 8995, section 5.7)."""
    members: dict[str, object] = {"version": message.version, "status": message.status}
    if not message.status:
        members["reason"] = _clean(message.reason) or "refused"
    if message.reason_context:
        members["reason-context"] = dict(message.reason_context)
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()


def _read(shape: type[_T], body: bytes) -> _T:
    try:
        document = read_json(body, max_bytes=MAX_BYTES, max_depth=8)
    except EstError as cause:
        raise TelemetryMalformed(f"not a status message: {cause.detail}") from cause
    if not isinstance(document, dict):
        raise TelemetryMalformed("a status message is a JSON object")
    status = document.get("status")
    # 0, 1 and "true" are not a positive answer by accident: anything but a JSON boolean is malformed
    if not isinstance(status, bool):
        raise TelemetryMalformed("status is missing or not true or false")
    reason = document.get("reason", "")
    if not isinstance(reason, str):
        raise TelemetryMalformed("reason is not a string")
    context = document.get("reason-context", {})
    if not isinstance(context, dict):
        raise TelemetryMalformed("reason-context is not an object")
    return shape(
        status=status,
        reason=_clean(reason),
        reason_context=MappingProxyType(context),
        version=_version(document.get("version")),
        unknown=tuple(sorted(_clean(name) for name in document.keys() - _KNOWN)),
    )


def _version(value: object) -> int:
    # some pledges send the number as a string
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,8}", value, re.ASCII):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise TelemetryMalformed("version is missing or not a positive number")


def _clean(text: str) -> str:
    """`text` on one line and not longer than MAX_REASON, because it goes into logs."""
    return UNPRINTABLE.sub(" ", text)[:MAX_REASON].strip()
