"""Paths that were found once: a certificate seen again pays for a comparison of dates and not for signatures.

A path is a fact about bytes: whoever shows the same certificate again, under the same anchors, has it still, whatever
else comes with the certificate, and only while every certificate in it is within its dates. That is all that is kept.
Refusals are not kept, and revocation is not looked at here, as in est.chains.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from est.chains import EndEntityPolicy, TrustAnchors, check

MAX_PATHS = 4096


class _Path(NamedTuple):
    """What a path rests on besides the certificate: the anchors, and the time that all its certificates share."""

    anchors: TrustAnchors
    begins: datetime
    ends: datetime


class KnownPaths:
    """`est.chains.check` under one policy, remembering what passed; the oldest paths are forgotten first."""

    def __init__(self, policy: EndEntityPolicy, *, max_paths: int = MAX_PATHS) -> None:
        self._policy = policy
        self._max_paths = max_paths
        self._paths: OrderedDict[bytes, _Path] = OrderedDict()

    def __len__(self) -> int:
        return len(self._paths)

    def holds(self, fingerprint: bytes, anchors: TrustAnchors, *, at: datetime) -> bool:
        """Whether the certificate with this SHA-256 is known to have a path to the anchors that is valid at `at`."""
        path = self._paths.get(fingerprint)
        return path is not None and path.anchors is anchors and path.begins <= at <= path.ends

    def check(
        self, leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], anchors: TrustAnchors, *, at: datetime
    ) -> None:
        """Refuse a certificate without a path to the anchors at this time; raises what `est.chains.check` does."""
        fingerprint = hashlib.sha256(leaf.public_bytes(Encoding.DER)).digest()
        if self.holds(fingerprint, anchors, at=at):
            return
        path = check(leaf, intermediates, anchors, at=at, policy=self._policy)
        begins = max(one.not_valid_before_utc for one in path)
        ends = min(one.not_valid_after_utc for one in path)
        self._paths[fingerprint] = _Path(anchors, begins, ends)
        if len(self._paths) > self._max_paths:
            self._paths.popitem(last=False)
