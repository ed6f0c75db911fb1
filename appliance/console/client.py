"""Talks to a running appliance over HOME/run/admin.sock: one operation, JSON in, JSON out."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, ClassVar

from appliance.errors import ApplianceError
from appliance.web.unix_path import short_path


class OperationRefused(ApplianceError):
    """A running appliance refused an operation; `detail` is its one line, `fields["reason"]` its reason."""

    reason: ClassVar[str] = "operation-refused"


class ApplianceUnreachable(ApplianceError):
    """Nobody answers on the home's socket: the appliance is starting, stopping or gone."""

    reason: ClassVar[str] = "appliance-unreachable"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        super().__init__("admin", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with short_path(self._path) as short:
            self.sock.connect(short)


def call(path: Path, name: str, arguments: dict[str, Any], *, timeout_seconds: float = 60.0) -> Any:
    """Result of operation `name`; raises OperationRefused or ApplianceUnreachable."""
    connection = UnixConnection(path, timeout_seconds)
    try:
        connection.request(
            "POST", f"/v1/operations/{name}", json.dumps(arguments), {"content-type": "application/json"}
        )
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as cause:
        raise ApplianceUnreachable(
            f"the home is in use but {path} does not answer; is the appliance starting or stopping?"
        ) from cause
    finally:
        connection.close()
    document = json.loads(body) if body else None
    if answer.status == 200:
        return document
    problem = document if isinstance(document, dict) else {}
    raise OperationRefused(
        str(problem.get("detail") or f"status {answer.status}"),
        reason=str(problem.get("reason", "unknown")),
        status=answer.status,
    )
