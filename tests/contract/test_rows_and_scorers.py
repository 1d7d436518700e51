"""Models with history rows of their own or scores that sum over queries, from the graphs to the service's answers.

That the exported files compute what the model computes is in test_exported_graphs.py, for these models as for all.
"""

import shutil

import numpy as np
import pytest
import torch

from api_schemas.manifest import Modality
from index.artefacts import ArtefactError
from index.bundle import Bundle
from index.check import check_snapshot
from index.dataset import Dataset
from index.decompose import decompose
from index.explain import METHODS
from index.rebuild import rebuild
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from service.recommend.deadline import Deadline
from service.recommend.types import HistoryItem, ItemId, Query
from service.runtime.servable import load_servable
from tests.fakes import recommender_of
from tests.servables import OWN_ROWS, TOYS, H, Q, toy_model
from training.config import parse_config
from training.data.catalogue import Catalogue
from training.data.interactions import read_interactions
from training.data.split import all_users
from training.evaluate import evaluate_model
from training.evaluate_bundle import evaluate_bundle
from training.explainers import Explainer
from training.export import EXPLAINER_OUTPUTS, graphs_of
from training.faithfulness import JudgedUsers
from training.publish import publish_bundle

LATER = Deadline.after(3_600.0)
LENGTH, DIM = 6, 4
PAST = (3, 14, 15, 9)
CONFIG = parse_config('name = "toy"\n[model]\nkind = "base"\n')


class Served:
    """A model that has been exported, published and rebuilt, and the model itself."""

    def __init__(self, kind: str, data: Dataset, store: ArtifactStore) -> None:
        self.kind, self.data = kind, data
        modalities = [Modality(name=one.name, dim=one.dim) for one in data.manifest.modalities]
        self.model = toy_model(kind, modalities, dim=DIM, history_length=LENGTH).eval()
        few = JudgedUsers([np.arange(8), np.arange(3)], ["visual", None])
        version = publish_bundle(store, model=self.model, config=CONFIG, dataset=data, metrics={}, judged=few)
        self.bundle = Bundle.open(store.open_bundle(version)[0])
        self.store, self.snapshot = store, rebuild(store, bundle_version=version, dataset=data).version
        self.servable = load_servable(store, self.snapshot)
        self.recommender = recommender_of(self.servable)
        features, presence = Catalogue(data).inputs()
        with torch.no_grad():
            self.items = self.model.encode_items(features, presence)
            self.rows = self.model.history_rows(*self.model.parts_of(features, presence, None))

    def scores(self, past) -> np.ndarray:
        with torch.no_grad():
            queries = self.model.encode_users(self.rows[None, list(past)], torch.ones(1, len(past), dtype=torch.bool))
            products = (queries[0] @ self.items.T).double().numpy()
        return np.logaddexp.reduce(products) if self.model.scorer == "logsumexp" else products.max(axis=0)

    async def recommend(self, **query):
        history = tuple(HistoryItem(ItemId(f"i{row:04d}")) for row in PAST)
        return await self.recommender.recommend(Query(history=history, **query), deadline=LATER)


@pytest.fixture(scope="module", params=TOYS)
def served(request, toy_dataset, tmp_path_factory):
    made = Served(request.param, Dataset.open(toy_dataset), ArtifactStore(tmp_path_factory.mktemp("store")))
    yield made
    made.servable.release()


@pytest.fixture(scope="module")
def data(toy_dataset) -> Dataset:
    return Dataset.open(toy_dataset)


def given(model, rng, *, lengths, num_candidates=3) -> dict[str, np.ndarray]:
    """Explainer inputs with holes in histories and candidates."""
    shape, parts = (len(lengths), LENGTH), len(model.part_names)
    return {
        "states": rng.normal(size=(*shape, parts, model.state_dim)).astype(np.float32),
        "presence": rng.random((*shape, parts)) < 0.7,
        "mask": np.arange(LENGTH) < np.array(lengths)[:, None],
        "candidate_states": rng.normal(size=(num_candidates, parts, model.state_dim)).astype(np.float32),
        "candidate_presence": rng.random((num_candidates, parts)) < 0.7,
    }


@pytest.fixture(scope="module")
def linear(data):
    modalities = [Modality(name=one.name, dim=one.dim) for one in data.manifest.modalities]
    return toy_model("own-rows", modalities, dim=DIM, history_length=LENGTH).eval()


