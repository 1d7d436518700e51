"""Every error that the core raises on purpose.

* RecommendError
  * NotFound
    * ItemNotFound
    * ModelNotFound
    * ScenarioNotFound
    * RecommendationNotFound
  * Conflict               what is kept does not allow the change
    * BlocksFull           as many items are blocked as are kept
    * ChangesFull          as many items have changed as are kept between two rebuilds
  * InvalidQuery           what the caller asked can not be answered; names the field
  * Overloaded             too many requests in flight; try again after `retry_after_s`
  * NoServable             no model is loaded (yet)
  * StoreUnavailable       the history or event store does not answer
  * DeadlineExceeded       the caller's time is up

No HTTP here: `service.api.problems` says what each looks like on the wire.
"""


class RecommendError(Exception):
    """Base of all errors of the core."""


class NotFound(RecommendError):
    """Something that the caller named does not exist."""


class ItemNotFound(NotFound):
    """The catalogue has no such item."""

    def __init__(self, item_id: str) -> None:
        super().__init__(f"no item {item_id!r} in the catalogue")
        self.item_id = item_id


class ModelNotFound(NotFound):
    """No loaded version has this model."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no model {name!r} answers here")
        self.name = name


class ScenarioNotFound(NotFound):
    """No alias has the name of the scenario."""

    def __init__(self, scenario: str) -> None:
        super().__init__(f"no scenario {scenario!r} is set up here")
        self.scenario = scenario


class RecommendationNotFound(NotFound):
    """Nothing is kept under this id: it is unknown, too old, or was not to be kept."""

    def __init__(self, recommendation_id: str) -> None:
        super().__init__(f"no recommendation {recommendation_id!r} is kept (any more)")
        self.recommendation_id = recommendation_id


class Conflict(RecommendError):
    """What is kept does not allow a change; nothing was changed."""


class BlocksFull(Conflict):
    """A user or session has as many blocks as are kept, and a block is never dropped to make room."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} items at most can be blocked; take a block back first")
        self.limit = limit


class ChangesFull(Conflict):
    """As many items have changed since the index was built as are kept."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} changed items at most are kept; rebuild the index with them, then trim them")
        self.limit = limit


class InvalidQuery(RecommendError):
    """A query that is well formed but can not be answered against what is loaded now."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(f"{pointer}: {detail}")
        self.pointer = pointer
        """JSON pointer of the field, such as `/history/0/modalities/visual`."""
        self.detail = detail


class Overloaded(RecommendError):
    """The bound on requests in flight is reached."""

    retry_after_s = 1


class NoServable(RecommendError):
    """No version is loaded."""

    retry_after_s = 5


class StoreUnavailable(RecommendError):
    """The store does not answer, or answers with an error of its own (out of memory, disk full)."""

    retry_after_s = 5


class DeadlineExceeded(RecommendError):
    """The deadline of the request passed before its answer was ready."""
