"""Pledge, registrar and MASA joined by function calls; every step can be damaged on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from brski import (
    AuditLog,
    Device,
    Grant,
    Manufacturer,
    Masa,
    MasaExchange,
    MasaPolicy,
    Pledge,
    PledgePolicy,
    Registrar,
    RegistrarPolicy,
    Voucher,
    VoucherMalformed,
    VoucherSignatureInvalid,
    paths,
    sealed,
)
from est.exchange import Call, Reply
from lab.factory import Domain, Factory, Identity
from tests.support import NOW

MASA = "masa.example:9443"
SERIAL = "PX-1"
NONCE = bytes(range(16))
LONG_AGO = NOW - timedelta(days=30)

Damage = Callable[[bytes], bytes]


def factory(name: str = "Acme") -> Factory:
    return _factory(name)


def device(serial: str = SERIAL, maker: str = "Acme", masa: str = MASA) -> Identity:
    return _device(serial, maker, masa)


def campus(name: str = "Campus") -> Domain:
    return _campus(name)


# the cache counts spelled-out and default arguments apart, hence one spelling
@cache
def _factory(name: str) -> Factory:
    return Factory.create(name, now=LONG_AGO)


@cache
def _device(serial: str, maker: str, masa: str) -> Identity:
    return factory(maker).make_device(serial, masa=masa, now=LONG_AGO)


@cache
def _campus(name: str) -> Domain:
    return Domain.create(name, now=LONG_AGO)


@dataclass
class Trio:
    """One dialogue; fields replaced before it runs are the misbehaviour of a test."""

    maker: str = "Acme"
    domain: str = "Campus"
    serial: str = SERIAL
    pledge_policy: PledgePolicy = field(default_factory=PledgePolicy)
    registrar_policy: RegistrarPolicy = field(default_factory=RegistrarPolicy)
    masa_policy: MasaPolicy = field(default_factory=MasaPolicy)
    nonce: bytes = NONCE
    media_type: str = paths.VOUCHER_CMS_JSON
    now: datetime = NOW
    events: dict[tuple[str, bytes], Device] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.factory = factory(self.maker)
        self.device = device(self.serial, self.maker)
        self.campus = campus(self.domain)
        self.manufacturer = Manufacturer(self.maker, self.factory.device_anchors, allowed_masas=frozenset({MASA}))
        self.pledge = Pledge(self.device.signer, self.device.chain, self.factory.masa_anchors, self.pledge_policy)
        self.registrar = Registrar(
            self.campus.signer, self.campus.certificate, self.campus.chain, self.registrar_policy
        )
        self.masa = Masa(
            self.factory.masa_signer, self.factory.masa_chain, self.factory.device_anchors, self.masa_policy
        )

    def find(self, serial_number: str, issuer: bytes | None) -> Device | None:
        """The MASA's memory: what the factory sold, with the history of this dialogue."""
        sold = self.factory.find(serial_number, issuer)
        return self.events.get((serial_number, sold.issuer), sold) if sold else None

    def ask(self) -> Call:
        return self.pledge.voucher_request(
            self.campus.certificate, nonce=self.nonce, now=self.now, media_type=self.media_type
        )

    def consider(self, call: Call | None = None, **changes: Any) -> MasaExchange:
        facts: dict[str, Any] = {
            "peer_certificate": self.device.certificate,
            "peer_chain": self.device.chain[1:],
            "manufacturers": [self.manufacturer],
            "tls_certificate": self.campus.certificate,
            "now": self.now,
        }
        return self.registrar.consider(call or self.ask(), **(facts | changes))

    def issue(self, call: Call, **changes: Any) -> Grant:
        grant = self.masa.issue(call, self, **({"now": self.now} | changes))
        before = grant.device
        self.events[before.serial_number, before.issuer] = replace(
            before,
            log=AuditLog((*before.log.events, grant.entry)),
            state=grant.state,
            owners=(*before.owners, grant.owner),
        )
        return grant

    def accept(self, reply: Reply, sent: Call | None = None, **changes: Any) -> Voucher:
        facts: dict[str, Any] = {"tls_chain": self.campus.tls_chain, "now": self.now}
        return self.pledge.accept_voucher(reply, sent or self.ask(), **(facts | changes))

    def run(self) -> Voucher:
        """The whole dialogue."""
        sent = self.ask()
        exchange = self.consider(sent)
        granted = exchange.conclude(self.issue(exchange.call).reply, self.now)
        return self.accept(exchange.reply(granted), sent)

    # what a test says of a message: content and signer replaced, everything else as it was

    def pledge_call(self, content: Mapping[str, Any] | bytes, **changes: Any) -> Call:
        """A voucher-request with this content, signed by the pledge unless `by` says otherwise."""
        return self._call(content, changes.pop("by", self.device), **changes)

    def registrar_call(self, content: Mapping[str, Any] | bytes, **changes: Any) -> Call:
        """A registrar's request with this content."""
        by = changes.pop("by", replace(self.campus.registrar, issuers=self.campus.chain))
        return self._call(content, by, **changes)

    def voucher_reply(self, content: Mapping[str, Any] | bytes, **changes: Any) -> Reply:
        """A voucher with this content, signed by the MASA unless `by` says otherwise."""
        return Reply(200, self.media_type, body=self._seal(content, changes.pop("by", self.factory.masa)))

    def _call(self, content: Mapping[str, Any] | bytes, by: Identity) -> Call:
        body = self._seal(content, by)
        return Call("POST", paths.REQUEST_VOUCHER, self.media_type, {"accept": self.media_type}, body)

    def _seal(self, content: Mapping[str, Any] | bytes, by: Identity) -> bytes:
        octets = content if isinstance(content, bytes) else json.dumps(content).encode()
        return seal(octets, by, now=self.now, media_type=self.media_type)


def seal(content: bytes, by: Identity, *, now: datetime = NOW, media_type: str = paths.VOUCHER_CMS_JSON) -> bytes:
    return sealed.seal(
        content,
        media_type,
        signer=by.signer,
        certificate=by.certificate,
        certificates=by.issuers,
        now=now,
    )


def content_of(body: bytes) -> dict[str, Any]:
    """The signed JSON inside an artefact of ours."""
    opened = sealed.unseal(
        body,
        sealed.media_type_of(body),
        malformed=VoucherMalformed,
        invalid=VoucherSignatureInvalid,
        accept_id_data=False,
    )
    document = json.loads(opened.content)
    assert isinstance(document, dict)
    return document


def with_leaf(document: Mapping[str, Any], **leaves: Any) -> dict[str, Any]:
    """`document` with leaves replaced; a value of None takes the leaf away. Underscores stand for dashes."""
    (key, members), *_ = document.items()
    changed = dict(members)
    for name, value in leaves.items():
        name = name.replace("_", "-")
        if value is None:
            changed.pop(name, None)
        else:
            changed[name] = value
    return {key: changed}


def without_leaf(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return with_leaf(document, **{name.replace("-", "_"): None for name in names})
