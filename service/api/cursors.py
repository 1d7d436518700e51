"""Cursors of lists: a place as a short text that callers hand back and need not understand."""

import base64
import binascii
import struct

from api_schemas.problem import FieldProblem
from service.api import problems
from service.api.problems import ApiError
from service.recommend.ports import EventPlace

_PLACE = struct.Struct(">QQ")
_LARGEST = 2**63 - 1


def write_cursor(place: EventPlace) -> str:
    """Return the cursor of a place."""
    return base64.urlsafe_b64encode(_PLACE.pack(*place)).decode().rstrip("=")


def read_cursor(text: str) -> EventPlace:
    """Return the place of a cursor.

    Raises:
        ApiError: `validation-error` of `?cursor`: it is not one that `write_cursor` made.
    """
    try:
        place = EventPlace(*_PLACE.unpack(base64.urlsafe_b64decode(text + "==")))
    except (binascii.Error, struct.error, ValueError):
        raise _foreign() from None
    if max(place) > _LARGEST or write_cursor(place) != text:
        raise _foreign()
    return place


def _foreign() -> ApiError:
    detail = "Input should be the next_cursor of an earlier answer, unchanged"
    return ApiError(
        problems.VALIDATION_ERROR,
        f"?cursor: {detail}",
        errors=[FieldProblem(pointer="?cursor", code="cursor", detail=detail)],
    )
