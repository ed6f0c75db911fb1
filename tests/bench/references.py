"""The servers that ours are compared with, each its own process: `python -m tests.bench.references KIND ...`.

`aiohttp`: a plain aiohttp application that answers GET / on a kept connection, without TLS, on asyncio's own loop: P.
`mtls CERT KEY ANCHORS`: one TLS connection after the other with a client certificate that OpenSSL itself verifies, and
nothing above it: H. It is OpenSSL through pyOpenSSL, so the same library, ciphers and number of session tickets as the
appliance's device port, in a blocking accept loop, which is cheaper than any event loop.
Each prints one JSON line when it listens.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys

from aiohttp import web
from OpenSSL import SSL


def _ready(port: int) -> None:
    print(json.dumps({"pid": os.getpid(), "port": port}), flush=True)


def plain_aiohttp() -> None:
    """P."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"{}", content_type="application/json")

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        _ready(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


def bare_mtls(certificate: str, key: str, anchors: str) -> None:
    """H."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_certificate_chain_file(certificate)
    context.use_privatekey_file(key)
    context.load_verify_locations(anchors)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    _ready(listening.getsockname()[1])
    while True:
        accepted, _ = listening.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = SSL.Connection(context, accepted)
        connection.set_accept_state()
        try:
            connection.do_handshake()
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            connection.shutdown()
        except SSL.Error:
            pass
        finally:
            accepted.close()


if __name__ == "__main__":
    {"aiohttp": plain_aiohttp, "mtls": bare_mtls}[sys.argv[1]](*sys.argv[2:])
