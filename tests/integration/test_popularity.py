"""Popularity as a model: what it is, and that it is served like any other."""

import numpy as np
import pyarrow as pa
import pytest

from index.bundle import Bundle
from index.dataset import Dataset
from index.explain import explain
from index.features import from_dataset
from index.item_encoder import ItemEncoder
from index.rebuild import rebuild
from index.store import ArtifactStore
from tests.factor_runs import config_of, publishable, run
from tests.integration.test_service_app import running
from training.baselines import run_baselines
from training.data.interactions import read_interactions
from training.data.split import SplitConfig, make_split
from training.evaluate_bundle import judge_bundle
from training.factors.gate import gate_users
from training.factors.serving import check_servable
from training.publish import publish_bundle


@pytest.fixture(scope="module")
def made(toy_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("popularity")
    config, dataset = config_of("popularity", "model.history_length=4", split="users"), Dataset.open(toy_dataset)
    trained = run(config, toy_dataset, folder / "checkpoints")
    check_servable(trained.served, config)
    store = ArtifactStore(folder / "store")
    version = publish_bundle(store, **publishable(trained, config, dataset))
    rebuild(store, bundle_version=version, dataset=dataset)
    return trained, dataset, store, Bundle.open(store.open_bundle(version)[0])


def test_popularity_is_the_share_of_training_users_and_the_same_for_everybody(made):
    trained, dataset, _, bundle = made
    interactions = read_interactions(dataset)
    split = make_split(interactions, SplitConfig(kind="users"), seed=0)
    kept, _ = gate_users(split, seed=0, seen="mask")
    share = kept.popularity(split.train_users) / len(split.train_users)
    np.testing.assert_allclose(trained.served.tables.items_ID[:, 0], share, rtol=1e-6)
    rows = np.stack([np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32)])
    for mask in (np.ones((2, 4), np.bool_), np.zeros((2, 4), np.bool_)):
        np.testing.assert_array_equal(bundle.encode_users(rows, mask), np.ones((2, 1, 1)))
    (baseline, *_) = run_baselines(split)
    judged = judge_bundle(bundle, dataset, which="test", num_explained=0, on_progress=lambda *_: None)
    assert judged.metrics["recall@20"] == pytest.approx(baseline.test["recall@20"], abs=0.03), "some users are the gate"


def test_nobody_has_a_new_item_and_no_past_item_speaks_for_a_popular_one(made):
    _, dataset, _, bundle = made
    inputs = from_dataset(dataset, slice(0, 5), bundle.manifest.modalities)
    encoder = ItemEncoder(bundle)
    assert not encoder.encode(inputs, np.full(5, -1)).candidates.any()
    items = encoder.encode(inputs, encoder.known_rows(pa.chunked_array([dataset.item_ids[:5]])))
    found = explain(
        bundle,
        method="decomposition",
        states_LMS=items.states[:2],
        presence_LM=items.presence[:2],
        candidate_states_KMS=items.states[2:],
        candidate_presence_KM=items.presence[2:],
    )
    assert not found.history_KL.any()
    np.testing.assert_allclose(found.contributions_KM[:, -1], found.scores_K, rtol=1e-6)
    assert bundle.manifest.cold_items is None


async def test_everybody_gets_what_most_users_have_and_new_items_come_last(made, tmp_path):
    _, dataset, store, _ = made
    vectors = {name: np.asarray(dataset.features(name)[20], np.float32).tolist() for name in dataset.modality_names}
    async with running(store.root, history=f"sqlite:{tmp_path}/events.db") as client:
        put = await client.put("/v1/items/new", json={"modalities": vectors})
        assert put.status_code == 200, put.text
        answers = []
        for past in ("i0003", "i0014"):
            body = {"history": [{"item_id": past}], "k": 100, "include_seen": True, "explain": "full"}
            answer = (await client.post("/v1/recommendations", json=body)).json()
            assert answer["degraded"] == []
            assert {item["source"] for item in answer["items"]} == {"model"}
            answers.append([(item["item_id"], item["score"]) for item in answer["items"]])
    assert answers[0] == answers[1]
    assert answers[0][-1] == ("new", 0.0)
    assert len(answers[0]) == dataset.num_items + 1
