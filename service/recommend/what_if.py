"""What if something of a history were not there: what is left of it, and what that moves. Plain functions, any thread.

A past item or a part is taken away as `occlusion` takes it: the part is absent from every past item and these are made
anew from what is left, or the item's place is empty; then the model is asked again.

Legend: `L` history, `M` parts of an item, `H` history row.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from service.recommend.explain import history_states
from service.recommend.job import Remains, UsedHistory
from service.recommend.servable import Model
from service.recommend.types import ItemId, ScoredItem, Slate, Without

ChangeKind = Literal["entered", "left", "up", "down", "same"]

COUNTERFACTUAL = (
    "Counterfactual for the model: it was asked again with a part of its input taken away. What the person would have"
    " done is another question."
)
SWITCHED_OFF_ARE_SEEN = "Past items that are switched off stay hidden in both slates unless include_seen is true."
NO_HISTORY = "There is no history that anything could be switched off in."
NOTHING_LEFT = "Nothing usable is left of the history: the second slate is that of a user without one."


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one item of either slate."""

    item_id: ItemId
    kind: ChangeKind
    before: ScoredItem | None
    after: ScoredItem | None

    @property
    def rank_change(self) -> int | None:
        """By how many ranks it rose; None where it is in one slate alone."""
        return None if self.before is None or self.after is None else self.before.rank - self.after.rank

    @property
    def score_change(self) -> float | None:
        """By how much its score rose; None where it is in one slate alone, or not scored by one thing in both."""
        if self.before is None or self.after is None or self.before.source != self.after.source:
            return None
        return self.after.score - self.before.score


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Both slates of one version, and what moved between them."""

    before: Slate
    after: Slate
    changes: tuple[Change, ...]
    """Of every item of either slate: those of the second in its order, then those that left it."""
    caveats: tuple[str, ...]


def left_of(model: Model, history: UsedHistory, without: Without) -> UsedHistory:
    """Return a history with some of it switched off; an empty one where nothing usable is left."""
    if not history.rows:
        return history
    states_LMS, presence_LM = history_states(model, history)
    allowed_M = np.array([part not in without.modalities for part in model.parts])
    mask_L = np.array([item_id not in without.item_ids for item_id in history.item_ids])
    mask_L &= (presence_LM & allowed_M).any(axis=1)
    if not mask_L.any():
        return UsedHistory()
    return replace(history, remains=Remains(model.history_with(states_LMS, presence_LM, allowed_M=allowed_M), mask_L))


def compare(before: Slate, after: Slate) -> WhatIf:
    """Return both slates with what moved between them."""
    first = {item.item_id: item for item in before.items}
    second = {item.item_id: item for item in after.items}
    caveats = [COUNTERFACTUAL]
    if before.events_used == 0:
        caveats.append(NO_HISTORY)
    elif after.events_used == 0:
        caveats.append(NOTHING_LEFT)
    caveats.append(SWITCHED_OFF_ARE_SEEN)
    return WhatIf(
        before,
        after,
        tuple(
            Change(item_id, _kind(first.get(item_id), second.get(item_id)), first.get(item_id), second.get(item_id))
            for item_id in dict.fromkeys((*second, *first))
        ),
        tuple(caveats),
    )


def _kind(before: ScoredItem | None, after: ScoredItem | None) -> ChangeKind:
    if before is None:
        return "entered"
    if after is None:
        return "left"
    if before.rank == after.rank:
        return "same"
    return "up" if after.rank < before.rank else "down"
