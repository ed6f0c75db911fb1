"""A crowd of slow clients as a process: `HOST PORT SECONDS SCALE`; one JSON line when it is there, one SECONDS later.

Each waits as long as it is let, and comes back a second after it was sent away. Every group has addresses of its own in
127.0.0.0/8. The last line says, per group, how many came, the longest that one stayed, and how many were there at once.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PAUSE = 0.5


@dataclass
class Group:
    """`count` clients on `addresses` addresses of one network; idle ones come once only; `act` None = never reads."""

    name: str
    count: int
    addresses: int
    network: int
    tls: bool
    act: Act | None
    comes_back: bool = True
    came: int = 0
    refused: int = 0
    longest: float = 0.0
    here: int = 0
    most: int = 0


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A byte every half second until the server has enough."""
    closed = asyncio.ensure_future(reader.read())
    while not closed.done():
        writer.write(b"x")
        await asyncio.wait([closed], timeout=PAUSE)
    await closed


async def drip_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /.well-known/est/cacerts HTTP/1.1\r\nX: ")
    await drip(reader, writer)


async def drip_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: x\r\nContent-Type: application/pkcs10\r\n"
        b"Content-Length: 4000\r\n\r\n"
    )
    await drip(reader, writer)


async def never_read(raw: socket.socket, context: ssl.SSLContext) -> None:
    """Asks again and again and takes nothing of the answers, over the bare socket: a stream would read ahead for it."""
    with await asyncio.to_thread(_greet, raw, context) as sock, suppress(OSError):
        while True:
            with suppress(ssl.SSLWantWriteError):
                sock.send(b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
            await asyncio.sleep(0.1)


def _greet(raw: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    raw.settimeout(15)
    sock = context.wrap_socket(raw)
    sock.setblocking(False)
    return sock


async def half_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x16\x03\x01\x02\x00\x01")
    await reader.read()


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def groups(scale: float) -> list[Group]:
    """Who is in the crowd; `scale` 1 = as reliability wants it."""

    def so_many(count: int) -> int:
        return max(1, round(count * scale))

    return [
        Group("header drip", so_many(200), 50, 10, True, drip_header),
        Group("body drip", so_many(200), 50, 11, True, drip_body),
        Group("never reads", so_many(20), 20, 12, True, None),
        Group("TLS stall", so_many(200), 50, 13, False, half_hello),
        Group("idle, one address", so_many(5000), 1, 14, False, idle, comes_back=False),
        Group("idle, an address each", so_many(500), 500, 15, True, idle, comes_back=False),
    ]


async def visit(group: Group, number: int, place: tuple[str, int], context: ssl.SSLContext) -> None:
    source = f"127.{group.network}.{number % group.addresses // 250}.{number % group.addresses % 250 + 1}"
    while True:
        raw = socket.socket()
        try:
            raw.setblocking(False)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.bind((source, 0))
            async with asyncio.timeout(15):
                await asyncio.get_running_loop().sock_connect(raw, place)
            stayed = await _stay(group, raw, context)
        except (OSError, TimeoutError):
            group.refused += 1
        else:
            group.longest = max(group.longest, stayed)
        finally:
            raw.close()
        if not group.comes_back:
            return
        await asyncio.sleep(1)


async def _stay(group: Group, raw: socket.socket, context: ssl.SSLContext) -> float:
    begun = time.monotonic()
    group.came += 1
    group.here += 1
    group.most = max(group.most, group.here)
    try:
        if group.act is None:
            await never_read(raw, context)
            return time.monotonic() - begun
        more = {"ssl": context, "server_hostname": ""} if group.tls else {}
        async with asyncio.timeout(15):
            reader, writer = await asyncio.open_connection(sock=raw, **more)  # type: ignore[arg-type]
        begun = time.monotonic()  # the handshake has a deadline of its own
        try:
            with suppress(OSError):
                async with asyncio.timeout(60):
                    await group.act(reader, writer)
        finally:
            writer.transport.abort()
        return time.monotonic() - begun
    finally:
        group.here -= 1


async def crowd(place: tuple[str, int], seconds: float, scale: float) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    everybody = groups(scale)
    tasks = []
    for group in everybody:
        for number in range(group.count):
            tasks.append(asyncio.create_task(visit(group, number, place, context)))
            if number % 10 == 9:
                await asyncio.sleep(0.02)
    print(json.dumps({"here": sum(group.here for group in everybody)}), flush=True)
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    told = {
        group.name: {
            "clients": group.count,
            "came": group.came,
            "refused": group.refused,
            "longest": round(group.longest, 1),
            "most": group.most,
        }
        for group in everybody
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    host, port, seconds, scale = sys.argv[1:]
    asyncio.run(crowd((host, int(port)), float(seconds), float(scale)))
