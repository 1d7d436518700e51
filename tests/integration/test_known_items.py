"""Content models that also know items as such, from training to answers: known ones bring it, new ones do without."""

from dataclasses import dataclass

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch

from index.bundle import Bundle
from index.dataset import Dataset
from index.features import from_dataset
from index.item_encoder import ItemEncoder
from index.known import open_warm_items
from index.rebuild import rebuild
from index.store import ArtifactStore
from tests.integration.test_service_app import running
from training.config import parse_config
from training.data.catalogue import Catalogue
from training.evaluate_bundle import judge_bundle, judged_users
from training.exposure import measure_exposure
from training.factors.gate import ServingError
from training.progress import Unwatched
from training.publish import publish_bundle
from training.runs import Run, run_training

RUN = """
name = "known"
[model]
kind = "demure"
dim = 16
history_length = 10
[model.augment]
warmup_epochs = 1
[optim]
batch_size = 64
epochs = 4
[export]
faithfulness_users = 2
"""
KNOWN = {"id": ["model.ids=true"], "transitions": ["beside.dim=10", "beside.ridge=20", "model.positions=true"]}
"""Settings by the part that they add: the second has states wider than the network's."""
PAST = {"history": [{"item_id": "i0003"}, {"item_id": "i0014"}]}


@dataclass(frozen=True)
class Served:
    part: str
    run: Run
    dataset: Dataset
    store: ArtifactStore
    bundle: Bundle


@pytest.fixture(scope="module", params=KNOWN)
def served(request, toy_dataset, tmp_path_factory) -> Served:
    config, dataset = parse_config(RUN, KNOWN[request.param]), Dataset.open(toy_dataset)
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    made = run_training(
        config,
        dataset,
        checkpoints=store.root / "checkpoints",
        observer=Unwatched(),
        device=torch.device("cpu"),
        resume=False,
        should_stop=lambda: False,
    )
    judged = judged_users(dataset, made.interactions, made.unseen, config)
    version = publish_bundle(
        store,
        model=made.model,
        config=config,
        dataset=dataset,
        metrics=made.metrics,
        judged=judged,
        extras=made.extras,
    )
    rebuild(store, bundle_version=version, dataset=dataset)
    return Served(request.param, made, dataset, store, Bundle.open(store.open_bundle(version)[0]))


def known_of(served) -> tuple[torch.Tensor, torch.Tensor]:
    model = served.run.model
    return (model.ids if served.part == "id" else model).table()


def test_the_bundle_brings_a_table_of_what_was_learned_of_each_item(served):
    manifest = served.bundle.manifest
    assert manifest.part_names == ("visual", "text", "category", served.part)
    assert (manifest.warm.parts, manifest.warm.num_items) == ([served.part], served.dataset.num_items)
    table = open_warm_items(served.bundle.path, manifest)
    rows = table.rows(pa.chunked_array([pa.array(served.dataset.item_ids, pa.string())]))
    np.testing.assert_array_equal(table.vectors[rows][:, 0], known_of(served)[1].numpy())
    assert table.rows(pa.chunked_array([["new"]])).tolist() == [-1]


def test_no_graph_holds_anything_of_a_single_item(served):
    for graph in served.bundle.manifest.graphs.values():
        weights = onnx.load(served.bundle.path / graph.file).graph.initializer
        assert weights
        assert all(served.dataset.num_items not in weight.dims for weight in weights), graph.file


def test_what_was_measured_in_training_is_what_the_bundle_gives(served):
    judged = judge_bundle(served.bundle, served.dataset, which="test", num_explained=0, on_progress=lambda *_: None)
    assert judged.metrics == pytest.approx(served.run.metrics["test"], abs=1e-6)
    assert judged.metrics_of_known is None


def test_a_new_item_is_what_its_content_says_of_an_unknown_one(served):
    inputs = from_dataset(served.dataset, slice(0, 5), served.bundle.manifest.modalities)
    encoder = ItemEncoder(served.bundle)
    new, known = (encoder.encode(inputs, np.array(rows)) for rows in ([-1] * 5, range(5)))
    unknown_S = np.zeros(new.states.shape[-1])
    if served.part == "id":
        unknown_S = served.run.model.ids.unknown_S.detach().numpy()
        assert unknown_S.any()
    np.testing.assert_allclose(new.states[:, -1], np.broadcast_to(unknown_S, new.states[:, -1].shape), atol=1e-6)
    assert np.abs(new.candidates - known.candidates).max() > 1e-2
    expected = served.run.model.encode_items(
        [torch.from_numpy(vectors) for vectors in inputs.features], torch.from_numpy(inputs.presence)
    )
    np.testing.assert_allclose(new.candidates, expected.detach(), atol=1e-4)


def test_how_exposed_new_items_are_is_told_and_gated(served, monkeypatch):
    cold = served.bundle.manifest.cold_items
    assert (cold.imputation, cold.num_items) == ("unknown", 6)
    assert 0.3 <= cold.exposure_ratio <= 3
    given = (served.run.model, known_of(served)[0], Catalogue(served.dataset), served.run.unseen)
    assert 0 < measure_exposure(*given, seed=0).exposure_ratio <= 60 / 50, "lists of 50 hold all of them at most"
    monkeypatch.setattr("training.exposure.MIN_EXPOSURE", 1.5)
    with pytest.raises(ServingError, match=r"model\.id_dropout"):
        measure_exposure(*given, seed=0)


async def test_answers_name_the_id_beside_the_modalities_and_new_items_are_among_them(served, tmp_path):
    async with running(served.store.root, history=f"sqlite:{tmp_path}/events.db") as client:
        said = (await client.get("/v1/models/demure/modalities")).json()
        assert (said["parts"], said["num_known_items"]) == (["visual", "text", "category", served.part], 60)
        vectors = {
            name: np.asarray(served.dataset.features(name)[20], np.float32).tolist()
            for name in served.dataset.modality_names
        }
        put = await client.put("/v1/items/new", json={"modalities": vectors, "title": "New"})
        assert put.status_code == 200, put.text
        bare = await client.put("/v1/items/bare", json={"modalities": {"text": vectors["text"]}})
        assert bare.status_code == 200, bare.text
        past = {"history": [*PAST["history"], {"item_id": "new"}, {"item_id": "elsewhere", "modalities": vectors}]}
        for body in (PAST, past):
            answer = await client.post("/v1/recommendations", json={**body, "k": 100, "explain": "full"})
            found = answer.json()
            assert (answer.status_code, found["degraded"]) == (200, []), answer.text
            assert found["events_used"] == len(body["history"])
            shown = {item["item_id"]: item for item in found["items"]}
            past_ids = {one["item_id"] for one in body["history"]}
            assert {"bare", "new"} - past_ids <= set(shown)
            for item in shown.values():
                why = item["explanation"]
                parts = {part["modality"]: part["value"] for part in why["contributions"]}
                assert list(parts) == ["visual", "text", "category", served.part]
                assert sum(parts.values()) + why["residual"] == pytest.approx(item["score"], abs=1e-4)
                assert (parts[served.part] != 0) == (served.part == "id" or item["item_id"] not in ("bare", "new"))
