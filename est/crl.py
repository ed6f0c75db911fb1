"""Certificate revocation lists as they come in, and a path held against those at hand (RFC 5280, section 6.3).

Lists come in as arguments: nothing is fetched here. What we write ourselves is in est.revocation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from est.certificates import extensions_of
from est.errors import BodyMalformed, CertificateRevoked, RevocationUnknown
from est.keys import ISSUER_KEYS, public_key_of


def read_crl(body: bytes) -> x509.CertificateRevocationList:
    """A list in DER or PEM form; raises BodyMalformed. Who signed it is asked when a path is held against it."""
    try:
        found = x509.load_pem_x509_crl(body) if body[:1] == b"-" else x509.load_der_x509_crl(body)
        _ = (found.issuer, found.last_update_utc, found.next_update_utc, list(found.extensions))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BodyMalformed("not a certificate revocation list") from error
    return found


class RevocationLists:
    """The lists at hand.

    `demanded`: a certificate that names a distribution point needs a current list of its issuer. Lists with critical
    extensions count as absent, because they speak of a part of the certificates only (RFC 5280, section 5.2).
    """

    def __init__(self, lists: Iterable[x509.CertificateRevocationList] = (), *, demanded: bool = False) -> None:
        self._lists = tuple(one for one in lists if not any(extension.critical for extension in one.extensions))
        self._demanded = demanded

    def check(self, path: Sequence[x509.Certificate], *, at: datetime) -> None:
        """Hold a checked path, end entity first and anchor last, against the lists; the anchor itself is not asked for.

        A list counts when its issuer's key in the path signed it and it is current; an end entity that came alone
        has no issuer there, and so no list. Raises CertificateRevoked, RevocationUnknown, CertificateMalformed,
        KeyNotAccepted.
        """
        if len(path) == 1 and self._demanded and _names_list(path[0]):
            raise RevocationUnknown("the certificate names a revocation list, and its issuer did not come along")
        for certificate, issuer in pairwise(path):
            lists = [one for one in self._lists if _is_by(one, issuer, at)]
            if any(one.get_revoked_certificate_by_serial_number(certificate.serial_number) for one in lists):
                raise CertificateRevoked(
                    "a certificate of the chain was revoked", serial=f"{certificate.serial_number:x}"
                )
            if self._demanded and not lists and _names_list(certificate):
                raise RevocationUnknown("no current revocation list of an issuer in the chain is at hand")


def _is_by(one: x509.CertificateRevocationList, issuer: x509.Certificate, at: datetime) -> bool:
    if one.issuer != issuer.subject or one.last_update_utc > at:
        return False
    if one.next_update_utc is None or one.next_update_utc <= at:
        return False
    for extension in extensions_of(issuer):
        if isinstance(extension.value, x509.KeyUsage) and not extension.value.crl_sign:
            return False
    return one.is_signature_valid(public_key_of(issuer, ISSUER_KEYS))


def _names_list(certificate: x509.Certificate) -> bool:
    return any(isinstance(one.value, x509.CRLDistributionPoints) for one in extensions_of(certificate))
