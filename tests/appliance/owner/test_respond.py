"""Answering challenges: nothing is shown that the server has not signed, nothing signed that was not shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from appliance.binding import approval, challenge, jws, request
from appliance.binding.challenge import BindingChallenge
from appliance.binding.errors import OwnerMismatch
from appliance.owner.answer_policy import AnswerPolicy, Asked, DecisionBook, Rule, read_answer_policy
from appliance.owner.client import Question, Server
from appliance.owner.errors import AnswerPolicyInvalid, CardNotReviewed, ServerRefused, ServerUnreachable
from appliance.owner.respond import Answered, Decision, Responder
from appliance.owner.review import ReviewCard, render, review
from appliance.owner.sign import sign
from tests.appliance.binding.example import (
    AGENT,
    AT,
    EXAMPLE,
    KEYS,
    OTHER_OWNER,
    OTHER_PROXY,
    OWNER,
    PROXY,
    SERVER,
    private,
    resign,
    signer,
)
from tests.support import FixedClock

NOW = EXAMPLE["now"]
SERVER_KEY = private("ca").public_key()
REQUEST = resign(EXAMPLE["agent_request"], "agent", {"model": "server-mediated", "exp": NOW + 600})
CSR = jws.unbase64url(EXAMPLE["csr_der_b64u"], "csr")


def question(**changes: Any) -> Question:
    asked = request.unseal(REQUEST)
    token = challenge.seal(
        signer(changes.pop("by", "ca")), asked, iss=SERVER, owner=OWNER, proxy=PROXY, iat=NOW, exp=NOW + 600,
        jti="J" * 22, nonce="N" * 43,
    )  # fmt: skip
    if changed := changes.pop("claims", None):
        token = resign(token, "ca", changed)
    return replace(Question("J" * 22, token, REQUEST, CSR), **changes)


class FakeServer:
    """What the other end of the connection answers; the connection itself is tested end to end."""

    def __init__(self, *questions: Question, losses: int = 0, refuses: str = "") -> None:
        self.asked = list(questions)
        self.answers: list[tuple[str, str]] = []
        self._losses = losses
        self._refuses = refuses

    async def questions(self, wait_seconds: float) -> list[Question]:
        return self.asked

    async def answer(self, asked: Question, token: str) -> str:
        self.answers.append((asked.id, token))
        if self._losses:
            self._losses -= 1
            raise ServerUnreachable("gone")
        if self._refuses:
            raise ServerRefused("no", status=409, problem=self._refuses)
        return "deny" if approval.unseal(token, KEYS["owner"]).is_denial else "approve"


async def run(server: FakeServer, answer: str = "approve", code: str | None = None) -> list[Answered]:
    shown: list[ReviewCard] = []

    async def decide(card: ReviewCard, asked: BindingChallenge) -> Decision:
        shown.append(card)
        return Decision(answer, code)

    told: list[Answered] = []
    pinned = Server(SERVER, SERVER_KEY)
    responder = Responder(server, pinned, signer("owner"), OWNER, FixedClock(AT), decide)  # type: ignore[arg-type]
    await responder.run(told.append, once=True)
    return told


@pytest.mark.req("A-62", "A-90")
@pytest.mark.parametrize("answer", ["approve", "deny"])
def test_an_answer_is_this_request_through_this_proxy_with_the_challenges_nonce(
    answer: str, play: Callable[..., Any]
) -> None:
    server = FakeServer(question(), losses=1)
    (told,) = play(run(server, answer))
    assert (told.decision, told.agent, told.refused) == (answer, AGENT, "")
    (_, first), (_, again) = server.answers
    assert first == again  # a lost reply: the very same answer, not another one
    signed = approval.unseal(first, KEYS["owner"])
    asked = request.unseal(REQUEST)
    assert (signed.nonce, signed.proxy, signed.rqh) == ("N" * 43, PROXY, asked.rqh)
    assert signed.is_denial is (answer == "deny")
    assert signed.exp == asked.exp


@pytest.mark.req("A-62", "A-90", "A-100")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"by": "verifier"}, "signature-invalid"),
        ({"claims": {"aud": OTHER_OWNER}}, "challenge-wrong-owner"),
        ({"claims": {"iss": "https://other.example/v1"}}, "challenge-wrong-server"),
        ({"claims": {"ttl": 60}}, "challenge-inconsistent"),
        ({"claims": {"rqh": jws.s256("x")}}, "challenge-for-other-request"),
        ({"claims": {"iat": NOW - 500, "exp": NOW - 100}}, "challenge-expired"),
        ({"csr_der": None}, ""),
        ({"csr_der": CSR[:-1]}, "body-malformed"),
        ({"request": EXAMPLE["agent_request"][:-2] + "AA"}, "signature-invalid"),
        ({"request": EXAMPLE["approval"]}, "malformed"),
    ],
    ids=lambda value: str(value)[:48],
)
def test_what_is_not_this_servers_question_is_told_and_never_signed(
    changes: dict[str, Any], reason: str, play: Callable[..., Any]
) -> None:
    server = FakeServer(question(**changes), replace(question(), id="K" * 22))
    first, second = play(run(server))
    assert first.refused == reason
    # one bad question keeps no other from its answer; after a good one the same request is not answered again
    assert second.decision == ("approve" if reason else "leave")
    assert len(server.answers) == 1


BESIDE = {"request": resign(REQUEST, "agent", {"owner": OTHER_OWNER})}


@pytest.mark.req("A-35", "A-90")
def test_beside_another_owner_one_signs_in_ones_own_name_and_sees_whose_agent_it_is(play: Callable[..., Any]) -> None:
    asked = question(claims={"rqh": request.unseal(BESIDE["request"]).rqh}, **BESIDE)
    server = FakeServer(asked)
    responder = Responder(
        server, Server(SERVER, SERVER_KEY), signer("owner"), OWNER,  # type: ignore[arg-type]
        FixedClock(AT), lambda card, challenge: None,  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    challenge, card = responder.card(asked)
    assert card.beside == OTHER_OWNER
    assert any(
        line.startswith("owner ") and OTHER_OWNER in line and "not yours" in line for line in render(card).splitlines()
    )
    signed = approval.unseal(responder.sign(card, challenge, Decision("approve", card.short_code)), KEYS["owner"])
    assert (signed.iss, signed.rqh, signed.nonce) == (OWNER, card.request.rqh, "N" * 43)
    with pytest.raises(OwnerMismatch):
        review(BESIDE["request"], owner_id=OWNER, now=AT)  # nobody said beside whom
    with pytest.raises(CardNotReviewed):
        sign(replace(card, beside=None), signer("owner"), now=AT)
    # a rule is for one's own agents, unless it names the other owner
    everything = 'version = 1\n[[rule]]\ndecision = "approve"\n'
    for more, answer in (("", "leave"), (f'owners = ["{OTHER_OWNER}"]', "approve"), (f'owners = ["{OWNER}"]', "leave")):
        policy = read_answer_policy(everything + more)
        verdict = policy.judge(Asked.of_challenge(challenge, card.beside), lambda rule, agent: 0)
        assert verdict.answer == answer, more
    named = read_answer_policy(everything + f'owners = ["{OTHER_OWNER}"]')
    assert decide(named, challenge) == "leave", "a rule for others' agents is not one for one's own"


@pytest.mark.req("A-92", "A-93")
def test_a_wrong_code_signs_nothing_and_silence_is_no_answer(play: Callable[..., Any]) -> None:
    server = FakeServer(question())
    (told,) = play(run(server, "approve", "AAAA-AAAA"))
    assert (told.refused, server.answers) == ("short-code-mismatch", [])
    (told,) = play(run(server, "leave"))
    assert (told.decision, told.refused, server.answers) == ("leave", "", [])


def test_what_the_server_refuses_is_told_by_its_reason(play: Callable[..., Any]) -> None:
    (told,) = play(run(FakeServer(question(), refuses="challenge-over")))
    assert told.refused == "challenge-over"


@pytest.fixture
def play() -> Callable[..., Any]:
    import asyncio

    return asyncio.run


def _asked() -> BindingChallenge:
    return challenge.unseal(question().challenge, SERVER_KEY)


@pytest.mark.req("A-93")
def test_the_first_rule_that_fits_decides_and_without_one_nothing_is_said() -> None:
    asked = _asked()
    text = f"""
    version = 1
    [[rule]]
    decision = "deny"
    proxies = ["{OTHER_PROXY}"]
    [[rule]]
    decision = "approve"
    agents = ["{AGENT}"]
    purposes = ["issue"]
    longest_seconds = {asked.ttl}
    """
    policy = read_answer_policy(text)
    assert decide(policy, asked) == "approve"
    for other in ({"proxy": OTHER_PROXY}, {"ttl": asked.ttl + 1}, {"purpose": "renew"}, {"sub": AGENT[:-1] + "0"}):
        expected = "deny" if "proxy" in other else "leave"
        assert decide(policy, replace(asked, **other)) == expected  # type: ignore[arg-type]
    assert decide(AnswerPolicy((Rule("approve", profiles=frozenset({"wit"})),), "deny"), asked) == "deny"


DIGEST = "ab" * 32


@pytest.mark.req("A-31", "A-93")
def test_rules_know_agents_by_what_their_proxy_measured_and_stop_at_their_rates() -> None:
    text = f"""
    version = 1
    otherwise = "deny"
    [[class]]
    name = "reader"
    executables = ["{DIGEST}"]
    uids = [1001]
    [[rule]]
    name = "readers"
    decision = "approve"
    classes = ["reader"]
    per_hour = 3
    per_agent_hour = 2
    """
    policy = read_answer_policy(text)
    clock = FixedClock()
    book = DecisionBook(clock)
    measured = Asked(AGENT, PROXY, "issue", ("x509",), 3600, DIGEST, 1001)

    def said(asked: Asked) -> tuple[str, str]:
        verdict = policy.judge(asked, book.decided)
        book.note(verdict.rule, asked.sub)
        return verdict.answer, verdict.why

    for other in ({"uid": 1002}, {"executable": "cd" * 32}, {"executable": None, "uid": None}):
        assert said(replace(measured, **other)) == ("deny", "no rule fits")  # type: ignore[arg-type]
    assert [said(measured)[0] for _ in range(3)] == ["approve", "approve", "deny"]
    other_agent = replace(measured, sub=AGENT[:-1] + "0")
    assert said(other_agent) == ("approve", "readers fits")
    assert said(other_agent) == ("deny", "no rule fits; the rate of readers is used up")
    clock.advance(3601)
    assert said(measured)[0] == "approve"


def decide(policy: AnswerPolicy, challenge: BindingChallenge) -> str:
    """What the rules say to a server's challenge, nothing having been decided before."""
    return policy.judge(Asked.of_challenge(challenge), lambda rule, agent: 0).answer


