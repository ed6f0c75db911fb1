"""The connection under an LDAP reading: TLS to a pinned CA, and a socket that counts octets and looks at the clock.

ldap3 reads whatever a server sends for as long as it sends; here it ends at a number of octets, at a deadline, and when
the appliance stops. ldap3's own TLS is not used: it compares names by code of its own, and keeps only the text of what
went wrong.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SLICE_SECONDS = 0.5


class OverBudget(OSError):
    """More octets came than are allowed."""


class OutOfTime(OSError):
    """The reading took too long, or the appliance stops."""


@dataclass
class Budget:
    """What one reading may cost; `ends_at` is monotonic, `stop` ends it from another thread."""

    max_bytes: int
    answer_seconds: float
    ends_at: float
    stop: threading.Event = field(default_factory=threading.Event)
    received: int = 0

    def check(self) -> None:
        """Raises OutOfTime when it is."""
        if self.stop.is_set() or time.monotonic() > self.ends_at:
            raise OutOfTime("the reading took too long")


class BudgetSocket:
    """A connected socket, plain or TLS, within a budget; everything but reading and writing passes through."""

    def __init__(self, inner: socket.socket, budget: Budget) -> None:
        self.inner = inner
        self._budget = budget

    def recv(self, size: int) -> bytes:
        """Some octets; raises OSError at the end of the connection, of the time, or of the budget."""
        budget = self._budget
        waited_until = time.monotonic() + budget.answer_seconds
        while True:
            budget.check()
            self.inner.settimeout(_SLICE_SECONDS)
            try:
                data = self.inner.recv(size)
            except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
                if time.monotonic() > waited_until:
                    raise OutOfTime("the directory is silent") from None
                continue
            if not data:
                raise ConnectionResetError("the directory closed the connection")
            budget.received += len(data)
            if budget.received > budget.max_bytes:
                raise OverBudget("the directory sends too much")
            return data

    def sendall(self, data: bytes) -> None:
        """Send everything; raises OSError."""
        self._budget.check()
        self.inner.settimeout(self._budget.answer_seconds)
        self.inner.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def pinned_context(ca_file: Path) -> ssl.SSLContext:
    """TLS 1.2 or later to a server whose certificate chains to these CAs alone and carries the name that was asked for.

    Raises OSError, ssl.SSLError among them, for a file that cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=ca_file)
    return context


def secure(plain: socket.socket, context: ssl.SSLContext, host: str, budget: Budget) -> BudgetSocket:
    """The same connection under TLS, shaken hands; raises ssl.SSLError, OSError."""
    budget.check()
    plain.settimeout(budget.answer_seconds)
    return BudgetSocket(context.wrap_socket(plain, server_hostname=host), budget)
