"""Keys that the appliance makes for others: made, packed, sent, and never kept (RFC 7030, section 4.4).

The private key lives in the memory of one request. It goes in clear inside TLS where the label allows that, or sealed
under a key that the request names: a symmetric one of the label's file, or that of a certificate of the client.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from appliance.clock import Clock
from appliance.registrar.errors import DecryptKeyUnknown, EncryptionRequired
from appliance.registrar.est_policy import EstPolicy
from appliance.web.peer import Peer
from est import profiles, serverkeygen
from est.certificates import ski_of
from est.enveloped import RecipientKey, SharedKey
from est.errors import EstError
from est.exchange import Reply
from est.keys import public_key_of
from est.serverkeygen import KeygenAsk, PrivateKey
from est.signer import Signer

Kind = Literal["p-256", "rsa-2048", "rsa-3072"]
Recipient = SharedKey | RecipientKey


class ServerKeys:
    """Makes keys and packs them; `signer` and its certificate sign the package that goes inside an envelope."""

    def __init__(self, signer: Signer, certificate: Callable[[], x509.Certificate], clock: Clock) -> None:
        """`certificate` is asked each time, because it is renewed."""
        self._signer = signer
        self._certificate = certificate
        self._clock = clock

    def recipient(self, ask: KeygenAsk, peer: Peer, policy: EstPolicy) -> Recipient | None:
        """Whose key seals the answer; None = it goes in clear.

        Raises DecryptKeyUnknown: what was to be encrypted is never sent in clear instead. EncryptionRequired under a
        label that sends nothing in clear.
        """
        if ask.shared is not None:
            found = policy.shared_keys.get(ask.shared)
            if found is None:
                raise DecryptKeyUnknown("the DecryptKeyIdentifier names no key that is known under this EST label")
            return SharedKey(ask.shared, found)
        if ask.own is not None:
            return _own_key(ask.own, peer)
        if policy.rules.serverkeygen != "plain":
            raise EncryptionRequired(
                "this EST label sends keys encrypted only: the request must name a key by DecryptKeyIdentifier or "
                "AsymmetricDecryptKeyIdentifier"
            )
        return None

    async def make(self, kind: Kind) -> PrivateKey:
        """A fresh key; RSA ones take their time, and do so elsewhere."""
        if kind == "p-256":
            return ec.generate_private_key(ec.SECP256R1())
        return await asyncio.to_thread(rsa.generate_private_key, 65537, int(kind.removeprefix("rsa-")))

    def reply(
        self, key: PrivateKey, certificate: x509.Certificate, recipient: Recipient | None, *, wrapped: bool
    ) -> Reply:
        """Both parts of the answer; raises KeyNotAccepted."""
        if recipient is None:
            return serverkeygen.reply(key, certificate, wrapped=wrapped)
        sealed = serverkeygen.seal_key(
            key,
            recipient,
            signer=self._signer,
            certificate=self._certificate(),
            now=self._clock.now(),
            random=os.urandom,
            new_key=ec.generate_private_key,
        )
        return serverkeygen.reply(sealed, certificate, wrapped=wrapped)


def _own_key(identifier: bytes, peer: Peer) -> RecipientKey:
    """The key of the client's TLS certificate, if that is the one that the request names."""
    if peer.certificate is not None:
        try:
            key = public_key_of(peer.certificate)
            if identifier in (ski_of(peer.certificate), profiles.key_identifier(key)):
                return RecipientKey(identifier, key)
        except EstError as cause:
            raise DecryptKeyUnknown("the key of the TLS client certificate cannot be encrypted to") from cause
    raise DecryptKeyUnknown(
        "the AsymmetricDecryptKeyIdentifier is not the subject key identifier of the TLS client certificate"
    )
