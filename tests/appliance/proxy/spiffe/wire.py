"""A gRPC client of our own, small enough to send what no good client sends; and a reader of protocol buffers."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes

EMPTY = struct.pack(">BI", 0, 0)
FETCH = "/SpiffeWorkloadAPI/FetchX509SVID"
BUNDLES = "/SpiffeWorkloadAPI/FetchX509Bundles"


def fields(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each length-delimited field."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            octet = body[at]
            at += 1
            value |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                return value

    while at < len(body):
        tag = varint()
        assert tag & 7 == 2
        length = varint()
        assert at + length <= len(body)
        yield tag >> 3, body[at : at + length]
        at += length


class Client:
    """One connection; one call at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, window: int) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.flush()
        self.body = b""
        self.status: dict[str, str] = {}
        self.is_over = False

    @classmethod
    async def open(cls, path: Path, *, window: int = 65_535) -> Client:
        return cls(*await asyncio.open_unix_connection(str(path)), window=window)

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def call(self, path: str = FETCH, body: bytes = EMPTY, **headers: str) -> int:
        values = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
            "te": "trailers", "content-type": "application/grpc", "workload.spiffe.io": "true",
        }  # fmt: skip
        values |= {name.replace("_", "-"): value for name, value in headers.items()}
        if values["workload.spiffe.io"] == "":
            del values["workload.spiffe.io"]
        return self.raw(list(values.items()), body)

    def raw(self, headers: list[tuple[str, str]], body: bytes) -> int:
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, headers)
        self.h2.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    async def _read(self) -> None:
        data = await self.reader.read(65_536)
        if not data:
            self.is_over = True
            return
        for event in self.h2.receive_data(data):
            self._on(event)
        self.flush()

    def _on(self, event: Any) -> None:
        if isinstance(event, DataReceived):
            self.body += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, ResponseReceived | TrailersReceived):
            self.status |= {str(name): str(value) for name, value in event.headers}
        elif isinstance(event, StreamEnded | StreamReset | ConnectionTerminated):
            self.is_over = True

    async def message(self) -> bytes:
        """The next message of the stream."""
        async with asyncio.timeout(20):
            while True:
                if len(self.body) >= 5:
                    _, length = struct.unpack_from(">BI", self.body)
                    if len(self.body) >= 5 + length:
                        found, self.body = self.body[5 : 5 + length], self.body[5 + length :]
                        return found
                assert not self.is_over, self.status
                await self._read()

    async def end(self) -> dict[str, str]:
        """Headers and trailers, once the call is over."""
        async with asyncio.timeout(20):
            while not self.is_over:
                await self._read()
        return self.status

    def close(self) -> None:
        self.writer.close()


async def refused(path: Path, method: str = FETCH, body: bytes = EMPTY, **headers: str) -> tuple[int, str]:
    """Status code and message of a call that gets no message."""
    client = await Client.open(path)
    client.call(method, body, **headers)
    status = await client.end()
    client.close()
    assert client.body == b""
    return int(status["grpc-status"]), status.get("grpc-message", "")
