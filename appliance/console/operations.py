"""Administrative operations: every verb of the command line as one typed function over the services.

The command line calls them in its own process, or through HOME/run/admin.sock while the appliance runs. Arguments come
as a JSON object and are held against the function's annotations; results are JSON.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, get_origin, get_type_hints

from appliance.errors import NotFound, RequestMalformed

Operation = Callable[..., Awaitable[Any]]


class OperationUnknown(NotFound):
    """There is no administrative operation of this name."""

    reason = "operation-unknown"


class Operations:
    """The operations by name; groups of them come from the modules beside this one."""

    def __init__(self, groups: Mapping[str, object]) -> None:
        """`groups` maps a noun to an object whose public methods are its verbs; "" holds verbs without a noun."""
        self._operations: dict[str, Operation] = {}
        for noun, group in groups.items():
            for verb, function in inspect.getmembers(group, inspect.iscoroutinefunction):
                if not verb.startswith("_"):
                    self._operations[f"{noun}.{verb.rstrip('_')}" if noun else verb.rstrip("_")] = function

    @property
    def names(self) -> list[str]:
        """Every operation, sorted."""
        return sorted(self._operations)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Result of one operation; raises OperationUnknown, RequestMalformed, or what the operation refuses."""
        function = self._operations.get(name)
        if function is None:
            raise OperationUnknown("there is no such operation")
        _check(function, arguments)
        return await function(**arguments)


def _check(function: Operation, arguments: Mapping[str, Any]) -> None:
    """Names and plain types of the arguments, before anything happens."""
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters
    for name, value in arguments.items():
        if name not in parameters:
            raise RequestMalformed(f"unknown argument {name[:40]!r}")
        wanted = get_origin(hints[name]) or hints[name]
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            continue
        if type(value) is not wanted:
            raise RequestMalformed(f"argument {name} must be {wanted.__name__}")
        if wanted is list and any(type(one) is not str for one in value):
            raise RequestMalformed(f"argument {name} must be a list of texts")
        if wanted is dict and any(type(one) is not str for one in value.values()):
            raise RequestMalformed(f"argument {name} must be an object of texts")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            raise RequestMalformed(f"argument {name} is missing")
