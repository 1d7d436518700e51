"""Id-based models by the commands themselves: trained, rebuilt over a catalogue that has grown since, and served."""

from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from api_schemas.manifest import BundleManifest
from index.bundle import Bundle
from index.cli import app as index_app
from index.dataset import Dataset
from index.dataset_write import DatasetWriter
from index.known import open_known_users
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from tests.conftest import told
from tests.factor_runs import config_of
from tests.processes import Service
from tests.toy import MODALITIES
from training.cli import app as train_app
from training.config import to_toml

NEW = {"new-twin": tuple(MODALITIES), "new-text": ("text",), "new-bare": ()}
"""Items that come after training, with the modalities that they have: those of the first item of the toy."""

ADDED = {"vbpr": ["id", "bias"], "invrl": ["id", "bias"], "slmrec": ["id", "bias"]}
"""VBPR's bias is learned of each item, those of the others are their projections' and the same for all."""

OPTIONS = {"slmrec": ["serving.fold_in=exact"]}
"""A user is then read from rows of the history that are not the items' vectors."""


def grown(old: Dataset, path: Path) -> Path:
    """Write the same data with the new items at its end."""
    table = pq.read_table(old.path / "items.parquet")
    twins = pa.concat_tables([table.slice(0, 1)] * len(NEW))
    twins = twins.set_column(0, table.schema.field(0), pa.array(list(NEW), table.schema.field(0).type))
    assert table.schema.names[0] == "item_id"
    with DatasetWriter(path, name="toy") as writer:
        writer.add_items(pa.concat_tables([table, twins]))
        for one in old.manifest.modalities:
            features, present = (np.load(old.path / file) for file in (one.file, one.present_file))
            has = np.array([one.name in names for names in NEW.values()])
            features = np.concatenate([features, np.where(has[:, None], features[:1], 0)])
            batches = [(features, np.concatenate([present, has]))]
            writer.add_modality(one.name, dim=one.dim, batches=batches, dtype=np.float32, source="toy")
        writer.add_interactions(pq.read_table(old.path / "interactions.parquet"))
        writer.publish()
    return path


