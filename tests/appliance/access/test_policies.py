"""Revisions of the policy are published, compared, taken back; sites, classes, tiers and proxies reach its rules."""

from __future__ import annotations

import asyncio

import pytest

from appliance.access.nas import NasService
from appliance.access.policies import PolicyService
from appliance.errors import NotFound, RequestMalformed
from appliance.identity.registry import AgentRegistry
from appliance.store import agents, schema
from radius import AccessRequest, CredentialRef
from radius.errors import RuleUnreachable, VlanUnknown
from tests.appliance.access.test_access_service import (
    ADMIN,
    AGENT,
    AKI,
    OWNER,
    POLICY,
    Box,
    _plain,
    access,
    issue,
    login,
    ready,
    set_agent,
    set_owner,
)  # fmt: skip

PROXY = "spiffe://campus.example/proxy/2b0f1a36-3b0f-4f0e-9d1c-0d8a7a1c0003"
HEAD = "version = 2\n[vlans]\nlab = 20\nguest = 99\n"


def test_revisions_are_listed_compared_and_taken_back(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            policies = PolicyService(store, service)
            await policies.publish(POLICY.replace("rnd = 20", "rnd = 21"), "R&D moves", ADMIN)
            assert service.authorize(login()).vlan == 21
            listed = await policies.list_()
            assert [(row["revision"], row["comment"]) for row in listed] == [(2, "R&D moves"), (1, "")]
            found = (await policies.diff(1, 0))["diff"].splitlines()
            assert found[:2] == ["--- revision 1", "+++ revision 2"]
            assert [line for line in found[3:] if line[0] in "+-"] == ["-rnd = 20", "+rnd = 21"]
            back = await policies.rollback(1, "", ADMIN)
            assert (back["revision"], back["same_as"]) == (3, 1)
            assert service.authorize(login())[:8:7] == ("accept", 3)
            assert service.authorize(login()).vlan == 20
            assert (await policies.show())["comment"] == "rollback to revision 1"
            assert (await policies.show(2))["text"].count("rnd = 21") == 1
            for wrong in (policies.show(9), policies.diff(1, 9), policies.rollback(9, "", ADMIN)):
                with pytest.raises(NotFound):
                    await wrong

    asyncio.run(story())


@pytest.mark.parametrize(("text", "error"), [
    (POLICY.replace('vlan = "rnd"', 'vlan = "x"'), VlanUnknown),
    (POLICY + '[[rule]]\nname = "again"\ndepartment = "HR"\nvlan = "hr"\n', RuleUnreachable),
])  # fmt: skip
def test_what_does_not_validate_is_never_in_force(tmp_path, text, error):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            policies = PolicyService(store, service)
            for act in (policies.publish(text, "", ADMIN), policies.validate(text)):
                with pytest.raises(error) as refused:
                    await act
                assert refused.value.fields["line"] > 1
            assert (await policies.show())["revision"] == 1
            with pytest.raises(RequestMalformed):
                await policies.publish(POLICY, "two\nlines", ADMIN)

    asyncio.run(story())


def test_warnings_name_what_does_not_exist(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            await NasService(store, Box()).add("sw-north", "192.0.2.7", "", ADMIN, site="north")
            text = (
                HEAD + "spare = 30\n[sites.south.vlans]\nlab = 120\n"
                "[[rule]]\nname = 'a'\ndepartment = ['R&D', 'Resaerch']\nnas = ['sw-*', 'ap-1']\nvlan = 'lab'\n"
                "[[rule]]\nname = 'b'\ncredential = ['dual', 'proxy']\ndepartment = 'r&d'\nsite = ['north', 'west']\n"
                "vlan = 'lab'\n"
            )
            found = (await PolicyService(store, service).validate(text))["warnings"]
            assert found == [
                "VLAN spare is used by no rule",
                "rule b: proxy credentials have no owner, so its department or owner kind leaves them out",
                "rule a: no owner is in department 'Resaerch'",
                "rule a: there is no NAS 'ap-1'",
                "sites.south: no NAS is at this site",
                "rule b: no NAS is at site 'west'",
            ]

    asyncio.run(story())


def test_the_site_of_a_nas_decides_rule_and_vlan(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            box = NasService(store, Box())
            await box.add("sw-north", "192.0.2.7", "", ADMIN, site="north")
            text = HEAD + "[sites.north.vlans]\nlab = 'lab-north'\n[[rule]]\nname = 'a'\nsite = 'north'\nvlan = 'lab'\n"
            await PolicyService(store, service).publish(text, "", ADMIN)
            for _ in range(2):
                assert service.authorize(login(nas="sw-north")).vlan == "lab-north"
                assert service.authorize(login(nas="sw-other")).verdict == "guest"
                await service.reload()
                # the reload reads owners and agents from tables that this test leaves empty
                await store.write(lambda tx: (set_owner(tx), set_agent(tx)))
            await box.remove("sw-north", ADMIN)
            assert service.authorize(login(nas="sw-north")).verdict == "guest"
            assert (await box.every()) == []
            with pytest.raises(RequestMalformed):
                await box.add("x", "192.0.2.8", "", ADMIN, site="a%{b}")

    asyncio.run(story())


def test_the_class_that_an_administrator_gave_reaches_the_rules(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            await PolicyService(store, service).publish(
                HEAD + "[[rule]]\nname = 'a'\nagent_class = 'robot'\ntier = 'affirming'\nvlan = 'lab'\n", "", ADMIN
            )
            assert service.authorize(login()).verdict == "guest"

            def register(tx):
                row = agents.Agent("a", AGENT, OWNER, "p", "j", "robot", agents.REGISTERED, tx.now, tx.now)
                agents.add(tx, row)
                tx.execute(schema.certificates.update().values(tier="affirming"))

            await store.write(register)
            await service.reload()
            await store.write(set_owner)
            decision = service.authorize(login())
            assert (decision.vlan, decision.asked.agent_class, decision.asked.tier) == (20, "robot", "affirming")

    asyncio.run(story())


@pytest.mark.req("A-113")
def test_a_class_that_changes_decides_the_next_login(tmp_path):
    async def story():
        async with access(tmp_path) as (service, store, _):
            await ready(service, store)
            await PolicyService(store, service).publish(
                HEAD + "[[rule]]\nname = 'a'\nagent_class = 'robot'\nvlan = 'lab'\n", "", ADMIN
            )
            registry = AgentRegistry(origin=AGENT.partition("/agent/")[0], store=store)

            def register(tx):
                agents.add(tx, agents.Agent("a", AGENT, OWNER, "p", "j", "", agents.REGISTERED, tx.now, tx.now))

            await store.write(register)
            assert service.authorize(login()).verdict == "guest"
            await registry.classify(AGENT, "robot", actor=ADMIN)
            decision = service.authorize(login())
            assert (decision.vlan, decision.asked.agent_class) == (20, "robot")
            await registry.classify(AGENT, "", actor=ADMIN)
            assert service.authorize(login()).verdict == "guest"

    asyncio.run(story())


def test_a_proxys_ldevid_passes_by_rule_at_once_and_after_a_restart(tmp_path):
    devices = "dd" * 20

    def certificate(tx, state="issued"):
        row = {
            "issuer_role": "devices", "issuer_aki": devices, "serial": "77", "profile": "ldevid", "subject_id": PROXY,
            "owner_id": None, "state": state, "not_before": tx.now, "not_after": tx.now.replace(year=2090),
            "model": None, "txn": None,
        }  # fmt: skip
        tx.emit("certificate", "x", _plain(row))

    async def story():
        async with access(tmp_path, issuers={AKI: "agents", devices: "devices"}) as (service, store, _):
            await store.write(lambda tx: (issue(tx, profile="server", serial=5), certificate(tx)))
            proxy = AccessRequest(tls_version="1.3", credential=CredentialRef(devices, 0x77))
            policies = PolicyService(store, service)
            await policies.publish(HEAD, "", ADMIN)
            assert service.authorize(proxy).reason_code == "credential-not-agent"
            await policies.publish(HEAD + "[[rule]]\nname = 'p'\ncredential = ['proxy']\nvlan = 'lab'\n", "", ADMIN)
            decision = service.authorize(proxy)
            assert (decision.verdict, decision.vlan, decision.agent_id) == ("accept", 20, PROXY)
            await store.write(lambda tx: certificate(tx, "revoked"))
            assert service.authorize(proxy).reason_code == "credential-revoked"

    asyncio.run(story())
