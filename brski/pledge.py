"""The pledge: what to ask, whether the voucher is good, what to report (RFC 8995, sections 5.2, 5.6, 5.7 and 5.9.4).

Pure: whoever owns the socket keeps ONE connection, gives its certificate chain to `accept_voucher`, and sends nothing
but these calls before that has returned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from brski import leaves, paths, sealed, telemetry, voucher, voucher_request
from brski.dialect import STRICT, Dialect
from brski.errors import (
    AssertionNotAcceptable,
    DomainNotPinned,
    MasaUriInvalid,
    NonceInvalid,
    RegistrarRefused,
    VoucherExpired,
    VoucherForOtherDevice,
    VoucherForOtherRequest,
    VoucherMalformed,
    VoucherNonceless,
    VoucherNotYetValid,
    VoucherPending,
    VoucherSignatureInvalid,
)
from brski.idevid import IDevID, is_same_issuer, read_idevid, read_masa_uri
from brski.leaves import Assertion
from brski.voucher import Voucher
from brski.voucher_request import VoucherRequest
from est import chains
from est.errors import EstError
from est.exchange import Call, Reply
from est.signer import Signer

RETRY_CEILING_SECONDS = 60
RETRY_DEFAULT_SECONDS = 10
GIVE_UP_AFTER = timedelta(days=4)


@dataclass(frozen=True, slots=True)
class PledgePolicy:
    """What a pledge insists on.

    `clock_trusted`: without it dates are not judged by the clock (RFC 8995, section 2.6.1); a fresh voucher's own date
    then bounds the time from below, and the registrar's certificate is held to that. `strict_registrar`: after a CA was
    pinned, the registrar's certificate must be meant for TLS servers and for registration authorities, so that another
    certificate of that CA cannot play registrar. `dialect`: how a registrar must be spoken to.
    """

    assertions: frozenset[Assertion] = frozenset({Assertion.VERIFIED, Assertion.LOGGED, Assertion.PROXIMITY})
    accept_nonceless: bool = False
    accept_id_data: bool = True
    clock_trusted: bool = True
    strict_registrar: bool = True
    skew_seconds: int = 60
    dialect: Dialect = STRICT


class Pledge:
    """A device with its IDevID key, its chain (IDevID first) and the MASA anchors its maker installed.

    Raises DeviceSerialMissing, MasaUriInvalid, and ValueError where key and certificate do not belong together.
    """

    def __init__(
        self,
        signer: Signer,
        chain: Sequence[x509.Certificate],
        masa_anchors: chains.TrustAnchors,
        policy: PledgePolicy | None = None,
    ) -> None:
        self.idevid: IDevID = read_idevid(chain[0])
        if chains.spki_sha256(chain[0]) != chains.spki_sha256(signer.public_key()):
            raise ValueError("the IDevID certificate is not that of the key")
        self._signer = signer
        self._chain = tuple(chain)
        self._masa_anchors = masa_anchors
        self._policy = policy or PledgePolicy()

    def voucher_request(
        self,
        registrar_certificate: x509.Certificate,
        *,
        nonce: bytes,
        now: datetime,
        media_type: str = paths.VOUCHER_CMS_JSON,
    ) -> Call:
        """The call that asks for a voucher (RFC 8995, section 5.2).

        `registrar_certificate` is the end-entity certificate of the connection the call goes out on; `nonce` is 16 to
        32 random octets, new for every attempt, also for parallel ones. A retry during 202 repeats this very Call.
        Raises NonceInvalid.
        """
        if not 16 <= len(nonce) <= 32:
            raise NonceInvalid("a pledge sends a nonce of 16 to 32 octets")
        request = VoucherRequest(
            serial_number=self.idevid.serial_number,
            nonce=leaves.write_binary(nonce),
            assertion=Assertion.PROXIMITY,
            created_on=now if self._policy.clock_trusted else None,
            proximity_registrar_cert=registrar_certificate.public_bytes(Encoding.DER),
        )
        body = sealed.seal(
            voucher_request.write(request, self._policy.dialect),
            media_type,
            signer=self._signer,
            certificate=self._chain[0],
            certificates=self._chain[1:],
            now=now,
        )
        body = sealed.wrap(body, media_type, in_base64=self._policy.dialect.base64_bodies)
        return Call("POST", paths.REQUEST_VOUCHER, media_type, {"accept": media_type}, body)

    def accept_voucher(
        self, reply: Reply, sent: Call, tls_chain: Sequence[x509.Certificate], *, now: datetime
    ) -> Voucher:
        """The voucher in `reply` to `sent`, if it ends the provisional state of the connection.

        `tls_chain` is what the registrar presented on this connection, end entity first, unverified until now. Raises
        VoucherPending (202), RegistrarRefused, VoucherMalformed, VoucherSignatureInvalid, VoucherForOtherDevice,
        VoucherForOtherRequest, VoucherNonceless, VoucherExpired, VoucherNotYetValid, AssertionNotAcceptable,
        PinMissing, DomainNotPinned.
        """
        policy = self._policy
        check_reply(reply, sent.media_type, policy.dialect)
        received, opened = voucher.unseal(
            reply.body, sent.media_type, accept_id_data=policy.accept_id_data, dialect=policy.dialect
        )
        self._check_signer(opened, now)
        self._check_device(received)
        asked, _ = voucher_request.unseal(sent.body, sent.media_type, dialect=policy.dialect)
        if received.nonce is None:
            if not policy.accept_nonceless:
                raise VoucherNonceless("the voucher has no nonce and this pledge takes none without")
        elif received.nonce != asked.nonce:
            raise VoucherForOtherRequest("the voucher's nonce is not the one of this attempt")
        if policy.clock_trusted:
            self._check_dates(received, opened.signing_time, now)
        elif received.nonce is not None:
            _check_not_older(received, tls_chain)
        if received.assertion not in policy.assertions:
            raise AssertionNotAcceptable(
                f"the MASA asserts {received.assertion.value} only", assertion=received.assertion.value
            )
        self._check_domain(received, asked, tls_chain, now)
        return received

    def voucher_status(self, ok: bool, reason: str = "") -> Call:
        """The report about the voucher; `reason` goes to a peer that may be anybody and tells it nothing secret."""
        return Call("POST", paths.VOUCHER_STATUS, paths.JSON, body=telemetry.write(telemetry.VoucherStatus(ok, reason)))

    def enroll_status(self, ok: bool, reason: str = "", context: Mapping[str, object] | None = None) -> Call:
        """The report about enrolment (RFC 8995, section 5.9.4).

        Success is posted on a new connection made with the LDevID, failure on the connection that failed.
        """
        message = telemetry.EnrollStatus(ok, reason, context or {})
        return Call("POST", paths.ENROLL_STATUS, paths.JSON, body=telemetry.write(message))

    def _check_signer(self, opened: sealed.Unsealed, now: datetime) -> None:
        try:
            chains.check(
                opened.signer,
                opened.certificates[1:],
                self._masa_anchors,
                at=now,
                policy=chains.SIGNER,
                ignore_expiry=not self._policy.clock_trusted,
            )
        except EstError as cause:
            raise VoucherSignatureInvalid(
                "the voucher's signer is not a MASA of this device's manufacturer", because=cause.reason
            ) from cause
        # A manufacturer may issue MASA and devices from one CA (RFC 8995, appendix C does), and IDevIDs carry no usage
        # that tells them apart: without this every sold device could sign vouchers for all others.
        if _has_masa_uri(opened.signer) or self._is_sibling(opened.signer):
            raise VoucherSignatureInvalid("the voucher was signed by a device, not by a MASA")

    def _is_sibling(self, signer: x509.Certificate) -> bool:
        """Whether the CA of this device made another: its subject has a serial number (RFC 8995, section 2.3.1)."""
        is_of_our_ca = signer.issuer == self.idevid.certificate.issuer
        return is_of_our_ca and bool(signer.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER))

    def _check_device(self, received: Voucher) -> None:
        if received.serial_number != self.idevid.serial_number:
            raise VoucherForOtherDevice("the voucher's serial-number is not this device's")
        if received.idevid_issuer is not None and not is_same_issuer(received.idevid_issuer, self.idevid.certificate):
            raise VoucherForOtherDevice("the voucher's idevid-issuer is not this device's")

    def _check_dates(self, received: Voucher, signing_time: datetime | None, now: datetime) -> None:
        """All of them, where there is a clock (RFC 8995, section 2.6.1)."""
        skew = timedelta(seconds=self._policy.skew_seconds)
        if received.expires_on is not None and received.expires_on <= now:
            raise VoucherExpired(f"the voucher expired on {leaves.write_date(received.expires_on)}")
        if received.created_on is not None and received.created_on > now + skew:
            raise VoucherNotYetValid(f"the voucher is dated {leaves.write_date(received.created_on)}")
        if signing_time is not None and signing_time > now + skew:
            raise VoucherNotYetValid(f"the voucher was signed on {leaves.write_date(signing_time)}")

    def _check_domain(
        self, received: Voucher, asked: VoucherRequest, tls_chain: Sequence[x509.Certificate], now: datetime
    ) -> None:
        pin = received.pin()
        # both ends hold on to the certificates they saw first (RFC 8995, section 5)
        if not tls_chain or asked.proximity_registrar_cert != tls_chain[0].public_bytes(Encoding.DER):
            raise DomainNotPinned("the registrar's certificate is not the one the request was made for")
        is_end_entity_pinned = chains.spki_sha256(pin) == chains.spki_sha256(tls_chain[0])
        demands_usage = self._policy.strict_registrar and not is_end_entity_pinned
        try:
            chains.check_pin(
                tls_chain,
                pin,
                at=now if self._policy.clock_trusted else None,
                policy=_STRICT_REGISTRAR if demands_usage else chains.PINNED_SERVER,
            )
        except EstError as cause:
            raise DomainNotPinned(
                "the registrar's certificate chain does not verify against the voucher's pin", because=cause.reason
            ) from cause


_STRICT_REGISTRAR = chains.EndEntityPolicy(all_eku=frozenset({chains.SERVER_AUTH, chains.CMC_RA}))


def _check_not_older(received: Voucher, tls_chain: Sequence[x509.Certificate]) -> None:
    """Without a clock: the nonce proves that the voucher is newer than the request, so its date is a bound of now.

    A registrar's certificate that had expired by then is expired whatever the time is.
    """
    made = received.created_on
    if made is not None and any(one.not_valid_after_utc < made for one in (*tls_chain[:1], received.pin())):
        raise DomainNotPinned("the registrar's certificate had expired before the voucher was made")


def check_reply(reply: Reply, media_type: str, dialect: Dialect = STRICT) -> None:
    """Raise unless `reply` is a 200 in the format asked for: VoucherPending, RegistrarRefused, VoucherMalformed.

    Redirects are not followed at all: until the voucher stands, the other end is anybody (RFC 8995, section 5.6 allows
    one at most).
    """
    if reply.status == 202:
        raise VoucherPending("the registrar has not decided yet", retry_after_seconds=retry_after_seconds(reply))
    if reply.status != 200:
        raise RegistrarRefused(f"the registrar answered {reply.status}", status=reply.status)
    if not dialect.untyped_answers and paths.bare(reply.media_type) != paths.bare(media_type):
        raise VoucherMalformed("the answer is not in the format that was asked for")


def retry_after_seconds(reply: Reply) -> int:
    """The pause before the same request is repeated: what the registrar says, 1 to 60 s (RFC 8995, section 5.6)."""
    value = reply.headers.get("retry-after", "").strip()
    if not re.fullmatch(r"[0-9]{1,9}", value, re.ASCII):
        return RETRY_DEFAULT_SECONDS
    return max(1, min(int(value), RETRY_CEILING_SECONDS))


def is_given_up(first_sent: datetime, now: datetime) -> bool:
    """Whether a request has waited in 202 for so long that the pledge goes back to discovery (four days)."""
    return now - first_sent >= GIVE_UP_AFTER


def _has_masa_uri(certificate: x509.Certificate) -> bool:
    try:
        return read_masa_uri(certificate) != ""
    except MasaUriInvalid:
        return True
