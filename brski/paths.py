"""Well-known paths and media types of BRSKI (RFC 8995, section 8.3; RFC 8366, section 8.3).

The media type of JWS vouchers: draft-ietf-anima-jws-voucher-16, section 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

WELL_KNOWN = "/.well-known/brski"

REQUEST_VOUCHER = f"{WELL_KNOWN}/requestvoucher"
VOUCHER_STATUS = f"{WELL_KNOWN}/voucher_status"
ENROLL_STATUS = f"{WELL_KNOWN}/enrollstatus"
# Registrar to MASA only; a registrar never offers it to pledges (B-209).
REQUEST_AUDIT_LOG = f"{WELL_KNOWN}/requestauditlog"

VOUCHER_CMS_JSON = "application/voucher-cms+json"
VOUCHER_JWS_JSON = "application/voucher-jws+json"
JSON = "application/json"

VOUCHER_FORMATS: Mapping[str, str] = MappingProxyType({"cms": VOUCHER_CMS_JSON, "jws": VOUCHER_JWS_JSON})
"""Short names of the voucher formats, as settings have them, and their media types."""


def bare(media_type: str) -> str:
    """`media_type` in lower case without its parameters."""
    return media_type.partition(";")[0].strip().lower()


def is_acceptable(accept: str, media_type: str) -> bool:
    """Whether an Accept header (empty = anything) admits `media_type` (RFC 9110, section 12.5.1)."""
    if not accept.strip():
        return True
    kind = media_type.partition("/")[0]
    best = (-1, 0.0)
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        rank = {media_type: 2, f"{kind}/*": 1, "*/*": 0}.get(name)
        if rank is not None and rank > best[0]:
            best = (rank, _weight(parameters))
    return best[1] > 0


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
