"""Errors on the wire: `application/problem+json` of RFC 9457, one shape for all of them."""

from pydantic import Field

from api_schemas.base import Response

TYPE_PREFIX = "urn:prismrec:problem:"
"""`type` is this and a slug of the closed list in docs/errors.md."""


class FieldProblem(Response):
    """What is wrong with one part of the request."""

    pointer: str = Field(
        description="JSON pointer (RFC 6901) into the body; `?name` is in the query, `{name}` in the path."
    )
    code: str = Field(description="Short and stable: `string_too_short`, `less_than_equal`, `extra_forbidden` ...")
    detail: str = Field(description="A sentence for people.")


class Problem(Response):
    """Why a request was not answered."""

    type: str = Field(description=f"`{TYPE_PREFIX}` and a slug such as `validation-error`.")
    title: str = Field(description="The type in words; the same for every problem of the type.")
    status: int = Field(description="The HTTP status code.")
    detail: str = Field(description="This very problem in words.")
    instance: str = Field(description="The path that was asked for.")
    request_id: str = Field(description="Quote this when you ask for help: the log has it too.")
    errors: list[FieldProblem] = Field(default_factory=list, description="By field, when fields are to blame.")
