"""The recommender on a real bundle and snapshot: the path from rows to explanations, against the model in NumPy."""

import numpy as np
import pytest

from index.dataset import Dataset
from index.features import from_dataset
from index.store import ArtifactStore
from service.recommend.deadline import Deadline
from service.recommend.errors import InvalidQuery
from service.recommend.types import Filter, HistoryItem, ItemId, Query, Without
from service.runtime.servable import LoadedServable, load_servable
from tests.bundles import Reference, make_snapshot, reference
from tests.fakes import recommender_of

LATER = Deadline.after(3_600.0)
LENGTH = 6
PAST = (3, 14, 15, 9)


class Bench:
    """A servable of the linear model, and the model itself."""

    def __init__(self, store: ArtifactStore, data: Dataset, **options) -> None:
        options = {"dim": 12, "seed": 3, **options}
        version = make_snapshot(store, data, history_length=LENGTH, **options)
        self.servable: LoadedServable = load_servable(store, version)
        self.data = data
        self.model: Reference = reference(self.servable._bundle.manifest.modalities, **options)
        self.encoded = self.model.encode_items(
            from_dataset(data, slice(None), self.servable._bundle.manifest.modalities)
        )
        self.recommender = recommender_of(self.servable)

    def scores(self, rows) -> np.ndarray:
        history = np.zeros((1, LENGTH, self.model.history_dim), dtype=np.float32)
        history[0, : len(rows)] = self.encoded["history"][list(rows)]
        queries = self.model.encode_users(history, np.arange(LENGTH)[None] < len(rows))[0]
        return self.model.score((queries @ self.encoded["candidate"].T)[None])[0]

    async def recommend(self, **query):
        return await self.recommender.recommend(Query(**query), deadline=LATER)


@pytest.fixture(
    scope="module",
    params=[
        {"num_queries": 1},
        {"num_queries": 3, "history_is_candidate": False},
        {"num_queries": 3, "scorer": "logsumexp"},
    ],
    ids=["one query", "three queries, own history table", "three queries, summed"],
)
def bench(request, toy_dataset, tmp_path_factory):
    made = Bench(ArtifactStore(tmp_path_factory.mktemp("store")), Dataset.open(toy_dataset), **request.param)
    yield made
    made.servable.release()
    assert made.servable.closed


def item(row: int) -> ItemId:
    return ItemId(f"i{row:04d}")


def inline(*rows: int) -> tuple[HistoryItem, ...]:
    return tuple(HistoryItem(item(row)) for row in rows)


def best(scores: np.ndarray, *, without=PAST) -> list[str]:
    return [item(row) for row in np.argsort(-scores, kind="stable") if row not in without]


async def test_scores_and_order_are_those_of_the_model(bench):
    slate = await bench.recommend(history=inline(*PAST), k=30)
    scores = bench.scores(PAST)
    assert [line.item_id for line in slate.items] == best(scores)[:30]
    assert [line.score for line in slate.items] == pytest.approx(np.sort(np.delete(scores, PAST))[::-1][:30], abs=1e-5)


@pytest.mark.parametrize("k", [1, 2, 59, 60, 500])
async def test_any_k_is_answered(bench, k):
    slate = await bench.recommend(history=inline(*PAST), k=k)
    assert len(slate.items) == min(k, 60 - len(PAST))


async def test_only_the_last_items_of_a_long_history_are_encoded(bench):
    rows = tuple(range(20, 20 + LENGTH + 3))
    slate = await bench.recommend(history=inline(*rows), k=5)
    assert [line.item_id for line in slate.items] == best(bench.scores(rows[3:]), without=rows)[:5]
    assert slate.events_used == LENGTH


async def test_an_unknown_item_with_a_known_ones_vectors_counts_like_it(bench):
    vectors = {name: np.asarray(bench.data.features(name)[15], np.float32) for name in bench.servable.modalities}
    brought = (*inline(3, 14), HistoryItem(ItemId("new"), modalities=vectors), *inline(9))
    slate = await bench.recommend(history=brought, k=10, include_seen=True, explain="full")
    assert [line.score for line in slate.items] == pytest.approx(np.sort(bench.scores(PAST))[::-1][:10], abs=1e-5)
    assert slate.unknown_item_ids == ("new",)
    known = await bench.recommend(history=inline(*PAST), k=10, include_seen=True, explain="full")
    for new, old in zip(slate.explanation.items, known.explanation.items, strict=True):
        assert [past["interest"] for past in new.history] == pytest.approx(
            [p["interest"] for p in old.history], abs=1e-5
        )


@pytest.mark.parametrize("modality", ["visual", "text", "category"])
async def test_an_item_without_one_modality_is_used_all_the_same(bench, modality):
    vectors = {
        name: np.asarray(bench.data.features(name)[15], np.float32)
        for name in bench.servable.modalities
        if name != modality
    }
    slate = await bench.recommend(history=(HistoryItem(ItemId("new"), modalities=vectors),), k=5, explain="full")
    assert (slate.events_used, slate.degraded) == (1, ())
    assert slate.items[0].explanation.history[0]["by_modality"][modality] == 0


