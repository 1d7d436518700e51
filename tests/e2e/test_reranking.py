"""A snapshot with a ranker by the command itself, served by a real process over HTTP, swapped in and rolled back."""

from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import pytest

from index.bundle import Bundle
from index.cli import app
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from tests.bundles import make_bundle
from tests.conftest import told
from tests.processes import Service, wait_until
from tests.ranker_bundles import make_ranker_bundle

PAST = (3, 14, 15)
HISTORY = [{"item_id": f"i{row:04d}"} for row in PAST]


@dataclass(frozen=True)
class Served:
    """A running service, and what it serves."""

    service: Service
    store: ArtifactStore
    bundle: str
    ranker: str
    data: Path

    def get(self, path: str) -> dict:
        return self._read(httpx2.get(self.service.url + path, timeout=30))

    def post(self, path: str, **body: object) -> dict:
        return self._read(httpx2.post(self.service.url + path, json=body, timeout=30))

    def rebuild(self, *options: str) -> None:
        command = ("rebuild", "--store", self.store.root, "--bundle", self.bundle, "--data", self.data)
        told(app, *command, *options)

    def swapped(self) -> None:
        """Wait until what `CURRENT` names answers."""
        wait_until(lambda: self.get("/version")["index"] == self.store.current(), what="the swap")

    @staticmethod
    def _read(response: httpx2.Response) -> dict:
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture(scope="module")
def served(toy_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reranking")
    store = ArtifactStore(folder / "store")
    bundle, ranker = make_bundle(store, toy_dataset), make_ranker_bundle(store, toy_dataset)
    service = Service(
        store.root,
        *("--history", f"sqlite:{folder}/events.db"),
        log=folder / "log",
        PRISMREC_RELOAD__INTERVAL_S="0.05",
        PRISMREC_COMPUTE__RERANK_CANDIDATES="25",
    )
    made = Served(service, store, bundle, ranker, toy_dataset)
    made.rebuild("--ranker", ranker)
    try:
        service.start()
        yield made
    finally:
        service.stop()
    assert "Traceback" not in service.log.read_text()


def brute_force(served: Served, *, k: int) -> tuple[list[str], list[float]]:
    """Retrieve 25 items, and order them by the ranker's graphs."""
    snapshot = IndexSnapshot.open(*served.store.open_snapshot(served.store.current()))
    retriever, ranker = (
        Bundle.open(served.store.open_bundle(one.bundle_version)[0]) for one in snapshot.manifest.encoded
    )
    queries = _queries(retriever, snapshot.history(PAST))
    allowed = ~np.isin(np.arange(snapshot.num_items), PAST)
    _, (rows,) = snapshot.search(queries, k=25, allowed=allowed)
    scores = ranker.score(_queries(ranker, snapshot.ranker.history(PAST)), snapshot.ranker.candidates(rows))[0]
    best = np.argsort(-scores, kind="stable")[:k]
    return snapshot.item_ids(rows[best]), scores[best].tolist()


def _queries(bundle: Bundle, rows: np.ndarray) -> np.ndarray:
    length = bundle.manifest.history_length
    history = np.zeros((1, length, rows.shape[1]), np.float32)
    history[0, : len(rows)] = rows
    return bundle.encode_users(history, np.arange(length)[None] < len(rows))


def test_what_is_answered_is_what_the_ranker_makes_of_the_candidates(served):
    answer = served.post("/v1/recommendations", history=HISTORY, k=8, explain="full")
    item_ids, scores = brute_force(served, k=8)
    assert [line["item_id"] for line in answer["items"]] == item_ids
    assert [line["score"] for line in answer["items"]] == pytest.approx(scores, rel=1e-4)
    assert (answer["degraded"], answer["events_used"]) == ([], 3)
    assert answer["ranker"] == {"name": "toy-ranker", "version": served.ranker}
    assert answer["model"] == {"name": "toy", "version": served.bundle}
    for line in answer["items"]:
        why = line["explanation"]
        total = sum(part["value"] for part in why["contributions"]) + why["residual"]
        assert total == pytest.approx(line["score"], rel=1e-4)


def test_every_endpoint_knows_of_both_models(served):
    assert served.get("/version")["ranker"] == served.ranker
    assert served.get("/readyz")["checks"]["ranker"] == {"status": "ok", "detail": served.ranker}
    assert served.get("/v1/models/toy/modalities")["explanation_methods"][0] == "interest_gradient"
    assert served.get("/v1/models/toy-ranker/modalities")["explanation_methods"] == ["shapley", "occlusion"]
    named = served.post("/v1/explanations", history=HISTORY, item_ids=["i0020", "i0003"])
    assert (named["ranker"]["version"], named["method"]) == (served.ranker, "shapley")
    similar = served.get("/v1/items/i0003/similar")
    assert {line["source"] for line in similar["items"]} == {"similar"}


def test_a_ranker_comes_and_goes_without_a_restart(served):
    ranked = served.store.current()
    before = served.post("/v1/recommendations", history=HISTORY, k=8)
    served.rebuild()
    served.swapped()
    plain = served.post("/v1/recommendations", history=HISTORY, k=8)
    assert plain["ranker"] is None
    assert plain["items"] != before["items"]
    assert "ranker" not in served.get("/readyz")["checks"]
    assert served.get("/version")["ranker"] is None
    told(app, "rollback", "--store", served.store.root)
    served.swapped()
    assert served.store.current() == ranked
    assert served.post("/v1/recommendations", history=HISTORY, k=8)["items"] == before["items"]
