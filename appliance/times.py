"""Times as administrators write them: a date, a moment in ISO 8601, or a span as in 30d, 12h, 15m."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from appliance.errors import RequestMalformed

_SPAN = re.compile(r"([0-9]{1,6})([dhm])")
_UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}


def moment(text: str, now: datetime, *, back: bool = False) -> datetime:
    """The moment that a text means; a span counts from `now`, backwards if `back`. Raises RequestMalformed.

    A moment without an offset is UTC.
    """
    span = _SPAN.fullmatch(text)
    try:
        if span:
            length = int(span[1]) * _UNITS[span[2]]
            return now - length if back else now + length
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise RequestMalformed("a time is a date, a moment in ISO 8601, or a span as in 30d, 12h, 15m") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)
