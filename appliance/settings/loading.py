"""Reads files and environment, which no other module does, into the settings; writes the sample file.

Precedence: flag, environment (APPLIANCE_<SECTION>__<KEY>), file, default.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.settings.model import Settings
from appliance.settings.section import Section, SettingsInvalid

FILE_NAME = "appliance.toml"
_SECTIONS: Mapping[str, type[Section]] = {
    name: info.annotation  # type: ignore[misc]
    for name, info in Settings.model_fields.items()
    if name != "home"
}


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings together with where each value came from: `flag`, `environment`, `file` or `default`."""

    settings: Settings
    origins: Mapping[str, str]


def default_home() -> Path:
    """`$APPLIANCE_HOME`, else a per-user state folder."""
    if named := os.environ.get("APPLIANCE_HOME"):
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "appliance"


def load_settings(
    home: Path | None = None, assignments: Sequence[str] = (), *, file: Path | None = None
) -> LoadedSettings:
    """Settings of a home.

    `assignments` are `section.key=value` texts from the command line; `file` replaces HOME/appliance.toml.
    Raises SettingsInvalid naming the key, and for an unknown key its nearest known neighbour.
    """
    home = (home or default_home()).absolute()
    values: dict[str, dict[str, Any]] = {}
    origins = {f"{section}.{key}": "default" for section, model in _SECTIONS.items() for key in model.model_fields}

    def put(section: str, key: str, value: Any, origin: str) -> None:
        dotted = f"{section}.{key}"
        if dotted not in origins:
            near = difflib.get_close_matches(dotted, origins, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsInvalid(f"unknown setting {dotted} (from {origin}){hint}", key=dotted)
        values.setdefault(section, {})[key] = value
        origins[dotted] = origin

    path = file or home / FILE_NAME
    if path.exists():
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as cause:
            raise SettingsInvalid(f"{path.name}: {cause}", file=str(path)) from cause
        for section, table in document.items():
            if not isinstance(table, dict):
                raise SettingsInvalid(f"{path.name}: {section} must be a section", key=section)
            for key, value in table.items():
                put(section, key, value, "file")
    elif file is not None:
        raise SettingsInvalid(f"settings file {path} does not exist", file=str(path))
    for name, value in os.environ.items():
        if name.startswith("APPLIANCE_") and "__" in name:
            section, _, key = name.removeprefix("APPLIANCE_").lower().partition("__")
            put(section, key, _from_text(section, key, value), "environment")
    for assignment in assignments:
        dotted, equals, value = assignment.partition("=")
        section, dot, key = dotted.strip().partition(".")
        if not (equals and dot):
            raise SettingsInvalid(f"--set wants section.key=value, not {assignment!r}", key=dotted)
        put(section, key, _from_text(section, key, value), "flag")
    try:
        settings = Settings.model_validate({"home": home, **values})
    except ValidationError as cause:
        first = cause.errors()[0]
        dotted = ".".join(str(part) for part in first["loc"])
        raise SettingsInvalid(f"setting {dotted}: {first['msg']}", key=dotted) from cause
    return LoadedSettings(settings, origins)


def _from_text(section: str, key: str, value: str) -> Any:
    """A list-valued setting is comma-separated in flags and environment; the model converts the rest."""
    model = _SECTIONS.get(section)
    if model is not None and key in model.model_fields and isinstance(model.model_fields[key].default, tuple):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def describe_settings() -> list[tuple[str, str, str]]:
    """(dotted name, default as text, description) of every setting; reference page and sample file are made of it."""
    rows = []
    for section, model in _SECTIONS.items():
        for key, info in model.model_fields.items():
            default = info.default
            text = ", ".join(map(str, default)) if isinstance(default, tuple | dict) else str(default)
            rows.append((f"{section}.{key}", "" if default is None else text, info.description or ""))
    return rows


def sample_file(chosen: Mapping[str, object] | None = None) -> str:
    """A complete settings file: every setting with its meaning, commented out unless `chosen` sets it."""
    lines = ["# Settings of the appliance. Uncomment what you change; `appliance check` validates this file.", ""]
    for section, model in _SECTIONS.items():
        lines.append(f"[{section}]")
        for key, info in model.model_fields.items():
            value = (chosen or {}).get(f"{section}.{key}")
            mark = "" if value is not None else "# "
            shown = info.default if value is None else value
            lines.append(f"# {info.description}")
            lines.append(f"{mark}{key} = {_toml(shown)}")
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
    text = "" if value is None else str(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
