"""Ending a connection, whatever state asyncio's transport is in."""

from __future__ import annotations

import asyncio
import contextlib


def abort(transport: asyncio.BaseTransport) -> None:
    """Close without good-bye; harmless for a transport that has ended.

    The TLS transport of early CPython 3.11 (Debian 12 ships 3.11.2) forgets its protocol when it is closed twice, and
    abort() then raises AttributeError.
    """
    with contextlib.suppress(AttributeError):
        transport.abort()  # type: ignore[attr-defined]


def half_close(transport: asyncio.WriteTransport) -> None:
    """Send nothing more after what is written; a peer that has reset the connection meanwhile is no error."""
    try:
        if transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
    except OSError:
        abort(transport)
