"""What reading a source of owners can refuse; nothing of what was read is kept then.

ApplianceError
└── DirectoryError              (abstract; `code` in the state of the source is the leaf's reason)
    ├── DirectoryNotConfigured  DirectoryUnreachable  DirectoryUntrusted  DirectoryLoginRefused
    ├── DirectoryAnswerUnusable  DirectoryIncomplete  DirectoryTooLarge  DirectoryReferral  DirectoryFileRefused
    └── DirectoryFrozen  SourceAtFault  DirectoryBusy
"""

from __future__ import annotations

from typing import ClassVar

from appliance.errors import ApplianceError


class DirectoryError(ApplianceError):
    """Base of refusals about sources of owners; abstract."""


class DirectoryNotConfigured(DirectoryError):
    """No source is set, or a setting or package that it needs is missing."""

    reason: ClassVar[str] = "directory-not-configured"


class DirectoryUnreachable(DirectoryError):
    """The directory does not answer, broke off, or was too slow; the owners stay as they are."""

    reason: ClassVar[str] = "directory-unreachable"


class DirectoryUntrusted(DirectoryError):
    """TLS with the directory failed: another CA, another name, or no TLS at all; nothing was sent to it."""

    reason: ClassVar[str] = "directory-untrusted"


class DirectoryLoginRefused(DirectoryError):
    """The directory refused the account that the settings name, or what it asked for."""

    reason: ClassVar[str] = "directory-login-refused"


class DirectoryAnswerUnusable(DirectoryError):
    """The directory answered what cannot be read, or with an error; the owners stay as they are."""

    reason: ClassVar[str] = "directory-answer-unusable"


class DirectoryIncomplete(DirectoryError):
    """The directory gave a part of its entries only (a size or time limit of its own); a part is never taken in."""

    reason: ClassVar[str] = "directory-incomplete"


class DirectoryTooLarge(DirectoryError):
    """The source holds more entries or octets than the settings allow."""

    reason: ClassVar[str] = "directory-too-large"


class DirectoryReferral(DirectoryError):
    """The directory sends us to another server; referrals are never followed."""

    reason: ClassVar[str] = "directory-referral"


class DirectoryFileRefused(DirectoryError):
    """The watched file cannot be read, was being written, or ends within a line."""

    reason: ClassVar[str] = "directory-file-refused"


class DirectoryFrozen(DirectoryError):
    """The source would change more than a tenth of its owners, or double them; nothing was changed."""

    reason: ClassVar[str] = "directory-frozen"


class SourceAtFault(DirectoryError):
    """The last reading of a source failed, or is too old; what an administrator sees of it in health and doctor."""

    reason: ClassVar[str] = "directory-at-fault"


class DirectoryBusy(DirectoryError):
    """The source is being read already."""

    reason: ClassVar[str] = "directory-busy"
