"""How an implementation in the field departs from the documents, and what may be tolerated for its sake.

A value per manufacturer, strict unless somebody says otherwise. Every switch widens what is read; the first two also
change what is sent. None of them touches a signature, a chain or a serial number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from brski.errors import DialectUnknown


@dataclass(frozen=True, slots=True)
class Dialect:
    """What is tolerated, one switch each; the text form has dashes for underscores (`read_dialect`).

    `base64_bodies`: CMS bodies may be base64 text. A pledge is answered in the form it asked in, a MASA is asked in
    base64. `legacy_key`: voucher-requests stand under ietf-voucher:voucher, and are sent so to the MASA; request and
    voucher are then told apart by their leaves. `loose_dates`: a blank, or a lower-case letter, where
    RFC 3339 has T and Z; no offset means UTC. `long_nonces`: more than 32 octets. `untyped_answers`: the Content-Type
    of an answer is not looked at.
    """

    base64_bodies: bool = False
    legacy_key: bool = False
    loose_dates: bool = False
    long_nonces: bool = False
    untyped_answers: bool = False


STRICT = Dialect()

SWITCHES: Mapping[str, str] = MappingProxyType(
    {
        "base64-bodies": "CMS bodies are base64 text instead of octets; a pledge is answered in the form it asked in",
        "legacy-key": "voucher-requests stand under ietf-voucher:voucher",
        "loose-dates": "dates with a blank for T, in lower case, or without an offset (then UTC)",
        "long-nonces": "nonces of more than 32 octets",
        "untyped-answers": "answers whose Content-Type is not that of their format",
    }
)
"""Name and meaning of every switch, in the order of the fields."""


def read_dialect(text: str) -> Dialect:
    """The dialect in a list of switches such as "base64-bodies,legacy-key"; "" is the strict one.

    Blanks around names do not matter, nor does their order. Raises DialectUnknown.
    """
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    for name in names:
        if name not in SWITCHES:
            raise DialectUnknown(f"there is no dialect switch {name[:64]!r}", known=list(SWITCHES))
    return Dialect(**{name.replace("-", "_"): True for name in names})


def write_dialect(dialect: Dialect) -> str:
    """The list that `read_dialect` reads back, in the order of `SWITCHES`."""
    return ",".join(one.name.replace("_", "-") for one in fields(dialect) if getattr(dialect, one.name))
