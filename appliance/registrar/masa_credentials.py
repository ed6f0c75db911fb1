"""What the registrar shows one MASA: a client certificate of its own, HTTP Basic, or both (RFC 8995, section 5.4.1).

Only paths are stored. The files are read when a connection pool is made, and again when one of them changed; what they
hold appears in no log, no argument and no answer.
"""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from appliance.keys import read_private
from appliance.registrar.errors import MasaCredentialsUnusable
from est.errors import Refusal

MAX_BASIC_BYTES = 1024


@dataclass(frozen=True, slots=True)
class MasaCredentials:
    """Paths of PEM files and of a file with NAME:SECRET; "" where there is none. Secret files have mode 0600."""

    certificate_file: str = ""
    key_file: str = ""
    basic_file: str = ""

    @property
    def has_certificate(self) -> bool:
        """Whether this MASA sees a client certificate of its own."""
        return bool(self.certificate_file)

    def check(self) -> None:
        """Read everything once; raises MasaCredentialsUnusable."""
        if bool(self.certificate_file) != bool(self.key_file):
            raise MasaCredentialsUnusable("a client certificate and its key belong together: give both files")
        if self.has_certificate:
            self.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        self.authorization()

    def load_into(self, context: ssl.SSLContext) -> None:
        """Put certificate and key into a TLS context; raises MasaCredentialsUnusable."""
        _read_private(self.key_file)
        try:
            # the empty password: a key that wants one must not make OpenSSL ask for it on the terminal
            context.load_cert_chain(self.certificate_file, self.key_file, password="")
        except (OSError, ValueError) as cause:  # ssl.SSLError is an OSError
            raise MasaCredentialsUnusable(
                f"{self.certificate_file} and {self.key_file} are not a certificate and its unencrypted key in PEM form"
            ) from cause

    def authorization(self) -> str:
        """The Authorization header, "" without Basic credentials; raises MasaCredentialsUnusable."""
        if not self.basic_file:
            return ""
        found = _read_private(self.basic_file).rstrip(b"\r\n")
        name, colon, secret = found.partition(b":")
        if not (name and colon and secret) or len(found) > MAX_BASIC_BYTES or not found.decode("latin-1").isprintable():
            raise MasaCredentialsUnusable(f"{self.basic_file} holds no single line NAME:SECRET")
        return "Basic " + base64.b64encode(found).decode("ascii")

    def state(self) -> str:
        """Changes whenever one of the files does."""
        return "\0".join(f"{path}:{_stamp(path)}" for path in (self.certificate_file, self.key_file, self.basic_file))


NO_CREDENTIALS = MasaCredentials()
"""The registrar's own certificate, and nothing else."""


def _stamp(path: str) -> str:
    if not path:
        return ""
    try:
        found = Path(path).stat()
    except OSError:
        return "gone"
    return f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}"


def _read_private(path: str) -> bytes:
    try:
        return read_private(Path(path))
    except Refusal as cause:
        _unusable(path, cause.detail, cause)
    except OSError as cause:
        _unusable(path, cause.strerror or "cannot be read", cause)


def _unusable(path: str, why: str, cause: BaseException) -> NoReturn:
    raise MasaCredentialsUnusable(f"{path}: {why}") from cause
