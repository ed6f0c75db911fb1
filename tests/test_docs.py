"""The manual against the code: generated pages are fresh, examples run, quoted commands and links exist."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from appliance import audit
from appliance.cli import application
from appliance.commands.invocation import hoist
from appliance.owner.gateway import routes as gateway_routes
from appliance.proxy import agent_api
from appliance.settings import describe_settings, load_settings
from appliance.web import routes
from lab import demo
from radius import policy_rules, read_policy, rules
from radius.reasons import REASONS
from tests import reference
from tests.markdown import COMMAND

ROOT = reference.ROOT
DOCS = reference.DOCS
# written by the full test run, so it may be older than the code, or missing in a fresh checkout
CONFORMANCE = DOCS / "conformance.md"
PAGES = sorted([*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *DOCS.rglob("*.md")])
WRITTEN = [page for page in PAGES if page != CONFORMANCE]
PACKAGES = ("est", "brski", "radius", "appliance", "appliance.binding", "lab")
# words that the glossary gives to other things, or that stand for one of its words
FORBIDDEN = {
    r"endorse\w*": "owner approval",
    r"consent\w*": "owner approval",
    r"factory cert\w*": "IDevID",
    r"default VLAN": "guest VLAN",
    r"insecure TLS": "provisional TLS",
    r"bots?": "agent",
    r"tenants?": "trust domain",
    r"health checks?": "appraisal",
    r"vendor servers?": "MASA",
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    path = DOCS / name
    assert path.exists() and path.read_text(encoding="utf-8") == reference.PAGES[name](), (
        f"{name} is out of date: run {COMMAND}"
    )


def test_every_setting_command_route_reason_and_event_is_in_the_reference() -> None:
    pages = {name: make() for name, make in reference.PAGES.items()}
    settings = [dotted for dotted, _, _ in describe_settings()]
    assert [one for one in settings if f"`{one}`" not in pages["reference/settings.md"]] == []
    assert [
        one for one, _ in reference.commands() if f"### appliance {' '.join(one)}\n" not in pages["reference/cli.md"]
    ] == []
    every = (*routes.ROUTES, *agent_api.ROUTES, *gateway_routes.ROUTES)
    assert [one for one in every if f"`{one.method} {one.path}`" not in pages["reference/http-api.md"]] == []
    assert {one.endpoint for one in every} == set(reference.PURPOSES)
    assert [one for one in REASONS if f"`{one}`" not in pages["reference/reason-codes.md"]] == []
    assert [one for one in audit.EVENTS if f"`{one}`" not in pages["reference/audit-events.md"]] == []


def test_every_setting_and_refusal_says_what_it_means() -> None:
    assert [dotted for dotted, _, meaning in describe_settings() if not meaning] == []
    assert [leaf for leaf in reference.all_leaves() if not reference.summary(leaf)] == []


def test_the_sample_settings_file_is_a_settings_file(tmp_path: Path) -> None:
    sample = DOCS / "reference" / "appliance.toml"
    found = load_settings(tmp_path, file=sample)
    assert {origin for key, origin in found.origins.items()} <= {"default", "environment"}
    uncommented = re.sub(r"^# (\w+ = )", r"\1", sample.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (tmp_path / "all.toml").write_text(uncommented)
    assert set(load_settings(tmp_path, file=tmp_path / "all.toml").origins.values()) <= {"file", "environment"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = _without_code(page.read_text(encoding="utf-8"))
    broken = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = (page.parent / path).resolve() if path else page
        if not found.exists() and found != CONFORMANCE:
            broken.append(target)
        elif anchor and anchor not in _anchors(found):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", [page for page in DOCS.rglob("*.md") if page.name != "index.md"], ids=name_of)
def test_every_page_is_in_the_index(page: Path) -> None:
    assert f"]({page.relative_to(DOCS).as_posix()})" in (DOCS / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_quoted_command_line_is_one_that_the_program_takes(page: Path) -> None:
    wrong = [
        f"{line}: {trouble}" for line in quoted_commands(page.read_text(encoding="utf-8")) if (trouble := misfit(line))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "fits"),
    [
        ("appliance policy show", True),
        ("appliance policy burn", False),
        ("appliance policy publish FILE --comment text", True),
        ("appliance policy publish FILE --force", False),
        ("appliance nas add", True),
        ("appliance nas add switch-1", False),
        ("appliance agent request --socket PATH --out DIR", False),
        ("appliance owners list -o json --home DIR", True),
    ],
)
def test_the_check_of_command_lines_finds_mistakes(line: str, fits: bool) -> None:
    assert bool(misfit(line)) is not fits


@pytest.mark.parametrize("page", [page for page in WRITTEN if page.name != "CHANGELOG.md"], ids=name_of)
def test_every_file_and_name_of_the_code_that_a_page_cites_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:est|brski|radius|appliance|lab|tests)/[\w/.-]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    cited = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)?)`(?:, `[\w.]+`)* in `([\w/]+\.py)`", text)
    assert [(name, path) for name, path in cited if (ROOT / path).exists() and not _defines(ROOT / path, name)] == []


def _defines(path: Path, name: str) -> bool:
    """Whether a module has a class, function or constant of that name, or a class with that method."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for part in name.split("."):
        found = [
            node
            for node in ast.walk(tree)
            if getattr(node, "name", None) == part
            or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == part)
        ]
        if not found:
            return False
        tree = found[0]  # type: ignore[assignment]
    return True


