"""What a SCIM request can be refused for; RFC 7644's word for each stands beside its status (web.statuses).

ApplianceError
└── ScimError                   (abstract)
    ├── ScimSyntaxInvalid  ScimFilterInvalid  ScimPathInvalid  ScimTargetMissing  ScimValueInvalid  ScimNotMutable
    └── ScimNotUnique  ScimResourceUnknown  ScimVersionMismatch
"""

from __future__ import annotations

from typing import ClassVar

from appliance.errors import ApplianceError


class ScimError(ApplianceError):
    """Base of refusals of the SCIM server; abstract."""


class ScimSyntaxInvalid(ScimError):
    """The body is not a SCIM message of the kind that is wanted here."""

    reason: ClassVar[str] = "scim-syntax-invalid"


class ScimFilterInvalid(ScimError):
    """The filter cannot be read, or asks for what is not filtered by here."""

    reason: ClassVar[str] = "scim-filter-invalid"


class ScimPathInvalid(ScimError):
    """The path of an operation cannot be read, or names nothing that a resource has."""

    reason: ClassVar[str] = "scim-path-invalid"


class ScimTargetMissing(ScimError):
    """A remove operation says not what to remove."""

    reason: ClassVar[str] = "scim-target-missing"


class ScimValueInvalid(ScimError):
    """A value is missing, of the wrong type, or breaks the rule of its attribute."""

    reason: ClassVar[str] = "scim-value-invalid"


class ScimNotMutable(ScimError):
    """An attribute that only this server sets."""

    reason: ClassVar[str] = "scim-not-mutable"


class ScimNotUnique(ScimError):
    """Another user, group or owner has this name."""

    reason: ClassVar[str] = "scim-not-unique"


class ScimResourceUnknown(ScimError):
    """There is no such user, group, schema or resource type."""

    reason: ClassVar[str] = "scim-resource-unknown"


class ScimVersionMismatch(ScimError):
    """The resource is not of the version that If-Match names."""

    reason: ClassVar[str] = "scim-version-mismatch"
