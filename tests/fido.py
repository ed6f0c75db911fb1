"""A FIDO2 key in software, spoken to by CTAP2 through the library's client half, as a plugged-in one would be."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fido2 import cbor
from fido2.cose import ES256
from fido2.ctap import CtapDevice, CtapError
from fido2.hid import CAPABILITY, CTAPHID
from fido2.webauthn import Aaguid, AttestedCredentialData, AuthenticatorData

UP, UV, AT = AuthenticatorData.FLAG.UP, AuthenticatorData.FLAG.UV, AuthenticatorData.FLAG.AT
_MAKE, _GET, _INFO = 1, 2, 4


@dataclass
class SoftKey(CtapDevice):
    """One authenticator. `step` is what the counter grows by (0: it has none), `flags` what assertions say."""

    step: int = 1
    flags: int = UP | UV
    counter: int = 0
    keys: dict[bytes, tuple[str, ec.EllipticCurvePrivateKey]] = field(default_factory=dict)
    refuses: bool = False

    @property
    def capabilities(self) -> int:
        return CAPABILITY.CBOR

    def call(self, cmd: int, data: bytes = b"", event: Any = None, on_keepalive: Any = None) -> bytes:
        assert cmd == CTAPHID.CBOR
        command, arguments = data[0], cbor.decode(data[1:]) if len(data) > 1 else {}
        if command == _INFO:
            options = {"rk": False, "up": True, "uv": True, "plat": False}
            return self._answer({1: ["FIDO_2_0"], 3: bytes(16), 4: options, 6: [2]})
        if self.refuses:
            raise CtapError(CtapError.ERR.OPERATION_DENIED)
        return self._make(arguments) if command == _MAKE else self._get(arguments)

    def _make(self, arguments: dict[int, Any]) -> bytes:
        rp_id, credential, key = (
            arguments[2]["id"],
            bytes(range(32)) + bytes([len(self.keys)]),
            ec.generate_private_key(ec.SECP256R1()),
        )
        self.keys[credential] = rp_id, key
        attested = AttestedCredentialData.create(Aaguid.NONE, credential, ES256.from_cryptography_key(key.public_key()))
        made = self._data(rp_id, self.flags | AT, attested)
        return self._answer({1: "none", 2: bytes(made), 3: {}})

    def _get(self, arguments: dict[int, Any]) -> bytes:
        known = [one["id"] for one in arguments.get(3, ()) if one["id"] in self.keys]
        if not known or self.keys[known[0]][0] != arguments[1]:
            raise CtapError(CtapError.ERR.NO_CREDENTIALS)
        credential = known[0]
        if arguments.get(5, {}).get("up") is False:
            data = self._data(arguments[1], 0)
        else:
            self.counter += self.step
            data = self._data(arguments[1], self.flags)
        signature = self.keys[credential][1].sign(bytes(data) + arguments[2], ec.ECDSA(hashes.SHA256()))
        return self._answer({1: {"type": "public-key", "id": credential}, 2: bytes(data), 3: signature})

    def _data(self, rp_id: str, flags: int, attested: bytes = b"") -> AuthenticatorData:
        return AuthenticatorData(
            sha256(rp_id.encode()).digest() + struct.pack(">BI", flags, self.counter) + bytes(attested)
        )

    def _answer(self, value: Any) -> bytes:
        return b"\x00" + cbor.encode(value)

    @classmethod
    def list_devices(cls) -> Iterator[CtapDevice]:
        yield cls()
