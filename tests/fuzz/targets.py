"""What is fuzzed: each target takes any bytes and lets nothing out but our own refusals.

Readers of signed artefacts see mutated bytes as they come. Behind the signature mutation gets nowhere, so the other
targets sign what the fuzzer made: a header, or the content of an artefact, and hand it to the role that reads it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from appliance.web.reading import RequestReader, read_headers
from brski import jws, paths, read_dialect, sealed, voucher, voucher_request
from brski.dialect import SWITCHES
from est import jose
from est.errors import Refusal
from est.exchange import Reply
from lab.certificates import Identity
from tests.brski.trio import SERIAL, Trio
from tests.fuzz import identity
from tests.fuzz.radius_targets import radius_targets
from tests.fuzz.target import Read, Target

VECTORS = Path(__file__).parents[1] / "vectors"
CRASHES = Path(__file__).parent / "crashes"
MAX_BYTES = 300_000
MAX_SECONDS = 0.050
THEN = datetime(2026, 1, 1, 12, tzinfo=UTC)
CMS, JWS = paths.VOUCHER_CMS_JSON, paths.VOUCHER_JWS_JSON
EVERYTHING = read_dialect(",".join(SWITCHES))


class TooSlow(Exception):
    """A reader takes longer than MAX_SECONDS for an input, also when it is tried again."""


def check(target: Target, data: bytes) -> None:
    """Give one input to every reader; refusals and silence are fine.

    Raises TooSlow, or whatever else a reader lets out.
    """
    for read in target.reads:
        seconds = _timed(read, data)
        if seconds > MAX_SECONDS:  # the machine may have been busy with something else
            seconds = min(seconds, *(_timed(read, data) for _ in range(3)))
            if seconds > MAX_SECONDS:
                raise TooSlow(f"{seconds * 1000:.0f} ms for {len(data)} bytes")


def _timed(read: Read, data: bytes) -> float:
    begun = time.thread_time()
    with contextlib.suppress(Refusal):
        read(data)
    return time.thread_time() - begun


def _artefacts(media_type: str) -> tuple[bytes, bytes, bytes]:
    world = Trio(media_type=media_type)
    exchange = world.consider()
    return world.ask().body, exchange.call.body, world.issue(exchange.call).reply.body


def _vectors(pattern: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(VECTORS.glob(pattern)))


def _unseal(media_type: str, dialect: str = "") -> tuple[Read, ...]:
    chosen = read_dialect(dialect)
    return (
        lambda data: voucher_request.unseal(data, media_type, dialect=chosen),
        lambda data: voucher.unseal(data, media_type, dialect=chosen),
    )


CONTENT: tuple[Read, ...] = (
    voucher.read,
    voucher_request.read,
    lambda data: voucher.read(data, EVERYTHING),
    lambda data: voucher_request.read(data, EVERYTHING),
)


WORLDS = {media_type: Trio(media_type=media_type) for media_type in (CMS, JWS)}
SENT = {media_type: world.ask() for media_type, world in WORLDS.items()}
EXCHANGES = {media_type: world.consider(SENT[media_type]) for media_type, world in WORLDS.items()}


def _seal(content: bytes, by: Identity, media_type: str) -> bytes:
    return sealed.seal(
        content, media_type, signer=by.signer, certificate=by.certificate, certificates=by.issuers, now=THEN
    )


def _to_registrar(media_type: str) -> Read:
    """Content signed by the pledge."""
    world = WORLDS[media_type]
    return lambda data: world.consider(replace(SENT[media_type], body=_seal(data, world.device, media_type)))


def _to_masa(media_type: str) -> Read:
    """Content signed by the registrar."""
    world, call = WORLDS[media_type], EXCHANGES[media_type].call
    by = replace(world.campus.registrar, issuers=world.campus.chain)
    return lambda data: world.masa.issue(replace(call, body=_seal(data, by, media_type)), world, now=THEN)


def _back(media_type: str) -> tuple[Read, Read]:
    """Content signed by the MASA, for registrar and pledge."""
    world = WORLDS[media_type]

    def reply(data: bytes) -> Reply:
        return Reply(200, media_type, body=_seal(data, world.factory.masa, media_type))

    return (
        lambda data: EXCHANGES[media_type].conclude(reply(data), THEN),
        lambda data: world.accept(reply(data), SENT[media_type]),
    )


def _jws_header(data: bytes) -> None:
    """A protected header over a good signature."""
    device = WORLDS[JWS].device
    header, payload = jose.base64url(data), jose.base64url(b"{}")
    signature = jose.write_ecdsa(device.signer.sign(f"{header}.{payload}".encode()), 32)
    one = {"protected": header, "signature": jose.base64url(signature)}
    jws.unseal(json.dumps({"payload": payload, "signatures": [one]}).encode())


def _http_requests(data: bytes) -> None:
    """What comes over one connection."""
    reader = RequestReader()
    try:
        reader.feed(data)
        for request in reader.arrived:
            read_headers(request)
    finally:
        reader.close()


_HTTP = (
    b"GET /a?b HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\nPOST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
    b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nab\r\n0\r\nA: b\r\n\r\n",
    b"GET /a HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
)


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
        "content": Target(CONTENT, (*_contents("pvr", "rvr", "voucher"), *_vectors("rfc8995/*.json"))),
        "cms": Target(_unseal(CMS), cms + captured),
        "cms-dialect": Target(_unseal(CMS, "base64-bodies,legacy-key,loose-dates"), foreign + _base64(cms)),
        "jws": Target(_unseal(JWS), signed + _vectors("jws-voucher/*.jws.json")),
        "jws-header": Target((_jws_header,), _headers()),
        "pledge-request": Target((_to_registrar(CMS), _to_registrar(JWS)), _contents("pvr")),
        "registrar-request": Target((_to_masa(CMS), _to_masa(JWS)), _contents("rvr")),
        "voucher": Target(_back(CMS) + _back(JWS), _contents("voucher")),
        **{name: Target(reads, seeds) for name, (reads, seeds) in identity.READS.items()},
        **radius_targets(),
        "http-requests": Target((_http_requests,), _HTTP),
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
    *identity.WORDS,
    *(f'"{word}"' for word in (voucher.KEY, voucher_request.KEY, "proximity", "logged", "verified", "ES256", "none")),
)
"""The fuzzer's dictionary: names that chance would not find."""


GROUPS: Mapping[str, tuple[str, ...]] = {"all": NAMES, "radius": tuple(name for name in NAMES if name[:7] == "radius-")}
"""Targets that are fuzzed together."""


def by_first_byte(data: bytes, group: str = "all") -> tuple[str, bytes]:
    """Which target an input of a group is for, and what is left of it."""
    names = GROUPS[group]
    return names[data[0] % len(names)], data[1:]


def seeds_of(group: str = "all") -> tuple[bytes, ...]:
    """The seeds of every target of a group, with the byte that chooses it."""
    return tuple(bytes([number]) + seed for number, name in enumerate(GROUPS[group]) for seed in TARGETS[name].seeds)
