"""Bodies that are a list: an entry that is wrong does not take its neighbours with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from api_schemas.problem import FieldProblem
from service.api import problems

WholeT = TypeVar("WholeT", bound=BaseModel)
EntryT = TypeVar("EntryT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class ReadList(Generic[WholeT, EntryT]):
    """A request's entries that can be read, and what is wrong with the others; by their place in the request."""

    whole: WholeT
    """The body; the list in it is not to be looked at."""
    entries: Sequence[tuple[int, EntryT]]
    problems: Sequence[tuple[int, Sequence[FieldProblem]]] = ()


def read_list(body: bytes, whole: type[WholeT], entry: type[EntryT], *, field: str) -> ReadList[WholeT, EntryT]:
    """Read a body of the model `whole`, whose `field` is a list of the model `entry`.

    Raises:
        ApiError: The body is not JSON, or wrong as a whole: no list, too many entries, an unknown field beside it.
    """
    try:
        read = whole.model_validate_json(body)
        return ReadList(read, list(enumerate(getattr(read, field))))
    except ValidationError as error:
        malformed = problems.malformed(error)
        if malformed is not None:
            raise malformed from None
        content = from_json(body)
        if any(_is_of_whole(problem["loc"], field) for problem in error.errors(include_url=False, include_input=False)):
            raise problems.invalid(error, content) from None
    good: list[tuple[int, EntryT]] = []
    bad: list[tuple[int, Sequence[FieldProblem]]] = []
    for index, value in enumerate(content[field]):
        try:
            # "constants" keeps NaN what it is; the default would make it null, which some fields take
            good.append((index, entry.model_validate_json(to_json(value, inf_nan_mode="constants"))))
        except ValidationError as error:
            bad.append((index, below(f"/{field}/{index}", problems.field_problems(error, value))))
    return ReadList(whole.model_construct(**{**content, field: []}), good, bad)


def below(prefix: str, found: Sequence[FieldProblem]) -> list[FieldProblem]:
    """Return problems of an entry as those of the body that it stands in."""
    return [problem.model_copy(update={"pointer": prefix + problem.pointer}) for problem in found]


def _is_of_whole(location: Sequence[int | str], field: str) -> bool:
    return len(location) < 2 or location[0] != field
