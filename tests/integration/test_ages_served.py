"""MTIN in the whole service: how old behaviour is reaches the model from stored events and inline histories alike."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch

from api_schemas.manifest import Modality
from index.artefacts import MANIFEST, ArtefactError
from index.bundle import Bundle
from index.dataset import Dataset
from index.explain import METHODS
from index.features import ages_of
from index.rebuild import rebuild
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from tests.integration.test_service_app import running
from training.config import parse_config
from training.data.catalogue import Catalogue
from training.data.interactions import read_timed_interactions
from training.data.split import all_users
from training.evaluate import evaluate_model
from training.evaluate_bundle import judge_bundle
from training.faithfulness import JudgedUsers
from training.models import FeatureSpec
from training.publish import publish_bundle

LENGTH = 6
START = datetime(2025, 1, 1, tzinfo=UTC)
PAST = {"i0003": 0, "i0014": 200, "i0015": 364, "i0009": 365}
"""Item to day."""


class Made:
    """A model with random weights, its bundle and its index."""

    def __init__(self, folder, store: ArtifactStore) -> None:
        self.store, self.data = store, Dataset.open(folder)
        modalities = tuple(Modality(name=one.name, dim=one.dim) for one in self.data.manifest.modalities)
        config = parse_config(f'[model]\nkind = "mtin"\ndim = 12\nhistory_length = {LENGTH}\ninterests = 3\n')
        torch.manual_seed(0)
        self.model = config.model.build(FeatureSpec(modalities)).eval()
        judged = JudgedUsers([np.arange(5)], ["text"], [ages_of(np.arange(5) * 1e6)])
        self.bundle = publish_bundle(
            store, model=self.model, config=config, dataset=self.data, metrics={}, judged=judged
        )
        self.index = rebuild(store, bundle_version=self.bundle, dataset=self.data).version

    def scores(self, past: dict[str, float]) -> dict[str, float]:
        """Return what the model itself scores for items of these days, by item."""
        snapshot = IndexSnapshot.open(*self.store.open_snapshot(self.index))
        history = torch.tensor(snapshot.history(snapshot.rows(list(past))))[None]
        days = torch.tensor([list(past.values())], dtype=torch.float32)
        ages = (days.max() - days) * 86_400
        with torch.no_grad():
            queries = self.model.encode_users(history, torch.ones(ages.shape, dtype=torch.bool), ages)
            rows = np.arange(snapshot.num_items)
            scores = self.model.score(queries, torch.tensor(snapshot.candidates(rows)))[0]
        return dict(zip(snapshot.item_ids(rows), scores.tolist(), strict=True))


@pytest.fixture(scope="module")
def made(toy_dataset, tmp_path_factory) -> Made:
    return Made(toy_dataset, ArtifactStore(tmp_path_factory.mktemp("store")))


def at(day: float) -> str:
    return (START + timedelta(days=day)).isoformat()


def inline(past: dict[str, float]) -> list[dict]:
    return [{"item_id": item_id, "occurred_at": at(day)} for item_id, day in past.items()]


def shown(answer: dict) -> dict[str, float]:
    assert answer["degraded"] == []
    return {item["item_id"]: item["score"] for item in answer["items"]}


def agree(answer: dict, scores: dict[str, float]) -> None:
    expected = sorted((score for item_id, score in scores.items() if item_id not in PAST), reverse=True)
    found = shown(answer)
    assert list(found.values()) == pytest.approx(expected[: len(found)], abs=1e-4)
    assert list(found.values()) == pytest.approx([scores[item_id] for item_id in found], abs=1e-4)


async def test_answers_depend_on_when_things_happened_and_explanations_agree(made, history):
    async with running(made.store.root, history=history) as client:

        async def post(path: str, **body) -> dict:
            answer = await client.post(path, json=body if "events" in body else {"timeout_ms": 10_000, **body})
            assert answer.status_code == 200, answer.text
            return answer.json()

        events = [
            {"event_id": item_id, "user_id": "ann", "item_id": item_id, "type": "click", "occurred_at": at(day)}
            for item_id, day in PAST.items()
        ]
        assert (await post("/v1/events", events=events))["accepted"] == len(PAST)
        scores, of_one_time = made.scores(PAST), made.scores(dict.fromkeys(PAST, 0.0))
        assert max(abs(scores[item_id] - of_one_time[item_id]) for item_id in scores) > 0.01

        stored = await post("/v1/recommendations", user_id="ann", k=20)
        agree(stored, scores)
        agree(await post("/v1/recommendations", history=inline(PAST), k=20), scores)
        bare = [{"item_id": item_id} for item_id in PAST]
        agree(await post("/v1/recommendations", history=bare, k=20), of_one_time)
        half = [{**event, "event_id": f"b{event['event_id']}", "user_id": "ben"} for event in events[:2]]
        assert (await post("/v1/events", events=half))["accepted"] == 2
        agree(await post("/v1/recommendations", user_id="ben", history=inline(PAST)[2:], k=20), scores)

        for method in METHODS:
            explained = await post("/v1/explanations", user_id="ann", k=5, method=method)
            for line in explained["items"]:
                assert line["score"] == pytest.approx(scores[line["item_id"]], abs=1e-4), method
                parts = sum(part["value"] for part in line["contributions"]) + line["residual"]
                assert parts == pytest.approx(line["score"], abs=1e-4), method
        kept = await post("/v1/explanations", recommendation_id=stored["recommendation_id"])
        assert [line["score"] for line in kept["items"]] == pytest.approx(list(shown(stored).values()), abs=1e-4)

        found = await post("/v1/what-if", user_id="ann", k=20, without={"item_ids": ["i0009"]})
        old = {item_id: day for item_id, day in PAST.items() if item_id != "i0009"}
        agree(found["after"], made.scores(old))
        timeline = (await client.get("/v1/users/ann/interests?timeout_ms=10000")).json()
        assert timeline["windows"][-1]["events_used"] == len(PAST)


def test_what_is_measured_of_the_bundle_is_what_the_model_does_with_ages(made):
    bundle = Bundle.open(made.store.open_bundle(made.bundle)[0])
    judged = judge_bundle(bundle, made.data, which="all", num_explained=0, on_progress=lambda *_: None)
    users = all_users(read_timed_interactions(made.data))
    cutoffs = parse_config((bundle.path / "config.toml").read_text()).eval.cutoffs
    expected = evaluate_model(made.model, Catalogue(made.data), users, cutoffs=cutoffs)
    assert judged.metrics == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("says", [True, False])
def test_a_manifest_and_graphs_that_disagree_on_ages_are_refused_by_name(made, tmp_path, says):
    folder = tmp_path / "copy"
    shutil.copytree(made.store.open_bundle(made.bundle)[0], folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["history_ages"]
    manifest["history_ages"] = says
    if says:
        inputs = manifest["graphs"]["explainer"]["inputs"]
        inputs[:] = [one for one in inputs if one["name"] != "ages"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    told = r"explainer.onnx: input ages is only in the graph" if says else "user_encoder.onnx: input ages is none that"
    with pytest.raises(ArtefactError, match=told):
        Bundle.open(folder)
