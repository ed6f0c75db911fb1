"""The reference agent: makes its key, asks for a credential through the local Agent API, writes what 802.1X needs.

`request_credential(AgentOptions(socket=..., out=..., owner=...))` is the whole of it.
"""

from __future__ import annotations

from appliance.agent.errors import (
    AgentApiAnswerUnusable,
    AgentApiUnreachable,
    AgentError,
    ApprovalNotGiven,
    CredentialNotOurs,
    IssuanceRefused,
)
from appliance.agent.key_file import load_key, new_key_file
from appliance.agent.requester import (
    AgentOptions,
    AgentRequester,
    AgentResult,
    request_credential,
)

__all__ = [
    "AgentApiAnswerUnusable",
    "AgentApiUnreachable",
    "AgentError",
    "AgentOptions",
    "AgentRequester",
    "AgentResult",
    "ApprovalNotGiven",
    "CredentialNotOurs",
    "IssuanceRefused",
    "load_key",
    "new_key_file",
    "request_credential",
]
