"""The few messages of the Workload API as protocol buffers, and their framing by gRPC; no more of either is needed.

Fields stand in the SPIFFE Workload API's `workload.proto`; all that are sent are length-delimited. Requests are empty
messages: what is in them is skipped, as unknown fields are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum

MAX_REQUEST_BYTES = 4096
PREFIX_BYTES = 5


class Code(IntEnum):
    """Status codes of gRPC that are used here."""

    OK = 0
    INVALID_ARGUMENT = 3
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Status(Exception):
    """How a call ends, if not well."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def x509_svid_response(spiffe_id: str, chain: bytes, key: bytes, bundle: bytes) -> bytes:
    """X509SVIDResponse with one SVID: chain and bundle as certificates in a row, key as PKCS#8, all DER."""
    svid = _field(1, spiffe_id.encode()) + _field(2, chain) + _field(3, key) + _field(4, bundle)
    return _field(1, svid)


def x509_bundles_response(bundles: Mapping[str, bytes]) -> bytes:
    """X509BundlesResponse: DER certificates in a row by the trust domain's SPIFFE ID."""
    return b"".join(_field(2, _field(1, name.encode()) + _field(2, der)) for name, der in bundles.items())


def frame(message: bytes) -> bytes:
    """One message as gRPC carries it: uncompressed, with its length before it."""
    return struct.pack(">BI", 0, len(message)) + message


def check_request(body: bytes) -> None:
    """One framed message and no more. Raises Status."""
    if len(body) > MAX_REQUEST_BYTES:
        raise Status(Code.RESOURCE_EXHAUSTED, f"a request has at most {MAX_REQUEST_BYTES} octets")
    if len(body) < PREFIX_BYTES:
        raise Status(Code.INTERNAL, "the request is cut short")
    compressed, length = struct.unpack_from(">BI", body)
    if compressed:
        raise Status(Code.UNIMPLEMENTED, "compressed requests are not read")
    if length != len(body) - PREFIX_BYTES:
        raise Status(Code.INTERNAL, "the request is not one message")


def percent(text: str) -> str:
    """A status message as the trailer `grpc-message` has it."""
    octets = text.encode()[:512]
    return "".join(chr(one) if 0x20 <= one <= 0x7E and one != 0x25 else f"%{one:02X}" for one in octets)


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)
