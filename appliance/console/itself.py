"""Operations about the appliance itself: doctor, backup."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Doctor = Callable[[], Awaitable[list[dict[str, Any]]]]
Backup = Callable[[Path], Awaitable[dict[str, Any]]]


class HomeOperations:
    """appliance doctor, appliance backup."""

    def __init__(self, doctor: Doctor, backup: Backup) -> None:
        self._doctor = doctor
        self._backup = backup

    async def doctor(self) -> Any:
        return await self._doctor()

    async def backup(self, file: str) -> Any:
        return await self._backup(Path(file))
