"""Field types and bounds that several bodies share. Every text, list and number has a bound."""

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError

from api_schemas.base import Request

MAX_HISTORY = 500
MAX_K = 500
MAX_EXCLUDED = 1_000
MAX_CANDIDATES = 10_000
MAX_EXPLAINED = 100
MAX_REQUESTS = 100
MAX_EVENTS = 500
MAX_MODALITIES = 32
MAX_VECTOR = 65_536
MAX_FILTER_VALUES = 100
MAX_TIMEOUT_MS = 60_000

_RFC_3339 = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])[Tt]"
    r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)


class Body(Request):
    """A request body: what it holds is taken as it is, never converted (`"20"` is no number, `1` is no `true`)."""

    model_config = ConfigDict(strict=True)


def parse_instant(value: object) -> datetime:
    """Return the moment that an RFC 3339 text with an offset names.

    Raises:
        PydanticCustomError: It is no such text, or lies outside the years 1970 to 2199.
    """
    if not isinstance(value, str) or len(value) > 40 or not _RFC_3339.fullmatch(value):
        raise PydanticCustomError(
            "instant", "Input should be a date and time with offset (RFC 3339), such as 2026-03-14T09:26:53+01:00"
        )
    try:
        moment = datetime.fromisoformat(value.upper())
        in_range = EARLIEST <= moment < LATEST
    except (ValueError, OverflowError):
        raise PydanticCustomError("instant", "Input should be a day that exists") from None
    if not in_range:
        raise PydanticCustomError("instant_range", "Input should lie in the years 1970 to 2199")
    return moment


_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
"""No control characters and no line separators: an id must survive a log line, a header and a text protocol."""

ExternalId = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_PRINTABLE)]
"""An id as the caller knows it: 1 to 256 characters without control characters, compared exactly."""

EventType = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$")]
"""What happened: `click`, `play`, `purchase`; letters, digits and `_ . : -`."""

Instant = Annotated[AwareDatetime, BeforeValidator(parse_instant)]
"""RFC 3339 with an offset."""

Label = Annotated[str, StringConstraints(min_length=1, max_length=256)]
"""A category or a text value of an attribute."""
