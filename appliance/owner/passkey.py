"""An owner's passkey: a FIDO2 key at this machine, which asks its user and signs approvals in its own form.

The file that stands for it (`passkey.json`) holds no secret: the credential's id and where it was made for. The key
itself never leaves the authenticator. Talking to it is the optional package fido2's work.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws
from appliance.binding.errors import BindingError
from appliance.binding.webauthn import Assertion, Passkey
from appliance.errors import KeyFileMissing, KeyMalformed
from appliance.owner.errors import PasskeyUnavailable
from appliance.owner.keys import MAX_FILE, STATEMENT_FILE, STATEMENT_SECONDS, must_be_new, state_possession, write_new

PASSKEY_FILE = "passkey.json"
TIMEOUT_SECONDS = 60
_ES256 = -7

Find = Callable[[], Any]
"""Gives the one CTAP device at hand; raises PasskeyUnavailable."""


@dataclass(frozen=True, slots=True)
class PasskeyFiles:
    """What `register` wrote."""

    key_file: Path
    statement_file: Path
    jkt: str


class FidoKey:
    """One credential on a FIDO2 key; every signature asks the user (touch, and PIN or fingerprint)."""

    def __init__(
        self, key: ec.EllipticCurvePublicKey, credential: bytes, passkey: Passkey, client: Callable[[Passkey], Any]
    ) -> None:
        self.passkey = passkey
        self.credential = credential
        self._key = key
        self._client = client

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key

    def assertion(self, challenge: bytes) -> Assertion:
        """Asks the key; raises PasskeyUnavailable."""
        webauthn = _fido2("webauthn")
        options = webauthn.PublicKeyCredentialRequestOptions(
            challenge=challenge,
            timeout=TIMEOUT_SECONDS * 1000,
            rp_id=self.passkey.rp_id,
            allow_credentials=[
                webauthn.PublicKeyCredentialDescriptor(
                    type=webauthn.PublicKeyCredentialType.PUBLIC_KEY, id=self.credential
                )
            ],
            user_verification=webauthn.UserVerificationRequirement.REQUIRED,
        )
        made = _asked(lambda: self._client(self.passkey).get_assertion(options).get_response(0)).response
        return Assertion(bytes(made.authenticator_data), bytes(made.client_data), bytes(made.signature))


def register(
    folder: Path,
    *,
    ref: str,
    audience: str,
    passkey: Passkey,
    now: datetime,
    find: Find | None = None,
    statement_seconds: int = STATEMENT_SECONDS,
) -> PasskeyFiles:
    """Makes a credential on the FIDO2 key at hand and its statement in `folder`; the user is asked twice.

    The second time is the statement of possession, signed by the new credential itself: whose key it is needs no
    attestation then. `ref` and `audience` as for keygen. Raises PasskeyUnavailable, KeyFileExists.
    """
    must_be_new(folder / PASSKEY_FILE, folder / STATEMENT_FILE)
    client = _clients(find)
    webauthn = _fido2("webauthn")
    options = webauthn.PublicKeyCredentialCreationOptions(
        rp=webauthn.PublicKeyCredentialRpEntity(name=audience, id=passkey.rp_id),
        user=webauthn.PublicKeyCredentialUserEntity(name=ref, id=secrets.token_bytes(16)),
        challenge=secrets.token_bytes(32),
        pub_key_cred_params=[
            webauthn.PublicKeyCredentialParameters(type=webauthn.PublicKeyCredentialType.PUBLIC_KEY, alg=_ES256)
        ],
        timeout=TIMEOUT_SECONDS * 1000,
        authenticator_selection=webauthn.AuthenticatorSelectionCriteria(
            user_verification=webauthn.UserVerificationRequirement.REQUIRED
        ),
        attestation=webauthn.AttestationConveyancePreference.NONE,
    )
    made = _asked(lambda: client(passkey).make_credential(options))
    data = made.response.attestation_object.auth_data.credential_data
    if data is None:
        raise PasskeyUnavailable("the key made no credential")
    fido = FidoKey(_public_key(data.public_key), bytes(data.credential_id), passkey, client)
    credential = jws.base64url(fido.credential)
    statement = state_possession(
        fido, ref=ref, audience=audience, now=now, seconds=statement_seconds, credential=credential
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = {
        "version": 1, "kind": "passkey", "rp_id": passkey.rp_id, "origin": passkey.origin, "credential": credential,
        "jwk": jws.jwk(fido.public_key()),
    }  # fmt: skip
    write_new(folder / PASSKEY_FILE, json.dumps(document, indent=1).encode() + b"\n", 0o600)
    write_new(folder / STATEMENT_FILE, statement.encode("ascii") + b"\n", 0o644)
    return PasskeyFiles(folder / PASSKEY_FILE, folder / STATEMENT_FILE, jws.jkt(fido.public_key()))


def is_passkey_file(path: Path) -> bool:
    """Whether a key file stands for a passkey."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{"
    except OSError:
        return False


