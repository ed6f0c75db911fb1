"""The version of this distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of


def version() -> str:
    """As it was installed; "0" where it runs from a checkout that is not."""
    try:
        return version_of("campus-appliance")
    except PackageNotFoundError:
        return "0"