async def test_a_vector_of_the_wrong_width_is_refused_by_name(bench):
    wrong = HistoryItem(ItemId("new"), modalities={"text": np.ones(3, np.float32)})
    with pytest.raises(InvalidQuery) as refused:
        await bench.recommend(history=(wrong,))
    assert refused.value.pointer == "/history/0/modalities/text"


async def test_candidates_are_scored_as_the_model_does(bench):
    candidates = tuple(item(row) for row in (40, 41, 2, 3))
    slate = await bench.recommend(history=inline(*PAST), candidate_item_ids=candidates)
    scores = bench.scores(PAST)
    assert [line.item_id for line in slate.items] == [i for i in best(scores) if i in candidates]


async def test_a_filter_restricts_by_category_and_attribute(bench):
    wanted = Filter(categories_any=("music", "garden"), categories_none=("garden",), attributes={"brand": ("acme",)})
    slate = await bench.recommend(history=inline(*PAST), filter=wanted, k=60)
    passing = {
        item(row)
        for row, metadata in enumerate(bench.servable.metadata(np.arange(60)))
        if metadata["categories"] == ["music"] and metadata["attributes"]["brand"] == "acme"
    }
    assert [line.item_id for line in slate.items] == [i for i in best(bench.scores(PAST)) if i in passing]
    assert slate.items


async def test_a_cold_user_gets_the_most_popular_items(bench):
    slate = await bench.recommend(k=3)
    assert [line.item_id for line in slate.items] == bench.servable.item_ids(bench.servable.popular_rows[:3])


@pytest.mark.parametrize("method", ["interest_gradient", "grad_x_input", "decomposition", "occlusion", "shapley"])
async def test_every_method_explains_the_score_that_was_shown(bench, method):
    slate = await bench.recommend(history=inline(*PAST), k=5, explain="full", method=method)
    explanation = slate.explanation
    assert (slate.degraded, explanation.method) == ((), method)
    assert sum(share.share for share in explanation.modality_interest) == pytest.approx(1)
    for shown in slate.items:
        why = shown.explanation
        assert why.score == pytest.approx(shown.score, abs=1e-5)
        assert sum(why.contributions.values()) + why.residual == pytest.approx(why.score, abs=1e-5)
        assert [past["item_id"] for past in why.history] == [item(row) for row in PAST]
        evidence = {item_id for reason in why.reasons for item_id in reason.evidence_item_ids}
        assert evidence <= {item(row) for row in PAST}
    assert explanation.faithfulness["deletion_auc"] == pytest.approx(0.2)


async def test_occlusion_is_what_really_happens_without_the_item(bench):
    slate = await bench.recommend(history=inline(*PAST), k=3, explain="full", method="occlusion")
    scores = bench.scores(PAST)
    for shown in slate.items:
        row = int(shown.item_id[1:])
        for place, past in enumerate(shown.explanation.history):
            without = bench.scores([one for one in PAST if one != PAST[place]])
            assert past["interest"] == pytest.approx(scores[row] - without[row], abs=1e-5)


async def test_similar_items_are_those_of_the_largest_cosine(bench):
    listing = await bench.recommender.similar(item(3), k=5, modality="text", deadline=LATER)
    states = bench.encoded["states"][:, list(bench.servable.modalities).index("text")]
    norms = np.linalg.norm(states, axis=1)
    cosines = np.where(norms > 0, states @ states[3] / np.maximum(norms * norms[3], 1e-12), -np.inf)
    assert [line.item_id for line in listing.items] == best(cosines, without=[3])[:5]


async def test_what_a_score_loses_in_what_if_is_what_occlusion_says_of_it(bench):
    query = Query(history=inline(*PAST), k=60, explain="full", method="occlusion")
    _, explained = await bench.recommender.explain(query, deadline=LATER)
    lines = {line.item_id: line for line in explained.items}
    past = item(PAST[1])
    found = await bench.recommender.what_if(
        Query(history=inline(*PAST), k=60, without=Without(item_ids=frozenset({past}))), deadline=LATER
    )
    for change in found.changes:
        (interest,) = [one["interest"] for one in lines[change.item_id].history if one["item_id"] == past]
        assert change.score_change == pytest.approx(-interest, abs=1e-5)
    servable, rows = bench.servable, bench.servable.rows([line.item_id for line in explained.items])
    for place, name in enumerate(servable.parts):
        found = await bench.recommender.what_if(
            Query(history=inline(*PAST), k=60, without=Without(modalities=(name,))), deadline=LATER
        )
        history = np.array(PAST)
        attribution = servable.attribute(
            "occlusion",
            states_LMS=servable.states(history),
            presence_LM=servable.presence(history),
            candidate_states_KMS=servable.states(rows),
            candidate_presence_KM=servable.presence(rows),
        )
        lost = dict(zip(lines, attribution.interest_KM[:, place], strict=True))
        for change in found.changes:
            assert change.score_change == pytest.approx(-lost[change.item_id], abs=1e-5)
