"""A lean HTTPS client over blocking sockets: it must cost less than what it measures; answers come back as bytes."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply as it came."""

    status: int
    body: bytes
    seconds: float


def tls_context(
    root: Path, key: ec.EllipticCurvePrivateKey | None = None, chain: Sequence[x509.Certificate] = (), *, folder: Path
) -> ssl.SSLContext:
    """A client's context that trusts `root` alone and shows `chain`."""
    context = ssl.create_default_context(cafile=str(root))
    context.check_hostname = False  # the listener is reached by its address
    if key is not None:
        file = folder / f"{chain[0].serial_number:x}.pem"
        file.touch(0o600)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write_bytes(pem + b"".join(one.public_bytes(Encoding.PEM) for one in chain))
        context.load_cert_chain(file)
    return context


class Connection:
    """One connection; exchange() sends a whole request and reads a whole reply."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        raw = socket.create_connection(address, timeout=30)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = raw if context is None else context.wrap_socket(raw)
        self._rest = b""

    def exchange(self, request: bytes) -> Answer:
        """Reply to one request; ConnectionError if the server closes in the middle."""
        begun = time.perf_counter()
        self._socket.sendall(request)
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._receive()
        head = data[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        while len(data) < end + 4 + length:
            data += self._receive()
        self._rest = data[end + 4 + length :]
        return Answer(int(head[9:12]), data[end + 4 : end + 4 + length], time.perf_counter() - begun)

    def detach(self) -> socket.socket:
        """The socket, for somebody who waits otherwise."""
        return self._socket

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> bytes:
        data = self._socket.recv(65_536)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data


def request(method: str, path: str, body: bytes = b"", media_type: str = "", **headers: str) -> bytes:
    """One HTTP/1.1 request as bytes; header names are given with underscores."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench"]
    if body:
        lines += [f"Content-Type: {media_type}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def exchange_all(connections: Sequence[Connection], requests: Sequence[Sequence[bytes]]) -> list[list[Answer]]:
    """Each connection's requests one after the other, the connections side by side."""
    return _side_by_side(
        [lambda c=c, r=r: [c.exchange(one) for one in r] for c, r in zip(connections, requests, strict=True)]
    )


def exchange_once_each(
    address: tuple[str, int], work: Sequence[tuple[ssl.SSLContext, bytes]], *, at_once: int = 1
) -> list[Answer]:
    """A new connection for every request, so many at a time; answers in the order of the work."""

    def run(mine: Sequence[tuple[ssl.SSLContext, bytes]]) -> list[Answer]:
        answers = []
        for context, one in mine:
            connection = Connection(address, context)
            try:
                answers.append(connection.exchange(one))
            finally:
                connection.close()
        return answers

    parts = _side_by_side([lambda mine=work[at::at_once]: run(mine) for at in range(at_once)])  # type: ignore[misc]
    return [parts[at % at_once][at // at_once] for at in range(len(work))]


def _side_by_side(jobs: Sequence[Callable[[], list[Answer]]]) -> list[list[Answer]]:
    if len(jobs) == 1:
        return [jobs[0]()]
    results: list[list[Answer]] = [[] for _ in jobs]
    failed: list[BaseException] = []

    def run(at: int) -> None:
        try:
            results[at] = jobs[at]()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return results