def test_what_a_map_says_without_derivatives_is_what_the_derivatives_say(linear):
    inputs = given(linear, np.random.default_rng(0), lengths=[0, 1, 3, LENGTH])
    found = graphs_of(linear)["explainer"](inputs)
    differentiated = Explainer(linear)(*map(torch.tensor, inputs.values()))
    for (name, value), expected in zip(found.items(), differentiated, strict=True):
        np.testing.assert_allclose(value, expected.detach().numpy(), atol=2e-6, err_msg=name)


def test_what_past_items_and_their_parts_add_sums_to_the_score_but_for_the_constant(linear):
    inputs = given(linear, np.random.default_rng(1), lengths=[1, 3, LENGTH])
    inputs["presence"][:, :, -1] = True
    found = graphs_of(linear)["explainer"](inputs)
    own = np.where(inputs["candidate_presence"][..., None], inputs["candidate_states"][..., :DIM], 0).sum(axis=1)
    constant_K = own @ linear.offset_D.detach().numpy()
    for name, axes in (("item_grad_x_input", 2), ("modality_grad_x_input", (2, 3))):
        np.testing.assert_allclose(found[name].sum(axis=axes) + constant_K, found["scores"], atol=1e-5, err_msg=name)


def test_gradients_of_a_sum_over_queries_are_those_of_autograd(data):
    modalities = [Modality(name=one.name, dim=one.dim) for one in data.manifest.modalities]
    model = toy_model("summed", modalities, dim=DIM, history_length=LENGTH).double().eval()
    inputs = given(model, np.random.default_rng(5), lengths=[3, LENGTH])
    inputs["presence"][:], inputs["candidate_presence"][:] = True, True
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    tensors |= {name: value.double() for name, value in tensors.items() if value.is_floating_point()}
    rows = model.history_rows(tensors["states"], tensors["presence"]).detach().requires_grad_()
    candidates = model.fuse(tensors["candidate_states"], tensors["candidate_presence"])
    queries = model.encode_users(rows, tensors["mask"])
    scores = torch.logsumexp(queries @ candidates.T, dim=1)
    found = dict(zip(EXPLAINER_OUTPUTS, Explainer(model)(*tensors.values()), strict=True))
    torch.testing.assert_close(found["scores"], scores)
    weight = torch.softmax(queries @ candidates.T, dim=1)
    entropy = -(weight * weight.log()).sum(dim=1)
    torch.testing.assert_close(found["scores"] - found["contributions"].sum(dim=-1), entropy)
    for column in range(len(candidates)):
        (gradient,) = torch.autograd.grad(scores[:, column].sum(), rows, retain_graph=True)
        torch.testing.assert_close(found["item_interest"][:, column], gradient.mean(dim=-1))
        torch.testing.assert_close(found["item_grad_x_input"][:, column], (gradient * rows).sum(dim=-1))


@pytest.mark.parametrize("kind", OWN_ROWS)
def test_an_item_with_parts_whose_row_is_nothing_is_no_item(kind, data):
    modalities = [Modality(name=one.name, dim=one.dim) for one in data.manifest.modalities]
    model = toy_model(kind, modalities, dim=DIM, history_length=LENGTH)
    graphs = graphs_of(model)
    rng = np.random.default_rng(2)
    states = rng.normal(size=(3, 4, DIM + H)).astype(np.float32)
    states[1, :, DIM:] = 0
    presence = np.ones(states.shape[:2], bool)
    rows = graphs["state_encoder"]({"states": states, "presence": presence})["history"]
    padded = np.zeros((1, LENGTH, H), np.float32)
    padded[0, :3] = rows
    mask = np.arange(LENGTH)[None] < 3
    query = graphs["user_encoder"]({"history": padded, "mask": mask})["queries"]
    inputs = given(model, rng, lengths=[3])
    inputs["states"][0, :3], inputs["presence"][0, :3] = states, True
    found = graphs["explainer"](inputs)
    np.testing.assert_allclose(found["queries"], query, atol=1e-6)
    for name in ("item_interest", "modality_interest", "item_grad_x_input", "modality_grad_x_input"):
        assert not found[name][0, :, 1].any(), name


