"""Who is at the other end of a TLS connection: what was shown in the handshake, read as far as somebody asks for it."""

from __future__ import annotations

from functools import cached_property

from cryptography import x509

from appliance.errors import HttpMalformed
from appliance.web.peer import Peer
from appliance.web.tls import StandardSide, TlsSide
from est.certificates import UNREADABLE


class TlsPeer(Peer):
    """A peer that has shown a certificate; raises HttpMalformed if that cannot be read."""

    def __init__(self, address: str, connection_id: int, side: TlsSide | StandardSide, der: bytes) -> None:
        try:
            own = x509.load_der_x509_certificate(der)
        except UNREADABLE as error:
            raise _malformed() from error
        super().__init__(
            address,
            connection_id,
            own,
            tls_version=side.version,
            server_certificate=side.server_certificate,
            bind=side.bindings,
        )
        self.__dict__["certificate_der"] = der
        self.__dict__["_side"] = side
        del self.__dict__["chain"]

    @cached_property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Most certificates were seen before, and then nobody asks what came with them; HttpMalformed if unreadable."""
        own = self.certificate
        assert own is not None
        try:
            return own, *(one for one in self.__dict__["_side"].peer_chain() if one != own)
        except UNREADABLE as error:
            raise _malformed() from error


def peer_of(side: TlsSide | StandardSide, address: str, connection_id: int) -> Peer:
    """The peer of a connection whose handshake is done; HttpMalformed if the certificate it has shown is none to us."""
    der = side.peer_certificate()
    if der is not None:
        return TlsPeer(address, connection_id, side, der)
    return Peer(
        address,
        connection_id,
        tls_version=side.version,
        server_certificate=side.server_certificate,
        bind=side.bindings,
    )


def _malformed() -> HttpMalformed:
    return HttpMalformed("the certificate presented in the handshake cannot be read")
