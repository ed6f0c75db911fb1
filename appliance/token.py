"""Keys in a PKCS#11 token: made there, never seen here (design decision D-5).

One session with the user's login, used by one thread at a time: signing is a call that may take its time, so callers
make it in a thread. A session that the token has ended is opened once more; what fails again is refused, and may be
tried later. Python's binding is the optional package python-pkcs11.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from pathlib import Path
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from appliance.errors import ApplianceError, KeyFileExists, KeyFileMissing
from appliance.keys import read_private
from appliance.settings import HsmSettings

_CURVE = "secp256r1"


class TokenUnavailable(ApplianceError):
    """The PKCS#11 token, or the library that leads to it, does not answer or refuses the PIN."""

    reason: ClassVar[str] = "token-unavailable"


class Token:
    """One token of one PKCS#11 library."""

    def __init__(self, settings: HsmSettings) -> None:
        """Logs in; raises TokenUnavailable, KeyFileMissing and KeyFileExposed for the file of the PIN."""
        try:
            import pkcs11  # optional
        except ImportError as error:
            raise TokenUnavailable("keys in a token need the package python-pkcs11: install the extra hsm") from error
        if settings.pin_file is None:
            raise KeyFileMissing("hsm.pin_file must name a file with the token's PIN")
        self._settings = settings
        self._pkcs11 = pkcs11
        self._pin = read_private(settings.pin_file).strip().decode("utf-8", "replace")
        self._lock = threading.Lock()
        self._session: Any = None
        with self._lock:
            self._attempt(lambda session: None)

    def generate(self, name: str) -> TokenSigner:
        """A new P-256 key that cannot leave the token; KeyFileExists if one has the name."""
        attribute, label = self._pkcs11.Attribute, self._label(name)

        def make(session: Any) -> None:
            if list(session.get_objects({attribute.LABEL: label})):
                raise KeyFileExists(f"the token has a key {label} already; choose another hsm.label")
            from pkcs11.util.ec import encode_named_curve_parameters

            parameters = session.create_domain_parameters(
                self._pkcs11.KeyType.EC, {attribute.EC_PARAMS: encode_named_curve_parameters(_CURVE)}, local=True
            )
            parameters.generate_keypair(
                store=True,
                label=label,
                id=hashlib.sha256(label.encode()).digest()[:16],
                private_template={attribute.SENSITIVE: True, attribute.EXTRACTABLE: False},
            )

        with self._lock:
            self._attempt(make)
        return self.signer(name)

    def signer(self, name: str) -> TokenSigner:
        """The key of this name; KeyFileMissing if there is none."""
        label = self._label(name)
        with self._lock:
            public = self._attempt(lambda session: self._public_key(session, label))
        return TokenSigner(self, label, public)

    def sign_digest(self, label: str, digest: bytes) -> bytes:
        """ECDSA over a digest: r and s, one after the other; blocks. Raises TokenUnavailable, KeyFileMissing."""
        with self._lock:
            raw: bytes = self._attempt(
                lambda session: self._key(session, label, "PRIVATE_KEY").sign(
                    digest, mechanism=self._pkcs11.Mechanism.ECDSA
                )
            )
        return raw

    def close(self) -> None:
        """Log out; what is asked later logs in again."""
        with self._lock:
            self._drop()

    def _label(self, name: str) -> str:
        return f"{self._settings.label}-{name}"

    def _attempt(self, work: Any) -> Any:
        """Run `work` on the session; on a new one if the token has ended ours."""
        for is_last in (False, True):
            try:
                if self._session is None:
                    self._session = self._open()
                return work(self._session)
            except (self._pkcs11.PKCS11Error, RuntimeError, OSError) as error:
                self._drop()
                if is_last or isinstance(error, self._pkcs11.PinIncorrect | self._pkcs11.PinLocked):
                    what = type(error).__name__ + (f": {error}" if str(error) else "")
                    raise TokenUnavailable(f"the token: {what}", retry_after_seconds=30) from error
        raise AssertionError

    def _open(self) -> Any:
        token = self._pkcs11.lib(str(self._settings.module)).get_token(token_label=self._settings.token)
        try:
            return token.open(rw=True, user_pin=self._pin)
        except self._pkcs11.UserAlreadyLoggedIn:  # by another session of this process, whose login is ours too
            return token.open(rw=True)

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(self._pkcs11.PKCS11Error, RuntimeError):  # the token may have ended it before us
                session.close()

    def _key(self, session: Any, label: str, kind: str) -> Any:
        attribute = self._pkcs11.Attribute
        wanted = {attribute.LABEL: label, attribute.CLASS: getattr(self._pkcs11.ObjectClass, kind)}
        found = list(session.get_objects(wanted))
        if len(found) != 1:
            raise KeyFileMissing(f"the token has {len(found)} keys {label}, one is wanted")
        return found[0]

    def _public_key(self, session: Any, label: str) -> ec.EllipticCurvePublicKey:
        from pkcs11.util.ec import encode_ec_public_key

        public = load_der_public_key(encode_ec_public_key(self._key(session, label, "PUBLIC_KEY")))
        if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != _CURVE:
            raise KeyFileMissing(f"the key {label} of the token is not on P-256")
        return public


class TokenSigner:
    """A Signer over a key of a token; sign() blocks."""

    def __init__(self, token: Token, label: str, public: ec.EllipticCurvePublicKey) -> None:
        self._token = token
        self._label = label
        self._public = public

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    def sign(self, data: bytes) -> bytes:
        # few tokens hash and sign in one step; all take a digest
        raw = self._token.sign_digest(self._label, hashlib.sha256(data).digest())
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))


def open_token(settings: HsmSettings) -> Token | None:
    """The token that the settings name, or None where keys lie in files."""
    return Token(settings) if settings.module is not None and settings.module != Path() else None
