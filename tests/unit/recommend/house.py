"""A recommender over fakes, with all its neighbours in reach."""

import numpy as np

from service.recommend.admission import Admission
from service.recommend.deadline import Deadline
from service.recommend.recommender import Recommender
from service.recommend.types import Event, HistoryItem, ItemId, Query, user_subject
from tests.fakes import FakeRanker, FakeServable, FakeSource, FakeStore, InlineCompute

USER = user_subject("ann")


class House:
    """A recommender with all its neighbours in reach."""

    def __init__(self, *, ranker: FakeRanker | None = None, **kwargs) -> None:
        self.servable = FakeServable(**kwargs)
        self.servable.ranker = ranker
        self.store = FakeStore()
        self.compute = InlineCompute()
        self.admission = Admission(8)
        self.recommender = Recommender(
            servables=FakeSource(self.servable),
            history=self.store,
            compute=self.compute,
            admission=self.admission,
            store_timeout_s=0.05,
        )

    async def saw(self, *item_ids: str, subject=USER) -> None:
        start = sum(map(len, self.store.events.values()))
        events = [
            Event(f"{subject}-{start + place}", subject, ItemId(item_id), "click", float(start + place))
            for place, item_id in enumerate(item_ids)
        ]
        await self.store.append(events)

    async def recommend(self, *, timeout_s: float = 5.0, **query):
        return await self.recommender.recommend(Query(**query), deadline=Deadline.after(timeout_s))

    async def explain(self, *, item_ids=None, timeout_s: float = 5.0, **query):
        deadline = Deadline.after(timeout_s)
        return await self.recommender.explain(Query(**query), item_ids=item_ids, deadline=deadline)


def inline(*item_ids: str) -> tuple[HistoryItem, ...]:
    return tuple(HistoryItem(ItemId(item_id)) for item_id in item_ids)


def ids(slate) -> list[str]:
    return [item.item_id for item in slate.items]


def right_answer(servable: FakeServable, past: list[int], *, without: set[int]) -> list[str]:
    vectors = servable.history(np.arange(servable.num_items))
    scores = vectors @ vectors[past].mean(axis=0)
    return [f"i{row}" for row in np.argsort(-scores, kind="stable") if row not in without]