def test_a_bundle_says_what_the_model_is_and_a_rebuild_stores_what_it_gives(served):
    manifest = served.bundle.manifest
    own = served.kind in OWN_ROWS
    assert (manifest.dim, manifest.history_dim, manifest.history_is_candidate) == (DIM, H if own else DIM, not own)
    assert (manifest.num_queries, manifest.scorer) == ((1, "max") if own else (Q, "logsumexp"))
    rows = np.arange(60)
    np.testing.assert_allclose(served.servable._snapshot.history(rows), served.rows.numpy(), atol=1e-5)
    np.testing.assert_allclose(served.servable._snapshot.candidates(rows), served.items.numpy(), atol=1e-5)


def test_a_snapshot_that_scores_otherwise_than_its_bundle_is_refused(served):
    path, manifest = served.store.open_snapshot(served.snapshot)
    other = "max" if manifest.scorer == "logsumexp" else "logsumexp"
    wrong = manifest.model_copy(update={"scorer": other})
    opened = IndexSnapshot.open(path, wrong)
    with pytest.raises(ArtefactError, match=f"scorer is {other}, its bundle has {manifest.scorer}"):
        check_snapshot(opened, served.bundle, opened.queries, min_recall_at_100=0)
    with served.store.stage("snapshot") as stage:
        shutil.copytree(path, stage.path, dirs_exist_ok=True)
        version = stage.publish(wrong)
    with pytest.raises(ArtefactError, match=f"scorer is {other}, its bundle has {manifest.scorer}"):
        load_servable(served.store, version)


async def test_the_service_answers_what_the_model_scores(served):
    slate = await served.recommend(k=10, include_seen=True)
    scores = served.scores(PAST)
    assert [line.item_id for line in slate.items] == [f"i{row:04d}" for row in np.argsort(-scores)[:10]]
    assert [line.score for line in slate.items] == pytest.approx(np.sort(scores)[::-1][:10], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_explains_the_score_that_was_shown(served, method):
    slate = await served.recommend(k=5, explain="full", method=method)
    assert (slate.degraded, slate.explanation.method) == ((), method)
    if method == "decomposition" and served.model.scorer == "logsumexp":
        assert "What the method says of the parts does not sum to the score." in slate.explanation.caveats
    for shown in slate.items:
        why = shown.explanation
        assert why.score == pytest.approx(shown.score, rel=1e-5, abs=1e-5)
        assert sum(why.contributions.values()) + why.residual == pytest.approx(why.score, rel=1e-5, abs=1e-5)
        if method == "decomposition":
            assert why.additive == (served.model.scorer == "max")
            most = 1e-5 if why.additive else np.log(Q) + 1e-5
            assert -1e-5 <= why.residual <= most
        if method == "occlusion":
            for place, past in enumerate(why.history):
                fewer = served.scores([row for row in PAST if row != PAST[place]])
                assert past["interest"] == pytest.approx(shown.score - fewer[int(shown.item_id[1:])], abs=2e-5)


def test_queries_of_no_history_are_split_by_what_a_state_starts_with(served):
    given_states = given(served.model, np.random.default_rng(3), lengths=[0])
    states, presence = given_states["candidate_states"], given_states["candidate_presence"]
    queries = np.random.default_rng(4).normal(size=(served.model.num_queries, DIM)).astype(np.float32)
    arrays = decompose(served.bundle, queries_QD=queries, candidate_states_KMS=states, candidate_presence_KM=presence)
    own = np.where(presence[..., None], states[..., :DIM], 0).astype(np.float64)
    products = own.sum(axis=1) @ queries.T
    weights = np.exp(products - np.logaddexp.reduce(products, axis=1, keepdims=True))
    expected = np.einsum("kmd,kq,qd->km", own, weights, queries)
    np.testing.assert_allclose(arrays.contributions_KM, expected, atol=1e-5)
    np.testing.assert_allclose(arrays.residual_K, -(weights * np.log(weights)).sum(axis=1), atol=1e-5)
    np.testing.assert_allclose(arrays.scores_K, np.logaddexp.reduce(products, axis=1), atol=1e-5)
    assert arrays.additive == (served.model.scorer == "max")


def test_the_model_and_its_bundle_are_judged_alike(served):
    users = all_users(read_interactions(served.data))
    ids = [str(user) for user in users.users_B]
    ours = evaluate_model(served.model, Catalogue(served.data), users, cutoffs=(5, 20))
    theirs, _ = evaluate_bundle(
        served.bundle, served.data, users, user_ids=ids, cutoffs=(5, 20), on_progress=lambda *_: None
    )
    assert ours == pytest.approx(theirs, abs=1e-9)