def load_passkey(path: Path, *, find: Find | None = None) -> FidoKey:
    """The passkey that a file stands for; raises KeyFileMissing, KeyMalformed, PasskeyUnavailable."""
    try:
        with path.open("rb") as file:
            value = jws.read_object(file.read(MAX_FILE), "passkey file")
        key = jws.read_ec_jwk(value.get("jwk"))
        texts = [value.get(name) for name in ("rp_id", "origin", "credential")]
        if value.get("version") != 1 or not all(isinstance(one, str) and one for one in texts):
            raise KeyMalformed(f"{path} does not stand for a passkey")
        rp_id, origin, credential = map(str, texts)
        return FidoKey(key, jws.unbase64url(credential, "credential"), Passkey(rp_id, origin), _clients(find))
    except OSError as error:
        raise KeyFileMissing(f"cannot read {path}: {error.strerror}") from error
    except BindingError as error:
        raise KeyMalformed(f"{path} does not stand for a passkey: {error.detail}") from error


def _clients(find: Find | None) -> Callable[[Passkey], Any]:
    client = _fido2("client")

    def make(passkey: Passkey) -> Any:
        device = (find or _plugged_in)()
        return client.Fido2Client(
            device, client_data_collector=client.DefaultClientDataCollector(passkey.origin), user_interaction=_Person()
        )

    return make


def _plugged_in() -> Any:
    found = list(_fido2("hid").CtapHidDevice.list_devices())
    if len(found) != 1:
        raise PasskeyUnavailable(f"{len(found)} FIDO2 keys are plugged in; exactly one is wanted")
    return found[0]


class _Person:
    """Whoever sits at the terminal."""

    def prompt_up(self) -> None:
        print("touch the key", file=sys.stderr)

    def request_pin(self, permissions: Any, rp_id: str | None) -> str | None:
        from getpass import getpass

        return getpass(f"PIN of the key for {rp_id}: ")

    def request_uv(self, permissions: Any, rp_id: str | None) -> bool:
        print("the key wants to see your finger", file=sys.stderr)
        return True


def _asked(work: Callable[[], Any]) -> Any:
    client, ctap = _fido2("client"), _fido2("ctap")
    try:
        return work()
    except (client.ClientError, ctap.CtapError, OSError, ValueError) as error:
        raise PasskeyUnavailable(f"the key gave no signature: {error}") from error


def _public_key(cose: Any) -> ec.EllipticCurvePublicKey:
    """The key in a COSE_Key of ES256 (RFC 9053, section 7.1)."""
    if cose.get(3) != _ES256 or cose.get(-1) != 1:
        raise PasskeyUnavailable("the key made a credential that is not for ES256")
    point = b"\x04" + bytes(cose[-2]) + bytes(cose[-3])
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)


def _fido2(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"fido2.{name}")
    except ImportError as error:
        raise PasskeyUnavailable("passkeys need the package fido2: install the extra passkey") from error
