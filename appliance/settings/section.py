"""What every section of the settings is made of, and the refusal of what does not fit in one."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from est.errors import Refusal


class SettingsInvalid(Refusal):
    """A setting is unknown, mistyped or out of range."""

    reason: ClassVar[str] = "settings-invalid"


class Section(BaseModel):
    """One table of the settings file: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
