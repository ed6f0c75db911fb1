"""The shapes of the certificates that we issue, one function each (RFC 5280, section 4); `est.shapes` signs them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from est import shapes
from est.certificates import ski_of
from est.errors import ShapeNotPossible
from est.keys import PublicKey, is_ec, point_in
from est.revocation import Revoked, crl_to_be_signed
from est.shapes import Extension, Shape, assemble, check, check_der, settle, to_be_signed

__all__ = [
    "Extension",
    "Revoked",
    "Shape",
    "Terms",
    "agent",
    "assemble",
    "check",
    "check_der",
    "crl_to_be_signed",
    "https_server",
    "infrastructure_client",
    "issuing_ca",
    "key_identifier",
    "ldevid",
    "name",
    "ocsp_signer",
    "radius_server",
    "radius_site",
    "registrar",
    "registration_authority",
    "root_ca",
    "root_link",
    "to_be_signed",
]

SERVER_AUTH = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1")
CLIENT_AUTH = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2")
OCSP_SIGNING = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.9")
CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")

IPAddress = IPv4Address | IPv6Address


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


_CA_USAGE = settle(_usage(ca=True), critical=True)
_END_ENTITY = (
    settle(x509.BasicConstraints(ca=False, path_length=None), critical=True),
    settle(_usage(ca=False), critical=True),
)


_OWN_KEY = settle(x509.SubjectKeyIdentifier(bytes(20))).settled[:-20]
"""SubjectKeyIdentifier up to the 20 octets of the digest, which are all that differs."""


class Terms(NamedTuple):
    """What the issuer puts into every certificate: its name and key identifier, a serial number, dates, addresses."""

    issuer: x509.Name
    issuer_key_identifier: bytes
    serial: int
    not_before: datetime
    not_after: datetime
    crl_url: str | None = None
    issuer_url: str | None = None
    ocsp_url: str | None = None

    @classmethod
    def under(
        cls,
        issuer: x509.Certificate,
        *,
        serial: int,
        not_before: datetime,
        not_after: datetime,
        crl_url: str | None = None,
        issuer_url: str | None = None,
        ocsp_url: str | None = None,
    ) -> Terms:
        """Terms under this CA certificate; raises ShapeNotPossible if the certificate would outlive it."""
        if not_after > issuer.not_valid_after_utc or not_before < issuer.not_valid_before_utc:
            raise ShapeNotPossible("the certificate would be valid when its issuer's certificate is not")
        identifier = ski_of(issuer)
        if identifier is None:
            raise ShapeNotPossible("the issuer's certificate has no key identifier to refer to")
        return cls(issuer.subject, identifier, serial, not_before, not_after, crl_url, issuer_url, ocsp_url)


def name(common_name: str, organization: str | None = None, *, serial_number: str | None = None) -> x509.Name:
    """A distinguished name of these parts; raises ShapeNotPossible if a part has an impossible length."""
    parts = ((NameOID.ORGANIZATION_NAME, organization), (NameOID.COMMON_NAME, common_name))
    try:
        if organization is None and serial_number is None:
            return shapes.common_name(common_name)
        attributes = [x509.NameAttribute(kind, text) for kind, text in parts if text is not None]
        if serial_number is not None:
            attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number))
    except ValueError as error:
        raise ShapeNotPossible("a part of the name is empty or too long") from error
    return x509.Name(attributes)


def key_identifier(key: PublicKey) -> bytes:
    """The subject key identifier that we give to a key (RFC 5280, section 4.2.1.2, method 1)."""
    if is_ec(key):
        return hashlib.sha1(point_in(key), usedforsecurity=False).digest()
    return x509.SubjectKeyIdentifier.from_public_key(key).digest


def _own_key(key: PublicKey) -> Extension:
    identifier = key_identifier(key)
    return Extension(x509.SubjectKeyIdentifier(identifier), False, _OWN_KEY + identifier)


def root_ca(
    subject: x509.Name, key: PublicKey, *, serial: int, not_before: datetime, not_after: datetime, path_length: int = 1
) -> Shape:
    """The self-signed root: signs issuing CAs only."""
    extensions = (
        Extension(x509.BasicConstraints(ca=True, path_length=path_length), True),
        _CA_USAGE,
        _own_key(key),
    )
    return Shape(subject, subject, serial, not_before, not_after, key, extensions)


def root_link(
    subject: x509.Name,
    key: PublicKey,
    issuer_key: PublicKey,
    *,
    serial: int,
    not_before: datetime,
    not_after: datetime,
    path_length: int = 1,
) -> Shape:
    """One key of a root, signed by the other under the same name: OldWithNew, NewWithOld (RFC 4210, section 4.4)."""
    extensions = (
        Extension(x509.BasicConstraints(ca=True, path_length=path_length), True),
        _CA_USAGE,
        _own_key(key),
        settle(x509.AuthorityKeyIdentifier(key_identifier(issuer_key), None, None)),
    )
    return Shape(subject, subject, serial, not_before, not_after, key, extensions)


def issuing_ca(terms: Terms, subject: x509.Name, key: PublicKey) -> Shape:
    """A CA under the root that signs end entities only: path length 0."""
    own = (
        Extension(x509.BasicConstraints(ca=True, path_length=0), True),
        _CA_USAGE,
        _own_key(key),
    )
    return _under(terms, subject, key, own)


def registrar(
    terms: Terms,
    subject: x509.Name,
    key: PublicKey,
    *,
    dns_names: Sequence[str],
    addresses: Sequence[IPAddress] = (),
) -> Shape:
    """Registrar and EST server: serverAuth, clientAuth (towards the MASA) and cmcRA (RFC 7030, section 3.6.1)."""
    return _end_entity(terms, subject, key, (SERVER_AUTH, CLIENT_AUTH, CMC_RA), _hosts(dns_names, addresses))


def radius_server(terms: Terms, subject: x509.Name, key: PublicKey, *, dns_names: Sequence[str]) -> Shape:
    """RADIUS server: serverAuth and the name that supplicants pin."""
    return _end_entity(terms, subject, key, (SERVER_AUTH,), _hosts(dns_names, ()))


def https_server(
    terms: Terms,
    subject: x509.Name,
    key: PublicKey,
    *,
    dns_names: Sequence[str],
    addresses: Sequence[IPAddress] = (),
) -> Shape:
    """Console and decision port: serverAuth only."""
    return _end_entity(terms, subject, key, (SERVER_AUTH,), _hosts(dns_names, addresses))


def ldevid(terms: Terms, subject: x509.Name, key: PublicKey, *, identifier: str) -> Shape:
    """A proxy's domain certificate: clientAuth only, never cmcRA; the one URI name is its identifier."""
    return _end_entity(terms, subject, key, (CLIENT_AUTH,), identifier)


