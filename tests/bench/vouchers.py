"""b1 and b2: a voucher's way through registrar and MASA, CPU only, in this process, without sockets and stores.

b1 is what a registrar does: check the pledge's request, make and sign its own, check the voucher. b2 is what a MASA
does: check both requests, sign the voucher. The bound is their cryptography: one signature and two verifications per
certificate chain and message, that is Rs+4Rv where chains have one link, Rs+6Rv where they have two (b1x2, b2x2).
Devices, keys, serial numbers and nonces are all different, so no cache can win.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from brski import Manufacturer, Masa, MasaExchange, Pledge, Registrar, Voucher
from est.exchange import Call, Reply
from lab.certificates import Domain, Identity, make_registrar
from lab.factory import Factory
from tests.bench.measure import Bench, Primitives
from tests.bench.plan import Plan

MASA = "masa.example:9443"
MUST = 0.30
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _World:
    factory: Factory
    domain: Domain

    @classmethod
    def create(cls, links: int) -> _World:
        born = datetime.now(UTC) - timedelta(hours=1)
        factory, domain = Factory.create(now=born), Domain.create(now=born)
        if links == 1:
            root = domain.root
            factory = replace(factory, device_ca=factory.device_root)
            domain = Domain(root, root, make_registrar(root, now=born))
        return cls(factory, domain)


class _Story:
    """One repetition: so many devices, each on its way once."""

    def __init__(self, world: _World, count: int) -> None:
        self.now = datetime.now(UTC)
        factory, domain = world.factory, world.domain
        self.domain, self.factory = domain, factory
        self.devices = [factory.make_device(f"b-{secrets.token_hex(6)}", now=self.now, masa=MASA) for _ in range(count)]
        self.pledges = [Pledge(one.signer, one.chain, factory.masa_anchors) for one in self.devices]
        self.asked = [
            one.voucher_request(domain.certificate, nonce=secrets.token_bytes(32), now=self.now) for one in self.pledges
        ]
        self.registrar = Registrar(domain.signer, domain.certificate, domain.chain)
        self.makers = [Manufacturer("Acme", factory.device_anchors, allowed_masas=frozenset({MASA}))]
        self.masa = Masa(factory.masa_signer, factory.masa_chain, factory.device_anchors, lasting=factory.lasting)

    def run(self) -> tuple[float, float]:
        """CPU microseconds per device at the registrar and at the MASA; every voucher is the pledge's own."""
        considering, exchanges = _timed(self._consider, list(zip(self.asked, self.devices, strict=True)))
        issuing, answers = _timed(self._issue, exchanges)
        concluding, vouchers = _timed(self._conclude, list(zip(exchanges, answers, strict=True)))
        chain = self.domain.tls_chain
        for pledge, asked, exchange, granted in zip(self.pledges, self.asked, exchanges, vouchers, strict=True):
            found = pledge.accept_voucher(exchange.reply(granted), asked, chain, now=self.now)
            assert found.serial_number == pledge.idevid.serial_number
        assert len({one.nonce for one in vouchers}) == len(self.devices)
        return considering + concluding, issuing

    def _consider(self, one: tuple[Call, Identity]) -> MasaExchange:
        asked, device = one
        return self.registrar.consider(
            asked, device.certificate, device.issuers, self.makers, tls_certificate=self.domain.certificate,
            now=self.now,
        )  # fmt: skip

    def _issue(self, exchange: MasaExchange) -> Reply:
        return self.masa.issue(exchange.call, self.factory, now=self.now).reply

    def _conclude(self, one: tuple[MasaExchange, Reply]) -> Voucher:
        exchange, reply = one
        return exchange.conclude(reply, self.now)


def run(plan: Plan) -> list[Bench]:
    """b1, b2 and their forms with two links, as far as the plan wants them."""
    done: list[Bench] = []
    for links, suffix in ((1, ""), (2, "x2")):
        verifications = 2 + 2 * links
        against = f"Rs+{verifications}Rv"
        registrar = Bench(f"b1{suffix}", f"requestvoucher at the registrar, CPU only, chains of {links}", against, MUST)
        masa = Bench(f"b2{suffix}", f"requestvoucher at the MASA, CPU only, chains of {links}", against, MUST)
        wanted = [bench for bench in (registrar, masa) if plan.wants(bench.id)]
        if not wanted:
            continue
        world = _World.create(links)
        _Story(world, plan.warm_up).run()
        count = max(1, plan.operations // 2)
        for _ in range(plan.repetitions):
            story, primitives = _Story(world, count), Primitives.measure()
            at_registrar, at_masa = story.run()
            bound = primitives.sign + verifications * primitives.verify
            for bench, cpu in ((registrar, at_registrar), (masa, at_masa)):
                bench.add(cpu=cpu, reference=bound, operations=count)
        for bench in wanted:
            bench.notes["books"] = "checked"
        done += wanted
    return done


def _timed(work: Callable[[T], R], inputs: Sequence[T]) -> tuple[float, list[R]]:
    begun = time.thread_time()
    done = [work(one) for one in inputs]
    return (time.thread_time() - begun) / len(inputs) * 1e6, done
