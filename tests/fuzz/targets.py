"""What is fuzzed: each target takes any bytes and lets nothing out but our own refusals.

Readers of signed artefacts see mutated bytes as they come. Behind the signature mutation gets nowhere, so the other
targets sign what the fuzzer made: a header, or the content of an artefact, and hand it to the role that reads it.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from brski import jws, paths, read_dialect, sealed, voucher, voucher_request
from brski.dialect import STRICT, SWITCHES
from est import jose
from est.errors import Refusal
from est.exchange import Reply
from lab.certificates import Identity
from tests.brski.trio import SERIAL, Trio

VECTORS = Path(__file__).parents[1] / "vectors"
CRASHES = Path(__file__).parent / "crashes"
MAX_BYTES = 300_000
MAX_SECONDS = 0.050
THEN = datetime(2026, 1, 1, 12, tzinfo=UTC)
CMS, JWS = paths.VOUCHER_CMS_JSON, paths.VOUCHER_JWS_JSON
EVERYTHING = read_dialect(",".join(SWITCHES))


@dataclass(frozen=True, slots=True)
class Target:
    """`feed` reads one input; `seeds` are where the fuzzer begins."""

    feed: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


class TooSlow(Exception):
    """An input takes longer than MAX_SECONDS, also when it is tried again."""


def check(target: Target, data: bytes) -> None:
    """Feed once; anything but silence is a finding. Raises TooSlow, or what the target lets out."""
    seconds = _timed(target, data)
    if seconds > MAX_SECONDS:  # the machine may have been busy with something else
        seconds = min(seconds, *(_timed(target, data) for _ in range(3)))
        if seconds > MAX_SECONDS:
            raise TooSlow(f"{seconds * 1000:.0f} ms for {len(data)} bytes")


def _timed(target: Target, data: bytes) -> float:
    begun = time.thread_time()
    target.feed(data)
    return time.thread_time() - begun


def _artefacts(media_type: str) -> tuple[bytes, bytes, bytes]:
    world = Trio(media_type=media_type)
    exchange = world.consider()
    return world.ask().body, exchange.call.body, world.issue(exchange.call).reply.body


def _vectors(pattern: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(VECTORS.glob(pattern)))


def _unseal(media_type: str, *texts: str) -> Callable[[bytes], None]:
    dialects = [read_dialect(text) for text in texts]

    def feed(data: bytes) -> None:
        for dialect in dialects:
            for read in (voucher_request.unseal, voucher.unseal):
                try:
                    read(data, media_type, dialect=dialect)
                except Refusal:
                    continue

    return feed


def _content(data: bytes) -> None:
    for dialect in (STRICT, EVERYTHING):
        for read in (voucher.read, voucher_request.read):
            try:
                read(data, dialect)
            except Refusal:
                continue


WORLDS = {media_type: Trio(media_type=media_type) for media_type in (CMS, JWS)}
SENT = {media_type: world.ask() for media_type, world in WORLDS.items()}
EXCHANGES = {media_type: world.consider(SENT[media_type]) for media_type, world in WORLDS.items()}


def _seal(content: bytes, by: Identity, media_type: str) -> bytes:
    return sealed.seal(
        content, media_type, signer=by.signer, certificate=by.certificate, certificates=by.issuers, now=THEN
    )


def _pledge_request(data: bytes) -> None:
    """Content signed by the pledge, for the registrar."""
    for media_type, world in WORLDS.items():
        try:
            world.consider(replace(SENT[media_type], body=_seal(data, world.device, media_type)))
        except Refusal:
            continue


def _registrar_request(data: bytes) -> None:
    """Content signed by the registrar, for the MASA."""
    for media_type, world in WORLDS.items():
        by = replace(world.campus.registrar, issuers=world.campus.chain)
        try:
            world.masa.issue(replace(EXCHANGES[media_type].call, body=_seal(data, by, media_type)), world, now=THEN)
        except Refusal:
            continue


def _voucher(data: bytes) -> None:
    """Content signed by the MASA, for registrar and pledge."""
    for media_type, world in WORLDS.items():
        reply = Reply(200, media_type, body=_seal(data, world.factory.masa, media_type))
        for take in (
            lambda: EXCHANGES[media_type].conclude(reply, THEN),
            lambda: world.accept(reply, SENT[media_type]),
        ):
            try:
                take()
            except Refusal:
                continue


def _jws_header(data: bytes) -> None:
    """A protected header over a good signature."""
    device = WORLDS[JWS].device
    header, payload = jose.base64url(data), jose.base64url(b"{}")
    signature = jose.write_ecdsa(device.signer.sign(f"{header}.{payload}".encode()), 32)
    one = {"protected": header, "signature": jose.base64url(signature)}
    try:
        jws.unseal(json.dumps({"payload": payload, "signatures": [one]}).encode())
    except Refusal:
        return


def _contents(*names: str) -> tuple[bytes, ...]:
    made = [jws.unseal(body).content for body in _artefacts(JWS)]
    chosen = {"pvr": made[0], "rvr": made[1], "voucher": made[2]}
    return tuple(chosen[name] for name in names)


def _headers() -> tuple[bytes, ...]:
    header = json.loads(jose.unbase64url(json.loads(SENT[JWS].body)["signatures"][0]["protected"].encode()))
    short = {"alg": "ES256", "x5c": header["x5c"][:1]}
    return tuple(json.dumps(one).encode() for one in (header, short, {**short, "crit": ["b64"], "b64": False}))


def _targets() -> Mapping[str, Target]:
    cms, signed = _artefacts(CMS), _artefacts(JWS)
    captured = _vectors("rfc8995/*.cms") + _vectors("rfc8995/derived/*.cms") + _vectors("peers/secsy-pki/0[12]*.bin")
    foreign = _vectors("peers/nqminds-brski/*/*.bin")
    return {
        "content": Target(_content, (*_contents("pvr", "rvr", "voucher"), *_vectors("rfc8995/*.json"))),
        "cms": Target(_unseal(CMS, ""), cms + captured),
        "cms-dialect": Target(_unseal(CMS, "base64-bodies,legacy-key,loose-dates"), foreign + _base64(cms)),
        "jws": Target(_unseal(JWS, ""), signed + _vectors("jws-voucher/*.jws.json")),
        "jws-header": Target(_jws_header, _headers()),
        "pledge-request": Target(_pledge_request, _contents("pvr")),
        "registrar-request": Target(_registrar_request, _contents("rvr")),
        "voucher": Target(_voucher, _contents("voucher")),
    }


def _base64(bodies: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return tuple(base64.encodebytes(body) for body in bodies)


TARGETS: Mapping[str, Target] = _targets()
NAMES = tuple(TARGETS)
WORDS = (
    *(
        f'"{word}"'
        for word in ("alg", "typ", "x5c", "crit", "payload", "protected", "signature", "signatures", "header")
    ),
    *(f'"{word}"' for word in ("created-on", "expires-on", "assertion", "serial-number", "idevid-issuer", "nonce")),
    *(f'"{word}"' for word in ("pinned-domain-cert", "domain-cert-revocation-checks", "last-renewal-date")),
    *(f'"{word}"' for word in ("proximity-registrar-cert", "prior-signed-voucher-request", SERIAL)),
    *(f'"{word}"' for word in (voucher.KEY, voucher_request.KEY, "proximity", "logged", "verified", "ES256", "none")),
)
"""The fuzzer's dictionary: names that chance would not find."""


def any_target() -> Target:
    """All in one: the first byte chooses."""

    def feed(data: bytes) -> None:
        if data:
            TARGETS[NAMES[data[0] % len(NAMES)]].feed(data[1:])

    seeds = [bytes([number]) + seed for number, name in enumerate(NAMES) for seed in TARGETS[name].seeds]
    return Target(feed, tuple(seeds))
