"""Paths, operations and media types of EST (RFC 7030, section 3.2.2; RFC 8951)."""

from __future__ import annotations

from urllib.parse import quote

WELL_KNOWN = "/.well-known/est"

CACERTS = "cacerts"
SIMPLEENROLL = "simpleenroll"
SIMPLEREENROLL = "simplereenroll"
CSRATTRS = "csrattrs"
FULLCMC = "fullcmc"
SERVERKEYGEN = "serverkeygen"

METHODS = {CACERTS: "GET", SIMPLEENROLL: "POST", SIMPLEREENROLL: "POST", CSRATTRS: "GET", SERVERKEYGEN: "POST"}
"""The operations that exist here, each with its one method; serverkeygen under some labels only."""

RESERVED = frozenset({*METHODS, FULLCMC})
"""Names that a label may never have."""

PKCS10 = "application/pkcs10"
PKCS7 = "application/pkcs7-mime"
CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
CSR_ATTRIBUTES = "application/csrattrs"

TRANSFER_ENCODING = "content-transfer-encoding"
RETRY_AFTER = "retry-after"


def path(operation: str, label: str | None = None) -> str:
    """The absolute path of an operation, under a label if there is one."""
    if label is None:
        return f"{WELL_KNOWN}/{operation}"
    return f"{WELL_KNOWN}/{quote(label, safe='')}/{operation}"


def essence(media_type: str) -> str:
    """The type without its parameters, in lower case."""
    return media_type.partition(";")[0].strip().lower()
