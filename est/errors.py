"""What est refuses, as classes.

Refusal                 (every refusal of the project: a stable reason, a public detail, structured fields)
└── EstError            (abstract; never raised bare)
    ├── ...
"""

from __future__ import annotations

from typing import ClassVar


class Refusal(Exception):
    """Base of every refusal in the project; abstract.

    `reason` is a stable kebab-case slug, `detail` one public line for the human, `fields` structured public facts.
    A private cause is chained with `from`.
    """

    reason: ClassVar[str] = ""

    def __init__(self, detail: str = "", /, **fields: object) -> None:
        if not type(self).__dict__.get("reason"):
            raise TypeError(f"{type(self).__name__} is abstract: raise one of its leaves")
        super().__init__(detail or self.reason)
        self.detail = detail or self.reason.replace("-", " ")
        self.fields = fields


class EstError(Refusal):
    """Base of est's refusals; abstract."""
