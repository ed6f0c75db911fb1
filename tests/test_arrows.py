"""Who may import whom, and what pure code may not touch: the architecture as a test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("est", "brski", "radius", "appliance", "lab", "tests")
PURE = ("est", "brski", "appliance/binding")
PURE_FILES = tuple(
    f"radius/{name}.py"
    for name in (
        "request",
        "rules",
        "reach",
        "policy",
        "policy_values",
        "policy_rules",
        "ruling",
        "decision",
        "decide",
        "bypass",
        "impact",
        "dropped",
        "failures",
        "reasons",
        "attributes",
        "simulate",
        "hook",
        "eap_tls",
        "wire",
        "nas_profiles",
        "clients",
        "duplicates",
    )
)
IMPURE_MODULES = {
    "asyncio",
    "ssl",
    "socket",
    "aiohttp",
    "httptools",
    "zeroconf",
    "sqlite3",
    "sqlalchemy",
    "subprocess",
    "random",
    "secrets",
    "time",
    "threading",
    "tempfile",
    "shutil",
    "OpenSSL",
}
IMPURE_CALLS = {
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "os.urandom",
    "uuid.uuid4",
    "uuid.uuid1",
    "Path.open",
}

# package prefix -> the prefixes of ours that it may import; the longest matching key counts
ALLOWED: dict[str, tuple[str, ...]] = {
    "est": ("est",),
    "brski": ("brski", "est"),
    "radius": ("radius", "est"),
    "appliance": ("appliance", "est", "brski", "radius"),
    "appliance.binding": ("appliance.binding", "est"),
    "appliance.settings": ("appliance.settings", "appliance.setting_types", "est"),
    "appliance.setting_types": (),
    "appliance.errors": ("est",),
    "appliance.clock": ("appliance.errors", "est"),
    "appliance.supplicant": ("appliance.errors", "est"),
    "appliance.web": (
        "appliance.web",
        "appliance.errors",
        "appliance.clock",
        "appliance.settings",
        "est",
        "brski",
        "radius",
        "appliance.binding.errors",
    ),
    "appliance.mdns": ("appliance.mdns", "appliance.errors", "appliance.clock", "brski", "est"),
    "appliance.cohort": (),
    "appliance.store": (
        "appliance.store",
        "appliance.errors",
        "appliance.clock",
        "appliance.cohort",
        "appliance.settings",
        "est",
    ),
    "appliance.proxy": (
        "appliance.proxy",
        "appliance.mdns",
        "appliance.failpoint",
        "appliance.binding",
        "appliance.web",
        "appliance.settings",
        "appliance.errors",
        "appliance.supplicant",
        "appliance.tpm",
        "appliance.clock",
        "est",
        "brski",
    ),
    # an agent of its own inside the proxy, for callers that have none
    "appliance.proxy.spiffe": (
        "appliance.proxy",
        "appliance.agent",
        "appliance.binding",
        "appliance.web",
        "appliance.errors",
        "appliance.clock",
        "est",
    ),
    "appliance.owner": (
        "appliance.owner",
        "appliance.failpoint",
        "appliance.token",
        "appliance.tpm",
        "appliance.binding",
        "appliance.web",
        "appliance.settings",
        "appliance.errors",
        "appliance.clock",
        "est",
        "brski",
    ),
    "appliance.agent": (
        "appliance.agent",
        "appliance.binding",
        "appliance.web",
        "appliance.errors",
        "appliance.supplicant",
        "appliance.clock",
        "est",
    ),
    "lab": ("lab", "est", "brski", "radius", "appliance"),
}
# a module that no one but these may import
_AT_THE_TOP = ("appliance.cli", "appliance.compose", "appliance.running", "appliance", "lab", "appliance.operations")
GUARDED = {"appliance.compose": _AT_THE_TOP, "appliance.running": _AT_THE_TOP}
SERVICES = ("appliance.registrar", "appliance.identity", "appliance.access")
NOT_FROM = {
    **{one: tuple(other for other in SERVICES if other != one) for one in SERVICES},
    "appliance.console": ("appliance.store",),
    "appliance.cli": ("appliance.store",),
    "appliance.store": SERVICES,
    "appliance.ca": SERVICES,
    "appliance.audit": SERVICES,
}


def _files() -> list[Path]:
    return [path for package in OURS[:-1] for path in sorted((ROOT / package).rglob("*.py"))]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _module(path).split(".") if node.level else []
            if node.level:
                base = base[: len(base) - node.level + (1 if path.name == "__init__.py" else 0)]
            name = ".".join([*base, *([node.module] if node.module else [])])
            found.add(name)
            found |= {f"{name}.{alias.name}" for alias in node.names}
    return found


def _within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def _rule(module: str) -> tuple[str, ...]:
    return ALLOWED[max((key for key in ALLOWED if _within(module, (key,))), key=len)]


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_a_module_imports_only_what_its_place_allows(path: Path) -> None:
    module = _module(path)
    ours = {name for name in _imports(path) if name.split(".")[0] in OURS}
    allowed = _rule(module)
    # "from est import cms" names est itself as well: a prefix of something allowed is fine
    wrong = {name for name in ours if not _within(name, allowed) and not any(a.startswith(name + ".") for a in allowed)}
    assert not wrong, f"{module} must not import {sorted(wrong)}"
    for place, forbidden in NOT_FROM.items():
        if _within(module, (place,)):
            bad = {name for name in ours if _within(name, forbidden)}
            assert not bad, f"{module} must not import {sorted(bad)}"
    for guarded, users in GUARDED.items():
        if any(_within(name, (guarded,)) for name in ours):
            assert _within(module, users), f"{module} must not import {guarded}"


def _pure_files() -> list[Path]:
    names = {path: path.relative_to(ROOT).as_posix() for path in _files()}
    return [path for path, name in names.items() if name.startswith(PURE) or name in PURE_FILES]


@pytest.mark.parametrize("path", _pure_files(), ids=_module)
def test_pure_code_touches_no_io_clock_or_chance(path: Path) -> None:
    roots = {name.split(".")[0] for name in _imports(path)}
    assert not roots & IMPURE_MODULES, f"{_module(path)} imports {sorted(roots & IMPURE_MODULES)}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            pure = called != "open" and not any(called.endswith(bad) for bad in IMPURE_CALLS)
            assert pure, f"{_module(path)}: {called}()"


def test_the_top_level_holds_only_what_the_layout_names() -> None:
    allowed = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", *OURS}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found - {"lab-output", "build", "dist"} <= allowed