@dataclass(frozen=True)
class Served:
    """A running service, and what it was made from."""

    family: str
    url: str
    manifest: BundleManifest
    bundle: Bundle
    snapshot: IndexSnapshot

    @property
    def parts(self) -> list[str]:
        return [*MODALITIES, *ADDED[self.family]]

    def get(self, path: str) -> dict:
        return self._read(httpx2.get(self.url + path, timeout=30))

    def post(self, path: str, **body: object) -> dict:
        return self._read(httpx2.post(self.url + path, json=body, timeout=30))

    @staticmethod
    def _read(response: httpx2.Response) -> dict:
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture(scope="module", params=list(ADDED))
def served(request, toy_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    store, config = folder / "store", folder / "run.toml"
    config.write_text(to_toml(config_of(request.param, *OPTIONS.get(request.param, []))))
    said = told(train_app, "run", config, "--data", toy_dataset, "--store", store)
    version = next(word for word in said.split() if word.startswith("bundle-"))
    catalogue = grown(Dataset.open(toy_dataset), folder / "grown")
    told(index_app, "rebuild", "--store", store, "--bundle", version, "--data", catalogue)
    opened = ArtifactStore(store)
    path, manifest = opened.open_bundle(version)
    snapshot = IndexSnapshot.open(*opened.open_snapshot(opened.current()))
    service = Service(store, "--history", f"sqlite:{folder}/events.db", log=folder / "log")
    try:
        service.start()
        yield Served(request.param, service.url, manifest, Bundle.open(path), snapshot)
    finally:
        service.stop()
    assert "Traceback" not in service.log.read_text()


def adds_up(served: Served, item: dict) -> dict[str, float]:
    """Assert that an item's score is the sum of its named parts; return them."""
    why = item["explanation"]
    parts = {part["modality"]: part["value"] for part in why["contributions"]}
    assert list(parts) == served.parts
    assert why["additive"]
    assert sum(parts.values()) + why["residual"] == pytest.approx(item["score"], abs=1e-5 * (1 + abs(item["score"])))
    assert abs(why["residual"]) < 1e-5 * (1 + abs(item["score"]))
    return parts


def test_a_history_is_answered_and_every_score_is_the_sum_of_its_parts(served):
    history = [{"item_id": f"i{row:04d}"} for row in (3, 14, 15)]
    answer = served.post("/v1/recommendations", history=history, k=10, explain="full")
    assert (answer["degraded"], answer["events_used"], answer["user_state"]) == ([], 3, "anonymous")
    assert len(answer["items"]) == 10
    for item in answer["items"]:
        assert item["source"] == "model"
        assert any(adds_up(served, item).values())
        assert [past["item_id"] for past in item["explanation"]["history"]] == [past["item_id"] for past in history]
    assert {share["modality"] for share in answer["modality_interest"]} == set(served.parts)


def test_a_known_user_without_a_history_gets_the_learned_vector_until_something_happens(served):
    users = open_known_users(served.bundle.path, served.manifest)
    query_D = users.vectors[users.row("u0007"), 0]
    scores_N = served.snapshot.candidates(np.arange(served.snapshot.num_items)) @ query_D
    answer = served.post("/v1/recommendations", user_id="u0007", k=5, explain="full")
    assert (answer["user_state"], answer["events_used"], answer["degraded"]) == ("known", 0, [])
    found = [item["score"] for item in answer["items"]]
    assert found == pytest.approx(np.sort(scores_N)[::-1][:5].tolist(), abs=1e-4)
    for item in answer["items"]:
        assert item["source"] == "model"
        adds_up(served, item)

    event = {"event_id": "1", "user_id": "u0007", "item_id": "new-text", "type": "click"}
    served.post("/v1/events", events=[{**event, "occurred_at": "2026-01-01T00:00:00Z"}])
    after = served.post("/v1/recommendations", user_id="u0007", k=5)
    assert after["events_used"] == 1
    assert [item["score"] for item in after["items"]] != pytest.approx(found, abs=1e-4)


def test_items_that_came_after_training_are_served_and_explained(served):
    history = [{"item_id": f"i{row:04d}"} for row in (3, 14, 15)]
    body = {"history": history, "candidate_item_ids": [*NEW, "i0000"], "explain": "full"}
    items = {item["item_id"]: item for item in served.post("/v1/recommendations", **body)["items"]}
    assert set(items) == {*NEW, "i0000"}
    twin = adds_up(served, items["i0000"])
    for item_id, names in NEW.items():
        parts = adds_up(served, items[item_id])
        assert parts["id"] != 0, "imputed, not left out"
        for name in MODALITIES:
            if name in names and served.family == "slmrec":  # a trained item has its neighbours' content, too
                assert parts[name] != 0
            elif name in names:  # what content says is the same for an item that was trained on
                assert parts[name] == pytest.approx(twin[name], abs=1e-4)
            else:
                assert parts[name] == 0
    answer = served.post("/v1/recommendations", history=[{"item_id": "new-twin"}], k=100, include_seen=True)
    assert (answer["events_used"], answer["unknown_item_ids"]) == (1, [])
    assert set(NEW) <= {item["item_id"] for item in answer["items"]}


def test_the_model_says_what_it_is_made_of(served):
    said = served.get(f"/v1/models/{served.family}/modalities")
    assert said == served.get(f"/v1/models/{served.manifest.version}/modalities")
    assert said["model"] == {"name": served.family, "version": served.manifest.version}
    assert said["parts"] == served.parts
    assert said["explanation_methods"][0] == "decomposition"
    assert (said["num_known_items"], said["num_known_users"]) == (60, 120)
    assert said["fold_in"] == served.manifest.fold_in.model_dump()
    assert said["cold_items"] == served.manifest.cold_items.model_dump()
    assert {one["modality"]: one["dim"] for one in said["modalities"]} == MODALITIES
    for one in said["modalities"]:
        if served.family == "invrl":
            mask = one["mask"]
            assert 0 <= mask["q10"] <= mask["median"] <= mask["q90"] <= 1
            assert 0 < mask["contribution_with_mask"] < mask["contribution_without_mask"]
            assert mask["contribution_removed"] > 0
        else:
            assert one["mask"] is None