def infrastructure_client(terms: Terms, subject: x509.Name, key: PublicKey, *, identifier: str) -> Shape:
    """NAS over RadSec, or a remote decision client: clientAuth only; the one URI name is its identifier."""
    return _end_entity(terms, subject, key, (CLIENT_AUTH,), identifier)


def registration_authority(terms: Terms, subject: x509.Name, key: PublicKey, *, identifier: str) -> Shape:
    """A client that asks for others (RFC 7030, section 3.7): clientAuth and cmcRA, never serverAuth."""
    return _end_entity(terms, subject, key, (CLIENT_AUTH, CMC_RA), identifier)


def radius_site(
    terms: Terms, subject: x509.Name, key: PublicKey, *, dns_names: Sequence[str], identifier: str
) -> Shape:
    """A RADIUS server on another machine: serverAuth with the name that supplicants pin, and clientAuth towards us."""
    names: list[x509.GeneralName] = [*_hosts(dns_names, ()), _uri_name(identifier)]
    return _end_entity(terms, subject, key, (SERVER_AUTH, CLIENT_AUTH), x509.SubjectAlternativeName(names))


def ocsp_signer(terms: Terms, subject: x509.Name, key: PublicKey) -> Shape:
    """The OCSP signer of the CA that issues it: OCSPSigning only, and nobody asks about itself (RFC 6960, 4.2.2.2)."""
    own: tuple[Extension, ...] = (
        *_END_ENTITY,
        _purposes((OCSP_SIGNING,)),
        _own_key(key),
    )
    return _under(terms, subject, key, own, (settle(x509.OCSPNoCheck()),))


