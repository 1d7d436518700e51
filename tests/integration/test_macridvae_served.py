"""MacridVAE from training to the service's answers: known items, new ones, no history, every explanation."""

import numpy as np
import pytest
import torch

from index.bundle import Bundle
from index.dataset import Dataset
from index.explain import METHODS
from index.rebuild import rebuild
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from service.recommend.deadline import Deadline
from service.recommend.types import HistoryItem, ItemId, Query, user_subject
from service.runtime.servable import load_servable
from tests.factor_runs import config_of, publishable, run
from tests.fakes import recommender_of
from training.evaluate_bundle import judge_bundle
from training.factors.serving import check_servable
from training.models import score_catalogue
from training.publish import publish_bundle

LATER = Deadline.after(3_600.0)
LENGTH, CONCEPTS = 6, 3
PAST = (3, 14, 15, 9)


class Served:
    """A trained model, its bundle, and a service on it."""

    def __init__(self, folder, store: ArtifactStore) -> None:
        self.data = Dataset.open(folder)
        config = config_of("macridvae", f"model.history_length={LENGTH}", f"model.concepts={CONCEPTS}")
        self.trained = run(config, folder, store.root / "checkpoints")
        check_servable(self.trained.served, config)
        version = publish_bundle(store, **publishable(self.trained, config, self.data))
        self.bundle = Bundle.open(store.open_bundle(version)[0])
        snapshot = rebuild(store, bundle_version=version, dataset=self.data).version
        self.snapshot = IndexSnapshot.open(*store.open_snapshot(snapshot))
        self.servable = load_servable(store, snapshot)
        self.recommender = recommender_of(self.servable)

    def scores(self, past) -> np.ndarray:
        served = self.trained.served
        queries = served.fold_in.queries(served.tables, [np.array(past, np.int64)])
        with torch.no_grad():
            return score_catalogue(queries, served.tables.items_ID, scorer="logsumexp")[0].numpy()

    async def recommend(self, past=PAST, **query):
        history = tuple(HistoryItem(ItemId(f"i{row:04d}")) for row in past)
        return await self.recommender.recommend(Query(history=history, **query), deadline=LATER)


@pytest.fixture(scope="module")
def served(toy_dataset, tmp_path_factory):
    made = Served(toy_dataset, ArtifactStore(tmp_path_factory.mktemp("store")))
    yield made
    made.servable.release()


def test_the_bundle_says_what_it_is_and_holds_no_user(served):
    manifest = served.bundle.manifest
    assert (manifest.family, manifest.scorer, manifest.num_queries) == ("macridvae", "logsumexp", CONCEPTS)
    assert not manifest.history_is_candidate
    assert manifest.known_users is None
    assert manifest.fold_in.kind == "exact"
    assert manifest.fold_in.recall == manifest.fold_in.recall_of_known
    assert manifest.warm.parts == ["id"]
    assert manifest.explanation_methods[0] == "shapley"


def test_what_was_measured_is_what_is_served(served):
    tables = served.trained.served.tables
    rows = np.arange(served.data.num_items)
    np.testing.assert_allclose(served.snapshot.candidates(rows), tables.items_ID, atol=2e-5)
    np.testing.assert_allclose(served.snapshot.history(rows), tables.rows_IH, atol=2e-5)
    judged = judge_bundle(served.bundle, served.data, which="test", num_explained=0, on_progress=lambda *_: None)
    assert judged.metrics == pytest.approx(served.trained.metrics["test"], abs=1e-6)
    assert judged.metrics_of_known is None


@pytest.mark.parametrize("past", [PAST[:1], PAST, (*PAST, 20, 21), (*PAST, 20, 21, 22, 23)])
async def test_the_service_answers_what_the_model_scores(served, past):
    slate = await served.recommend(past, k=10, include_seen=True)
    scores = served.scores(past)
    assert [line.score for line in slate.items] == pytest.approx(np.sort(scores)[::-1][:10].tolist(), abs=2e-5)
    assert [scores[int(line.item_id[1:])] for line in slate.items] == pytest.approx(
        [line.score for line in slate.items], abs=2e-5
    )


async def test_a_user_of_the_training_data_without_a_history_gets_what_is_popular(served):
    slate = await served.recommender.recommend(Query(subject=user_subject("u0007"), k=3), deadline=LATER)
    assert {line.source for line in slate.items} == {"popular"}


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_explains_the_score_that_was_shown(served, method):
    slate = await served.recommend(k=5, explain="full", method=method)
    assert (slate.degraded, slate.explanation.method) == ((), method)
    for shown in slate.items:
        why = shown.explanation
        assert why.score == pytest.approx(shown.score, abs=2e-5)
        assert sum(why.contributions.values()) + why.residual == pytest.approx(why.score, abs=2e-5)
        assert not any(value for part, value in why.contributions.items() if part != "id"), "content only predicts"
        if method == "decomposition":
            assert not why.additive
            assert -1e-5 <= why.residual <= np.log(CONCEPTS) + 1e-5
        if method == "shapley":
            assert why.additive
        if method == "occlusion":
            for place, past in enumerate(why.history):
                fewer = served.scores([row for row in PAST if row != PAST[place]])
                assert past["interest"] == pytest.approx(shown.score - fewer[int(shown.item_id[1:])], abs=5e-5)
