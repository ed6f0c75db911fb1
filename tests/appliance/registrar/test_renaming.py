"""Names that change on request: refused by default, a common name where the label allows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from est import profiles, renaming
from est.exchange import Reply
from est.renaming import CHANGE_SUBJECT_NAME
from tests.appliance.registrar.test_approvals import ready
from tests.appliance.registrar.test_est_service import san_of
from tests.appliance.registrar.world import World, certificate_in, enroll_call, play

SAN = x509.SubjectAlternativeName
NEW = profiles.name("printer in room 7")


def change(subject: x509.Name | None, san: SAN | None) -> dict[str, tuple[bytes, ...]]:
    return {CHANGE_SUBJECT_NAME: (renaming.write(subject, san),)}


def told(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.body.decode().partition(" (request")[0]


@pytest.mark.req("E-116", "E-120")
def test_names_are_not_changed_unless_the_label_says_so(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        text = "name-change-refused: names are not changed under this EST label (ChangeSubjectName)"
        assert told(await device.enroll(device.csr(attributes=change(NEW, None)))) == (403, text)
        old = certificate_in(await device.enroll())
        asked = device.csr(subject=old.subject, san=san_of(old), attributes=change(NEW, san_of(old)))
        assert told(await world.handle(enroll_call(asked, again=True), device.with_ldevid(old))) == (403, text)
        assert len(await world.audited("ldevid-renewed")) == 0

    play(tmp_path, story)


@pytest.mark.req("E-120", "E-117")
def test_a_common_name_may_change_where_the_label_allows_it_and_then_it_stays(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        old = await device.bootstrap()
        names, peer = {"subject": old.subject, "san": san_of(old)}, device.with_ldevid(old)

        async def renew(new: x509.Name | None, san: SAN | None, **other: object) -> Reply:
            der = device.csr(**{**names, "attributes": change(new, san), **other})
            return await world.handle(enroll_call(der, again=True), peer)

        foreign = SAN([x509.UniformResourceIdentifier("spiffe://campus.example/proxy/other")])
        more = SAN([*san_of(old), x509.DNSName("x.example")])
        one_name = "name-change-refused: the new subject must be one common name of at most 64 printable characters"
        fixed = "name-change-refused: subjectAltName is the proxy's identifier, which never changes"
        gone = "name-change-refused: ChangeSubjectName without subjectAlt would take the proxy's identifier away"
        refused = {
            "SAN dropped": (await renew(NEW, None), gone),
            "SAN of another": (await renew(NEW, foreign), fixed),
            "one more SAN": (await renew(NEW, more), fixed),
            "subject dropped": (await renew(None, san_of(old)), one_name),
            "subject empty": (await renew(x509.Name([]), san_of(old)), one_name),
            "two attributes": (await renew(profiles.name("a", "b"), san_of(old)), one_name),
            "a line break": (await renew(profiles.name("a\nb"), san_of(old)), one_name),
            "new name in the request itself": (
                await renew(NEW, san_of(old), subject=NEW),
                "names-changed: the subject is not that of the certificate being renewed",
            ),
        }
        assert {name: told(reply) for name, (reply, _) in refused.items()} == {
            name: (403, text) for name, (_, text) in refused.items()
        }
        new = certificate_in(await renew(NEW, san_of(old)))
        assert (new.subject, san_of(new)) == (NEW, san_of(old))
        # from now on these are the names that a renewal must carry, and it keeps them
        peer = device.with_ldevid(new)
        reply = await world.handle(enroll_call(device.csr(**names), again=True), peer)
        assert told(reply)[0] == 403
        kept = await world.handle(enroll_call(device.csr(subject=NEW, san=san_of(old)), again=True), peer)
        assert certificate_in(kept).subject == NEW

    play(tmp_path, story, est={"renaming": "common-name"})


@pytest.mark.req("E-116")
def test_a_first_enrolment_may_choose_its_common_name_where_the_label_allows_it(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        (proxy,) = await world.part.inventory.proxies()
        names = SAN([x509.UniformResourceIdentifier(proxy["identifier"])])
        assert (await device.enroll(device.csr(attributes=change(NEW, None)))).status == 403
        certificate = certificate_in(await device.enroll(device.csr(attributes=change(NEW, names))))
        assert (certificate.subject, san_of(certificate)) == (NEW, names)

    play(tmp_path, story, est={"renaming": "common-name"})
