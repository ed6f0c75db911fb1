"""The CAs of a home with their keys: what they are at one moment, and how files and rollovers come to that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from appliance.errors import KeyMismatch
from appliance.hierarchy import IssuingCa, Role, addresses, check_ca, read_first, read_generation
from appliance.rollover_states import Place, Places, places
from appliance.settings import Settings
from appliance.store.rollovers import RolloverRow
from appliance.token import open_token
from est.chains import TrustAnchors, aki_of, is_self_signed, ski_of
from est.keys import spki


@dataclass(frozen=True, slots=True, eq=False)
class Authorities:
    """The CAs at one moment of their life (`appliance.rollover_states` says which moments there are).

    `issuing` signs. `beside` are other generations that count: the next one once it is published, the old one until it
    is retired. `certificates` are handed out beside root and issuing CAs (RFC 7030, section 4.1.3): the other root,
    OldWithNew, NewWithOld, and an issuing CA's certificate under the other root. `links` go behind every server's
    issuing CA, so that its chain holds under both roots. `changed_at`: when all this last changed; None = at `init`.
    """

    root: x509.Certificate
    issuing: Mapping[Role, IssuingCa]
    beside: Sequence[IssuingCa] = ()
    certificates: Sequence[x509.Certificate] = ()
    links: Sequence[x509.Certificate] = ()
    changed_at: datetime | None = None

    @property
    def roots(self) -> list[x509.Certificate]:
        """Every self-signed root among them, the current one first."""
        return [self.root, *(one for one in self.certificates if is_self_signed(one))]


@dataclass(frozen=True, slots=True)
class KnownAuthorities:
    """Authorities with what is looked up in them."""

    authorities: Authorities
    by_label: Mapping[str, IssuingCa]
    by_key: Mapping[bytes, IssuingCa]
    anchors: Mapping[Role, TrustAnchors]
    roles: Mapping[str, Role]

    @classmethod
    def of(cls, authorities: Authorities) -> KnownAuthorities:
        every = (*authorities.issuing.values(), *authorities.beside)
        return cls(
            authorities,
            {one.label: one for one in every},
            {one.key_identifier: one for one in every},
            {role: TrustAnchors(one.certificate for one in every if one.role == role) for role in authorities.issuing},
            {one.key_identifier.hex(): one.role for one in every},
        )


def check_authorities(authorities: Authorities, now: datetime) -> None:
    """Raises CaUnsuitable, CaExpired, KeyMismatch. Those that only count beside the ones that sign may have ended."""
    roots = {ski_of(one): one for one in authorities.roots}
    signing = (authorities.root, *(one.certificate for one in authorities.issuing.values()))
    for root in authorities.roots:
        _check(root, None, now, path_length=1, may_have_ended=root not in signing)
    for one in (*authorities.issuing.values(), *authorities.beside):
        issuer = roots.get(aki_of(one.certificate), authorities.root)
        _check(one.certificate, issuer, now, path_length=0, may_have_ended=one.certificate not in signing)
        if spki(one.signer.public_key()) != spki(one.certificate):
            raise KeyMismatch(f"the key of the {one.label} CA is not its certificate's")


def _check(
    certificate: x509.Certificate,
    issuer: x509.Certificate | None,
    now: datetime,
    *,
    path_length: int,
    may_have_ended: bool,
) -> None:
    if may_have_ended:
        now = min(now, certificate.not_valid_after_utc)
    check_ca(certificate, issuer, now, path_length=path_length)


def read_places(home: Path, rows: Sequence[RolloverRow]) -> Places:
    """The CAs without their keys; KeyFileMissing, KeyMalformed."""
    root, issuing = read_first(home)
    return places(root, issuing, rows)


def load_authorities(
    home: Path,
    settings: Settings,
    passphrase: bytes,
    rows: Sequence[RolloverRow],
    known: Mapping[str, IssuingCa] | None = None,
) -> Authorities:
    """The CAs with their keys; those of `known` by label need not be opened again.

    Raises KeyFileMissing, KeyFileExposed, PassphraseWrong, KeyMalformed, KeyMismatch, TokenUnavailable.
    """
    found, known = read_places(home, rows), known or {}
    token = None if all(one.label in known for one in _every(found)) else open_token(settings.hsm)

    def generation(one: Place) -> IssuingCa:
        old = known.get(one.label)
        if old is None:
            return read_generation(home, settings, passphrase, one.role, one.label, one.certificate, token)
        urls = addresses(settings, one.label)
        return IssuingCa(one.role, one.certificate, old.signer, *urls, old.ocsp_signer, one.label)

    return Authorities(
        found.root,
        {role: generation(one) for role, one in found.issuing.items()},
        tuple(generation(one) for one in found.beside),
        found.certificates,
        found.links,
        max((row.changed_at for row in rows), default=None),
    )


def _every(found: Places) -> list[Place]:
    return [*found.issuing.values(), *found.beside]
