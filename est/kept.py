"""What was worked out for an object that never changes, kept by the object itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

_K = TypeVar("_K")
_T = TypeVar("_T")
KEPT = 256
"""How many results are kept at once."""


def kept_by_identity(make: Callable[[_K], _T], kept: dict[int, tuple[object, _T]] | None = None) -> Callable[[_K], _T]:
    """`make` for keys, which cannot be hashed, and certificates, all of whose octets are hashed each time.

    The object is kept beside its result, so that its identity does not become another one's. `kept` may be filled by
    whoever knows a result already, with `keep()`.
    """
    kept = {} if kept is None else kept

    @wraps(make)
    def find(key: _K) -> _T:
        found = kept.get(id(key))
        return keep(kept, key, make(key)) if found is None else found[1]

    return find


def keep(kept: dict[int, tuple[object, _T]], key: object, result: _T) -> _T:
    """Keep the result for an object."""
    keep_as(kept, id(key), (key, result))
    return result


def keep_as(kept: dict[_K, _T], name: _K, result: _T) -> None:
    """Keep the result under a name that can be hashed; what is full is emptied first."""
    if len(kept) >= KEPT:
        kept.clear()
    kept[name] = result
