"""The quote of this machine's TPM for each piece of evidence, where the settings name a TPM.

A TPM that does not answer, or not in time, makes no proxy useless: the evidence goes out without a quote, and the
appraisal policy says what such evidence is worth.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from appliance import tpm
from appliance.binding import tpm_quote
from appliance.binding.request import AgentRequest
from appliance.binding.tpm_quote import TpmQuote
from appliance.errors import TpmUnavailable

log = logging.getLogger(__name__)
SECONDS = 10.0
"""Longest wait for a quote, those before it in the queue included."""


class TpmQuotes:
    """Asks the TPM at `tcti` in a thread of its own, one request at a time: it has room for few."""

    def __init__(self, tcti: str, pcrs: Sequence[int]) -> None:
        self._tcti = tcti
        self._pcrs = tuple(pcrs)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tpm")

    async def about(self, request: AgentRequest) -> TpmQuote | None:
        """The quote that goes with the evidence about this request; None if the TPM makes none now."""
        qualifying = tpm_quote.qualifying_data(request.nonce, request.rqh)
        try:
            async with asyncio.timeout(SECONDS):
                asked = partial(tpm.quote, self._tcti, self._pcrs, qualifying)
                made = await asyncio.get_running_loop().run_in_executor(self._pool, asked)
        except TpmUnavailable as refusal:
            log.warning("event=no-tpm-quote detail=%r", refusal.detail)
            return None
        except TimeoutError:
            log.warning("event=no-tpm-quote detail='no answer in %.0f s'", SECONDS)
            return None
        return TpmQuote(made.attest, made.signature, made.key, made.pcrs)
