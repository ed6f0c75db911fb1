"""RFC 7030 and the certificates themselves; decides, never opens a socket, file or clock.

der -> keys, certificates -> transfer, cms, csr -> chains -> profiles, revocation -> server, client. Read them in this
order and each needs only what came before; exchange, signer, paths and errors are what all speak. An enrolment:

>>> from cryptography.hazmat.primitives.asymmetric import ec
>>> from est import Call, EstClient, EstServer, csr, profiles
>>> key = ec.generate_private_key(ec.SECP256R1())
>>> call = EstClient().simpleenroll_call(csr.build(subject=profiles.name("proxy 1"), key=key))
>>> server = EstServer()
>>> server.operation(call).name, server.read_enroll(call).csr.subject.rfc4514_string()
('simpleenroll', 'CN=proxy 1')

All refusals are EstError leaves with a stable `reason`; `est.errors` draws the tree.
"""

from est import certificates, chains, cms, csr, paths, profiles, transfer
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
    ChainNotTrusted,
    ChainTooLong,
    CmsMalformed,
    CmsNotAccepted,
    CmsSignatureInvalid,
    CsrMalformed,
    EnrollmentRefused,
    EstError,
    ExtensionNotGranted,
    KeyNotAccepted,
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
    "ChainNotTrusted",
    "ChainTooLong",
    "CmsMalformed",
    "CmsNotAccepted",
    "CmsSignatureInvalid",
    "Csr",
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
    "Shape",
    "ShapeNotPossible",
    "SignedData",
    "Signer",
    "TrustAnchors",
    "certificates",
    "chains",
    "cms",
    "csr",
    "paths",
    "profiles",
    "transfer",
]
