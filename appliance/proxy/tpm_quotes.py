"""The quote of this machine's TPM for each piece of evidence, where the settings name a TPM.

A TPM that does not answer makes no proxy useless: the evidence goes out without a quote, and the appraisal policy says
what such evidence is worth.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from appliance import tpm
from appliance.binding import tpm_quote
from appliance.binding.request import AgentRequest
from appliance.binding.tpm_quote import TpmQuote
from appliance.errors import TpmUnavailable

log = logging.getLogger(__name__)


class TpmQuotes:
    """Asks the TPM at `tcti`, one request at a time: it has room for few."""

    def __init__(self, tcti: str, pcrs: Sequence[int]) -> None:
        self._tcti = tcti
        self._pcrs = tuple(pcrs)
        self._turn = asyncio.Lock()

    async def about(self, request: AgentRequest) -> TpmQuote | None:
        """The quote that goes with the evidence about this request; None if the TPM makes none now."""
        qualifying = tpm_quote.qualifying_data(request.nonce, request.rqh)
        try:
            async with self._turn:
                made = await asyncio.to_thread(tpm.quote, self._tcti, self._pcrs, qualifying)
        except TpmUnavailable as refusal:
            log.warning("event=no-tpm-quote detail=%r", refusal.detail)
            return None
        return TpmQuote(made.attest, made.signature, made.key, made.pcrs)
