"""RFC 7030 and the certificates themselves; decides, never opens a socket, file or clock.

der -> keys, weak, certificates -> transfer, cms, csr, csrattrs, renaming, serverkeygen -> chains -> shapes, profiles,
revocation, ocsp -> server, client. Read them in this order and each needs only what came before; exchange, signer,
paths and errors are what all speak; jose and json_text are for those who write JOSE objects. A client enrols with a
server in memory:

>>> from datetime import UTC, datetime, timedelta
>>> from cryptography import x509
>>> from cryptography.hazmat.primitives.asymmetric import ec
>>> from est import EstClient, EstServer, KeySigner, csr, profiles
>>> key, now = ec.generate_private_key(ec.SECP256R1()), datetime(2026, 9, 1, tzinfo=UTC)
>>> ca = KeySigner(ec.generate_private_key(ec.SECP256R1()))
>>> def issue(shape):
...     tbs = profiles.to_be_signed(shape, issuer_key=ca.public_key())
...     return x509.load_der_x509_certificate(profiles.assemble(tbs, ca.sign(tbs), ca.public_key()))
>>> dates = {"not_before": now, "not_after": now + timedelta(days=90)}
>>> root = issue(profiles.root_ca(profiles.name("Campus root"), ca.public_key(), serial=1, **dates))
>>> client, server, request = EstClient(), EstServer(), csr.build(subject=profiles.name("proxy 1"), key=key)
>>> trust = client.read_cacerts(server.cacerts_reply((root,), client.cacerts_call()))
>>> ask = server.read_enroll(client.simpleenroll_call(request))
>>> terms = profiles.Terms.under(root, serial=2, **dates)
>>> uri = "spiffe://campus.example/proxy/1"
>>> granted = issue(profiles.ldevid(terms, ask.csr.subject, ask.csr.public_key, identifier=uri))
>>> client.read_enrolled(server.enroll_reply(granted, ask), key.public_key(), trust=trust, at=now) == granted
True

All refusals are EstError leaves with a stable `reason`; `est.errors` draws the tree.
"""

from est import certificates, chains, cms, csr, csrattrs, paths, profiles, serverkeygen, transfer
from est.chains import EndEntityPolicy, TrustAnchors
from est.client import CaCertificates, EstClient, Pending
from est.cms import SignedData
from est.csr import Csr
from est.errors import (
    BodyMalformed,
    BodyTooLarge,
    CertificateMalformed,
    CertificateNotAsShaped,
    CertificateOutsideValidity,
    CertificatePurposeWrong,
    CertificateRevoked,
    ChainNotTrusted,
    ChainTooLong,
    CmsMalformed,
    CmsNotAccepted,
    CmsSignatureInvalid,
    CsrAttributeMissing,
    CsrAttributesMalformed,
    CsrMalformed,
    EnrollmentRefused,
    EstError,
    ExtensionNotGranted,
    KeyNotAccepted,
    KeyWeak,
    LabelNotUsable,
    LabelUnknown,
    LinkingFailed,
    MediaTypeNotAccepted,
    MethodNotAllowed,
    NamesChanged,
    OperationUnknown,
    PinMismatch,
    ProofOfPossessionFailed,
    Refusal,
    ReplyNotAccepted,
    RevocationUnknown,
    ShapeNotPossible,
)
from est.exchange import Call, Reply
from est.profiles import Shape
from est.server import EnrollAsk, EstServer, Operation
from est.signer import KeySigner, Signer

Profile = Shape

__all__ = [
    "BodyMalformed",
    "BodyTooLarge",
    "CaCertificates",
    "Call",
    "CertificateMalformed",
    "CertificateNotAsShaped",
    "CertificateOutsideValidity",
    "CertificatePurposeWrong",
    "CertificateRevoked",
    "ChainNotTrusted",
    "ChainTooLong",
    "CmsMalformed",
    "CmsNotAccepted",
    "CmsSignatureInvalid",
    "Csr",
    "CsrAttributeMissing",
    "CsrAttributesMalformed",
    "CsrMalformed",
    "EndEntityPolicy",
    "EnrollAsk",
    "EnrollmentRefused",
    "EstClient",
    "EstError",
    "EstServer",
    "ExtensionNotGranted",
    "KeyNotAccepted",
    "KeySigner",
    "KeyWeak",
    "LabelNotUsable",
    "LabelUnknown",
    "LinkingFailed",
    "MediaTypeNotAccepted",
    "MethodNotAllowed",
    "NamesChanged",
    "Operation",
    "OperationUnknown",
    "Pending",
    "PinMismatch",
    "Profile",
    "ProofOfPossessionFailed",
    "Refusal",
    "Reply",
    "ReplyNotAccepted",
    "RevocationUnknown",
    "Shape",
    "ShapeNotPossible",
    "SignedData",
    "Signer",
    "TrustAnchors",
    "certificates",
    "chains",
    "cms",
    "csr",
    "csrattrs",
    "paths",
    "profiles",
    "serverkeygen",
    "transfer",
]
