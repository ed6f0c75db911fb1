"""What the reference agent refuses or gives up on, as classes.

ApplianceError
└── AgentError                     (abstract)
    ├── AgentApiUnreachable        nobody answers at the socket, or not in time
    ├── AgentApiAnswerUnusable     an answer that is not what was agreed
    ├── IssuanceRefused            the proxy or the identity server said no
    ├── ApprovalNotGiven           the command failed, or nothing came in time
    ├── CredentialNotOurs          another key or name, or a chain that does not hold
    ├── AttemptUnfinished          an earlier attempt that had nothing to hand in yet
    ├── CredentialFolderUnusable   not a folder that a credential can be kept in
    └── CredentialEnded            it ended before it could be renewed, and nobody is there to approve a new one
"""

from __future__ import annotations

from typing import ClassVar

from appliance.errors import ApplianceError


class AgentError(ApplianceError):
    """Base of the reference agent's refusals; abstract."""


class AgentApiUnreachable(AgentError):
    """Nobody answers at the Agent API's socket, or not in time."""

    reason: ClassVar[str] = "agent-api-unreachable"


class AgentApiAnswerUnusable(AgentError):
    """The Agent API's answer is not what was agreed."""

    reason: ClassVar[str] = "agent-api-answer-unusable"


class IssuanceRefused(AgentError):
    """Proxy or identity server said no; fields `status`, `problem` (the reason it gave)."""

    reason: ClassVar[str] = "issuance-refused"


class ApprovalNotGiven(AgentError):
    """The approval command failed, or no approval came in time."""

    reason: ClassVar[str] = "approval-not-given"


class CredentialNotOurs(AgentError):
    """The certificate or WIT is not for the key and name that were asked for, or its chain does not hold."""

    reason: ClassVar[str] = "credential-not-ours"


class AttemptUnfinished(AgentError):
    """An earlier attempt ended before it had anything to hand in; a new one is made."""

    reason: ClassVar[str] = "attempt-unfinished"


class CredentialFolderUnusable(AgentError):
    """The folder holds something else than a credential that can be kept fresh."""

    reason: ClassVar[str] = "credential-folder-unusable"


class CredentialEnded(AgentError):
    """The credential ended before it could be renewed: the owner must approve a first request again."""

    reason: ClassVar[str] = "credential-ended"