def test_the_tutorial_explains_every_check_of_the_demo() -> None:
    source = (ROOT / "lab" / "demo.py").read_text(encoding="utf-8")
    names = set(re.findall(r"story\.(?:check|eventually)\(\s*\"([a-z-]+)\"", source)) - {"story-told"}
    names |= {f"{trick}-refused" for trick in demo.TRICKS}
    tutorial = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    assert len(names) > 10
    assert sorted(name for name in names if f"`{name}`" not in tutorial) == []


@pytest.mark.parametrize("name", PACKAGES)
def test_the_example_of_a_package_runs(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_python_examples_of_the_manual_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for number, block in enumerate(re.findall(r"^```(?:python|pycon)\n(.*?)^```", text, re.MULTILINE | re.DOTALL), 1):
        if ">>>" in block:
            example = doctest.DocTestParser().get_doctest(block, {}, f"{page.name}[{number}]", str(page), 0)
            assert doctest.DocTestRunner().run(example).failed == 0
        else:
            ast.parse(block)


def test_the_first_screen_of_the_readme_says_what_a_stranger_needs() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    screen = "\n".join(lines[:50])
    assert screen.startswith("# ")
    assert re.search(r"for (the )?people who", screen), "for whom"
    picture, *blocks = re.findall(r"^```(?:\w*)\n(.*?)^```", screen, re.MULTILINE | re.DOTALL)
    assert "MASA" in picture and "<--" in picture and "switch" in picture
    assert any("./lab/demo" in block for block in blocks), "lines to paste"
    assert "Not done yet" in screen and "appliance/docs/not-supported.md" in screen


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_one_word_per_thing(page: Path) -> None:
    text = _without_code(page.read_text(encoding="utf-8"))
    found = [
        f"{match[0]!r}: the word is {word}"
        for pattern, word in FORBIDDEN.items()
        for match in re.finditer(rf"\b{pattern}\b", text, re.IGNORECASE)
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_path_of_the_machine_it_was_written_on(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.])/(?:work|home|root|tmp/[a-z]+-|Users)/\S*", text) == []
    assert str(ROOT) not in text


def quoted_commands(text: str) -> list[str]:
    """Command lines in code blocks and code spans, without prompt, comment and path of the program."""
    blocks = re.findall(r"^```(?:sh|console|text)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + indented
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = []
    for line in [*lines, *spans]:
        bare = re.sub(r"\s+#\s.*$", "", line.strip().removeprefix("$ ")).removeprefix(".venv/bin/")
        if re.match(r"appliance [a-z]", bare):
            found.append(bare)
    return found


@cache
def program() -> Any:
    return typer.main.get_command(application())


def misfit(line: str) -> str:
    """What is wrong with a command line, or "". Bare verbs are mentions; `...`, `a | b` and `[a]` a synopsis."""
    try:
        words = shlex.split(line)
    except ValueError as wrong:
        return str(wrong)
    is_synopsis = any(word in ("...", "|") or word.startswith(("[", "(")) for word in words)
    rest = hoist(words[1:])[1]
    command: Any = program()
    while (inner := getattr(command, "commands", None)) is not None:
        if not rest or rest[0] not in inner:
            return "" if not rest or rest[0] in ("...", "|") else f"there is no {rest[0]}"
        command = inner[rest.pop(0)]
    return "" if is_synopsis or not rest else _misfit_of_arguments(command, rest)


def _misfit_of_arguments(command: Any, rest: list[str]) -> str:
    options = {name: one for one in command.params for name in (*one.opts, *one.secondary_opts) if name.startswith("-")}
    given, positional = set(), 0
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if not word.startswith("-") or word == "-":
            positional += 1
        elif name not in options:
            return f"there is no option {name}"
        else:
            given.add(options[name].name)
            if not options[name].is_flag and not equals:
                if not rest:
                    return f"{name} wants a value"
                rest.pop(0)
    arguments = [one for one in command.params if not one.opts[0].startswith("-")]
    is_open = any(one.nargs == -1 for one in arguments)
    if positional < sum(one.required for one in arguments) or (positional > len(arguments) and not is_open):
        return f"{positional} arguments"
    missing = [one.opts[0] for one in options.values() if one.required and one.name not in given]
    return f"lacks {', '.join(missing)}" if missing else ""


def _without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_page_about_the_policy_file_has_every_key_and_its_how_to_is_a_policy() -> None:
    page = (DOCS / "reference" / "policy-file.md").read_text(encoding="utf-8")
    keys = {*policy_rules.KEYS, "version", "unmapped", "stale", "guest_vlan", "mac_bypass", "sites", "days", "zone"}
    assert [key for key in sorted(keys) if not re.search(rf"[`.\[]{key}[`.\]]", page)] == []
    words = (*rules.CREDENTIALS, *rules.OWNER_KINDS, *rules.TIERS, *rules.MODELS)
    assert [word for word in words if f"`{word}`" not in page] == []
    how_to = (DOCS / "howto" / "write-a-policy.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", how_to, re.DOTALL)
    policy = read_policy(text)
    assert [rule.name for rule in policy.rules] == ["robots sleep at night", "research", "proxies in the north"]
    assert policy.mac_bypass is not None