def agent(
    terms: Terms,
    subject: x509.Name,
    key: PublicKey,
    *,
    identifier: str,
    extra_extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> Shape:
    """An agent's certificate, also an X509-SVID: one URI name, clientAuth and serverAuth, no host name.

    `extra_extensions` are the private ones of the dual identity; they must not be critical, because TLS libraries
    refuse what they do not know. No subject key identifier: the size budget of EAP-TLS is small.
    """
    extra = tuple(Extension(value, critical) for value, critical in extra_extensions)
    if any(one.critical for one in extra):
        raise ShapeNotPossible("private extensions of an agent's certificate must not be critical")
    return _end_entity(terms, subject, key, (CLIENT_AUTH, SERVER_AUTH), identifier, extra=extra, small=True)


@lru_cache(maxsize=256)
def _uri(identifier: str, *, is_critical: bool) -> Extension:
    """The one name of a client, which comes again with each renewal."""
    return Extension(x509.SubjectAlternativeName([_uri_name(identifier)]), is_critical)


def _uri_name(identifier: str) -> x509.UniformResourceIdentifier:
    try:
        return x509.UniformResourceIdentifier(identifier)
    except ValueError as error:
        raise ShapeNotPossible("an identifier in a certificate is ASCII") from error


def _hosts(dns_names: Sequence[str], addresses: Sequence[IPAddress]) -> x509.SubjectAlternativeName:
    try:
        names: list[x509.GeneralName] = [x509.DNSName(one) for one in dns_names]
    except ValueError as error:
        raise ShapeNotPossible("a host name in a certificate is ASCII (A-labels)") from error
    names += [x509.IPAddress(one) for one in addresses]
    if not names:
        raise ShapeNotPossible("a server's certificate needs a name")
    return x509.SubjectAlternativeName(names)


def _end_entity(
    terms: Terms,
    subject: x509.Name,
    key: PublicKey,
    purposes: tuple[x509.ObjectIdentifier, ...],
    san: x509.SubjectAlternativeName | str,
    *,
    extra: tuple[Extension, ...] = (),
    small: bool = False,
) -> Shape:
    is_critical = not len(subject.rdns)
    names = _uri(san, is_critical=is_critical) if isinstance(san, str) else Extension(san, is_critical)
    own: tuple[Extension, ...] = (*_END_ENTITY, _purposes(purposes), names)
    if not small:
        own += (_own_key(key),)
    return _under(terms, subject, key, own, extra)


@lru_cache(maxsize=16)
def _purposes(purposes: tuple[x509.ObjectIdentifier, ...]) -> Extension:
    return settle(x509.ExtendedKeyUsage(purposes))


def _under(
    terms: Terms, subject: x509.Name, key: PublicKey, own: tuple[Extension, ...], extra: tuple[Extension, ...] = ()
) -> Shape:
    issuer = _of_issuer(terms.issuer_key_identifier, terms.crl_url, terms.issuer_url, terms.ocsp_url)
    return Shape(subject, terms.issuer, terms.serial, terms.not_before, terms.not_after, key, (*own, *issuer, *extra))


@lru_cache(maxsize=64)
def _of_issuer(
    key_identifier: bytes, crl_url: str | None, issuer_url: str | None, ocsp_url: str | None
) -> tuple[Extension, ...]:
    """What every certificate of one CA says of it."""
    values: list[x509.ExtensionType] = [x509.AuthorityKeyIdentifier(key_identifier, None, None)]
    if crl_url is not None:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
        values.append(x509.CRLDistributionPoints([point]))
    access = [
        x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
        for method, url in (
            (AuthorityInformationAccessOID.OCSP, ocsp_url),
            (AuthorityInformationAccessOID.CA_ISSUERS, issuer_url),
        )
        if url is not None
    ]
    if access:
        values.append(x509.AuthorityInformationAccess(access))
    return tuple(settle(value) for value in values)
