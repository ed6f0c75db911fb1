"""The identity proxy: bootstraps itself into the campus, then vouches for the agents that run beside it.

run -> bootstrap (material, discover, rounds, voucher_phase, enrol) -> connection, http1; then agent_api (caller,
callers, evidence) over link, and renew. state is its memory, report its story, errors its refusals.
"""

from __future__ import annotations