@pytest.mark.parametrize(
    "text",
    [
        "version = 2",
        "version = 1\nmore = 1",
        "version = 1\notherwise = 'approve'",
        "version = 1\nrule = 1",
        "version = 1\nrule = [1]",
        "version = 1\n[[rule]]\ndecision = 'leave'",
        "version = 1\n[[rule]]\ndecision = 'approve'\nlabel = 'x'",
        "version = 1\n[[rule]]\ndecision = 'approve'\nagents = []",
        "version = 1\n[[rule]]\ndecision = 'approve'\nprofiles = ['ssh']",
        "version = 1\n[[rule]]\ndecision = 'approve'\nlongest_seconds = 86401",
        "version = 1\n[[rule]]\ndecision = 'approve'\nlongest_seconds = true",
        "version = 1\n[[rule]]\ndecision = 'approve'\nper_hour = 0",
        "version = 1\n[[rule]]\ndecision = 'approve'\nclasses = ['nobody']",
        "version = 1\n[[rule]]\ndecision = 'approve'\nexecutables = ['ABCD']",
        "version = 1\n[[rule]]\ndecision = 'approve'\nname = '\u202egood'",
        "version = 1\n[[rule]]\ndecision = 'deny'\nname = 'a'\n[[rule]]\ndecision = 'approve'\nname = 'a'",
        "version = 1\n[[class]]\nname = 'x'\nuids = [true]",
        "version = 1\n[[class]]\nuids = [1]",
        "version = 1\nclass = 1",
        "[" * 5000,
        "x" * 300_000,
    ],
    ids=lambda text: text[:60],
)
def test_rules_that_cannot_be_read_answer_nothing(text: str) -> None:
    with pytest.raises(AnswerPolicyInvalid):
        read_answer_policy(text)
