"""A model with learned items and users, from bundle to answers: known, unknown and bare items, every method."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.artefacts import ArtefactError
from index.bundle import Bundle
from index.check import check_snapshot
from index.dataset import Dataset
from index.decompose import decompose
from index.explain import METHODS, explain
from index.features import ModelInputs, from_dataset
from index.item_encoder import ItemEncoder
from index.rebuild import rebuild
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from service.recommend.deadline import Deadline
from service.recommend.recommender import Recommender
from service.recommend.types import HistoryItem, ItemId, Query, session_subject, user_subject
from service.runtime.servable import load_servable
from tests import bundles
from tests.fakes import recommender_of
from tests.id_bundles import MASK, id_reference, make_id_bundle, without, without_any_content

LATER = Deadline.after(3_600.0)
ROWS = np.arange(60)
BARE_KNOWN, BARE_UNKNOWN = 10, 11


@pytest.fixture(scope="module")
def data(toy_dataset, tmp_path_factory) -> Dataset:
    """The toy data, where one known and one unknown item have no modality at all."""
    path = tmp_path_factory.mktemp("ids") / "data"
    shutil.copytree(toy_dataset, path)
    for modality in Dataset.open(path).manifest.modalities:
        present = np.load(path / modality.present_file)
        present[[BARE_KNOWN, BARE_UNKNOWN]] = False
        np.save(path / modality.present_file, present)
    return Dataset.open(path)


@pytest.fixture(scope="module")
def model(data):
    return id_reference(data)


@pytest.fixture(scope="module")
def store(data, tmp_path_factory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def version(store, data) -> str:
    return rebuild(store, bundle_version=make_id_bundle(store, data), dataset=data).version


@pytest.fixture(scope="module")
def bundle(store, version) -> Bundle:
    return Bundle.open(store.open_bundle(store.open_snapshot(version)[1].bundle_version)[0])


@pytest.fixture(scope="module")
def snapshot(store, version) -> IndexSnapshot:
    return IndexSnapshot.open(*store.open_snapshot(version))


@pytest.fixture(scope="module")
def servable(store, version):
    loaded = load_servable(store, version)
    yield loaded
    loaded.release()


@pytest.fixture(scope="module")
def recommender(servable) -> Recommender:
    return recommender_of(servable)


def test_a_catalogue_holds_learned_parts_for_known_items_and_imputed_ones_for_others(snapshot, model, data):
    inputs = from_dataset(data, slice(None), model.modalities)
    candidates, states, presence = model.catalogue(inputs, data.item_ids)
    present = presence[..., None]
    np.testing.assert_allclose(snapshot.candidates(ROWS), candidates, atol=1e-5)
    np.testing.assert_allclose(snapshot.history(ROWS), candidates, atol=1e-5)
    np.testing.assert_allclose(snapshot.states(ROWS) * present, states * present, atol=1e-5)
    np.testing.assert_array_equal(snapshot.presence(ROWS), presence)
    assert snapshot.parts == ("visual", "text", "category", "id", "bias")
    known = [row for row, item_id in enumerate(data.item_ids) if item_id in model.warm_ids]
    np.testing.assert_array_equal(snapshot.states(known)[:, -2:], model.warm)


def test_the_vector_of_an_item_is_the_sum_of_its_parts(snapshot):
    parts = snapshot.states(ROWS) * snapshot.presence(ROWS)[..., None]
    np.testing.assert_allclose(parts.sum(axis=1), snapshot.candidates(ROWS), atol=1e-5)


def test_a_known_item_without_any_modality_is_what_was_learned_of_it(snapshot, model):
    np.testing.assert_allclose(snapshot.candidates([BARE_KNOWN])[0], model.warm[BARE_KNOWN // 2].sum(axis=0), atol=1e-6)


def test_an_item_of_which_nothing_is_known_is_an_average_item_and_not_zero(snapshot, model):
    expected = model.mean_id + model.mean_bias
    np.testing.assert_allclose(snapshot.candidates([BARE_UNKNOWN])[0], expected, atol=1e-6)
    assert snapshot.presence([BARE_UNKNOWN])[0].tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("column", [0, 1, 2])
def test_without_one_modality_an_item_is_the_sum_of_the_others(bundle, model, data, column):
    inputs = without(from_dataset(data, slice(None), model.modalities), column)
    encoder = ItemEncoder(bundle)
    encoded = encoder.encode(inputs, encoder.known_rows(pa.chunked_array([data.item_ids])))
    np.testing.assert_allclose(encoded.candidates, model.catalogue(inputs, data.item_ids)[0], atol=1e-5)
    assert not encoded.presence[:, column].any()
    assert encoded.presence[:, -2:].all()


def test_an_item_that_is_brought_without_anything_has_no_part(bundle, model):
    assert not bundle.encode_items(without_any_content(model)).presence.any()


def test_no_items_give_empty_tables(bundle, model):
    inputs = without_any_content(model)
    none = ModelInputs(tuple(values[:0] for values in inputs.features), inputs.presence[:0])
    encoded = ItemEncoder(bundle).encode(none, np.zeros(0, np.int64))
    assert (encoded.states.shape, encoded.presence.shape) == ((0, 5, 8), (0, 5))


def test_a_rebuild_takes_unchanged_items_over_and_a_known_one_is_never_taken_for_another(
    store, version, data, tmp_path
):
    """The same features under other ids: what is learned goes with the id, what is content with the features."""
    bundle_version = store.open_snapshot(version)[1].bundle_version
    again = rebuild(store, bundle_version=bundle_version, dataset=data)
    assert again.num_encoded == 0
    before, after = (IndexSnapshot.open(*store.open_snapshot(one)) for one in (version, again.version))
    for table in ("candidates", "states", "presence"):
        np.testing.assert_array_equal(getattr(before, table)(ROWS), getattr(after, table)(ROWS))

    shutil.copytree(data.path, tmp_path / "swapped")
    names = {data.item_ids[0]: data.item_ids[1], data.item_ids[1]: data.item_ids[0]}
    for name in ("items.parquet", "interactions.parquet"):
        table = pq.read_table(tmp_path / "swapped" / name)
        ids = pa.array([names.get(one, one) for one in table["item_id"].to_pylist()], table["item_id"].type)
        place = table.schema.get_field_index("item_id")
        pq.write_table(table.set_column(place, table.schema.field(place), ids), tmp_path / "swapped" / name)
    swapped = Dataset.open(tmp_path / "swapped")
    made = rebuild(store, bundle_version=bundle_version, dataset=swapped)
    assert made.num_encoded == 2
    model = id_reference(data)
    inputs = from_dataset(swapped, slice(None), model.modalities)
    found = IndexSnapshot.open(*store.open_snapshot(made.version))
    np.testing.assert_allclose(found.candidates(ROWS), model.catalogue(inputs, swapped.item_ids)[0], atol=1e-5)


def test_the_check_finds_a_known_item_that_has_not_what_was_learned_of_it(store, version, bundle, tmp_path):
    path, manifest = store.open_snapshot(version)
    shutil.copytree(path, tmp_path / "copy")
    states = np.load(tmp_path / "copy/states/id.npy")
    states[4] += 1
    np.save(tmp_path / "copy/states/id.npy", states)
    damaged = IndexSnapshot.open(tmp_path / "copy", manifest)
    with pytest.raises(ArtefactError, match="states of row 4 are not those that the model has learned of the item"):
        check_snapshot(damaged, bundle, damaged.queries, min_recall_at_100=0)


@pytest.mark.parametrize(
    ("file", "match"),
    [("warm/states.npy", "states.npy: row 0, 'i0000', holds NaN"), ("warm/ids.arrow", "ids.arrow: is not an Arrow")],
)
def test_a_rebuild_refuses_what_can_not_have_been_learned(store, bundle, data, tmp_path, file, match):
    other = ArtifactStore(tmp_path / "store")
    with other.stage("bundle", name="factors") as stage:
        shutil.copytree(bundle.path, stage.path, dirs_exist_ok=True)
        if file.endswith("npy"):
            states = np.load(stage.path / file)
            states[0, 0, 0] = np.nan
            np.save(stage.path / file, states)
        else:
            (stage.path / file).write_bytes(b"garbage")
        damaged = stage.publish(bundle.manifest)
    with pytest.raises(ArtefactError, match=match):
        rebuild(other, bundle_version=damaged, dataset=data)
    assert other.current() is None


def test_a_service_refuses_users_that_can_not_have_been_learned(store, bundle, data, tmp_path):
    other = ArtifactStore(tmp_path / "store")
    with other.stage("bundle", name="factors") as stage:
        shutil.copytree(bundle.path, stage.path, dirs_exist_ok=True)
        np.save(stage.path / "users/queries.npy", np.zeros((2, 1, 8), np.float32))
        damaged = stage.publish(bundle.manifest)
    made = rebuild(other, bundle_version=damaged, dataset=data)
    with pytest.raises(ArtefactError, match=r"queries.npy: holds float32 2x1x8, expected float32 3x1x8"):
        load_servable(other, made.version)


def test_a_snapshot_of_a_model_without_parts_still_opens_and_does_not_fit_one_with(store, bundle, data, version):
    plain = bundles.make_snapshot(store, data, dim=8, history_length=6)
    path, manifest = store.open_snapshot(plain)
    document = (path / "manifest.json").read_text()
    old = type(manifest).model_validate_json(document.replace('"parts": [],', ""))
    snapshot = IndexSnapshot.open(path, old)
    assert snapshot.parts == ("visual", "text", "category")
    with pytest.raises(ArtefactError, match="part_names is"):
        check_snapshot(snapshot, bundle, snapshot.queries, min_recall_at_100=0)


def given(seed: int, num_items: int, *, complete: bool) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "states_LMS": rng.normal(size=(num_items, 5, 8)).astype(np.float32),
        "presence_LM": np.ones((num_items, 5), bool) if complete else rng.random((num_items, 5)) < 0.7,
        "candidate_states_KMS": rng.normal(size=(3, 5, 8)).astype(np.float32),
        "candidate_presence_KM": rng.random((3, 5)) < 0.7,
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_items", [0, 1, 6, 9])
def test_parts_and_residual_sum_to_the_score_for_every_method(bundle, method, num_items):
    for seed in range(5):
        arrays = explain(bundle, method=method, **given(seed, num_items, complete=False))
        allowed = 1e-5 * (1 + np.abs(arrays.scores_K))
        assert (np.abs(arrays.contributions_KM.sum(axis=1) + arrays.residual_K - arrays.scores_K) < allowed).all()
        assert arrays.contributions_KM.shape == (3, 5)
        if method == "decomposition":
            assert (np.abs(arrays.residual_K) < allowed).all()


def test_the_history_of_an_affine_user_is_split_exactly_but_for_the_offset(bundle, model):
    """What the past items and their parts add is linear; what is left over is what the offset alone would score."""
    one = given(1, 4, complete=True)
    arrays = explain(bundle, method="decomposition", **one)
    own = np.where(one["candidate_presence_KM"][..., None], one["candidate_states_KMS"], 0).sum(axis=1)
    np.testing.assert_allclose(arrays.grid_KLM.sum(axis=(1, 2)) + own @ model.offset, arrays.scores_K, atol=1e-4)


def test_queries_of_no_history_are_split_exactly(bundle, model):
    for seed in range(20):
        one = given(seed, 0, complete=True)
        one["candidate_states_KMS"][~one["candidate_presence_KM"]] = np.nan
        queries = np.concatenate([model.users[0], -model.users[1]])
        arrays = decompose(
            bundle,
            queries_QD=queries,
            candidate_states_KMS=one["candidate_states_KMS"],
            candidate_presence_KM=one["candidate_presence_KM"],
        )
        own = np.where(one["candidate_presence_KM"][..., None], one["candidate_states_KMS"], 0)
        np.testing.assert_allclose(arrays.scores_K, (own.sum(axis=1) @ queries.T).max(axis=1), atol=1e-5)
        assert (np.abs(arrays.residual_K) < 1e-5 * (1 + np.abs(arrays.scores_K))).all()
        assert not arrays.contributions_KM[~one["candidate_presence_KM"]].any()


def inline(*rows: int) -> tuple[HistoryItem, ...]:
    return tuple(HistoryItem(ItemId(f"i{row:04d}")) for row in rows)


def best(scores: np.ndarray, k: int) -> list[str]:
    return [f"i{row:04d}" for row in np.argsort(-scores, kind="stable")[:k]]


@pytest.mark.parametrize("user", ["ann", "zoë", "bob"])
async def test_a_known_user_without_a_history_is_answered_by_the_learned_vector(recommender, snapshot, model, user):
    query = Query(subject=user_subject(user), k=7, explain="full")
    slate = await recommender.recommend(query, deadline=LATER)
    scores = snapshot.candidates(ROWS) @ model.users[model.user_ids.index(user), 0]
    assert [line.item_id for line in slate.items] == best(scores, 7)
    assert {line.source for line in slate.items} == {"model"}
    assert (slate.user_state, slate.events_used, slate.degraded) == ("known", 0, ())
    assert slate.explanation.method == "decomposition"
    assert any("There is no history" in caveat for caveat in slate.explanation.caveats)
    for line in slate.items:
        why = line.explanation
        assert list(why.contributions) == ["visual", "text", "category", "id", "bias"]
        assert sum(why.contributions.values()) == pytest.approx(why.score, abs=1e-5)
        assert why.score == pytest.approx(line.score, abs=1e-5)
        assert (why.history, why.additive) == ((), True)


async def test_a_history_counts_for_more_than_what_was_learned(recommender, servable, snapshot, model):
    query = Query(subject=user_subject("ann"), history=inline(3, 14), k=5, explain="full", include_seen=True)
    slate = await recommender.recommend(query, deadline=LATER)
    user = snapshot.candidates([3, 14]).mean(axis=0) @ model.fold_in + model.offset
    assert [line.item_id for line in slate.items] == best(snapshot.candidates(ROWS) @ user, 5)
    assert slate.explanation.method == servable.methods[0]
    assert list(slate.items[0].explanation.history[0]["by_modality"]) == list(servable.parts)


@pytest.mark.parametrize("subject", [None, user_subject("nobody"), session_subject("ann")])
async def test_nobody_else_gets_a_learned_vector(recommender, subject):
    slate = await recommender.recommend(Query(subject=subject, k=3), deadline=LATER)
    assert {line.source for line in slate.items} == {"popular"}


async def test_named_items_are_scored_by_the_learned_vector(recommender, snapshot, model):
    query = Query(subject=user_subject("bob"), method="shapley")
    slate, explanation = await recommender.explain(query, item_ids=[ItemId("i0004"), ItemId("i0005")], deadline=LATER)
    scores = snapshot.candidates([4, 5]) @ model.users[2, 0]
    assert sorted(line.score for line in slate.items) == pytest.approx(sorted(scores.tolist()), abs=1e-5)
    assert explanation.method == "decomposition"
    assert explanation.faithfulness == {}


async def test_known_and_read_users_are_answered_together(servable, snapshot, model):
    from service.recommend.answer import answer_jobs
    from service.recommend.job import Job

    queries = [Query(subject=user_subject("ann"), k=3), Query(history=inline(3), k=3), Query(k=3)]
    known, read, cold = answer_jobs([Job(servable, query, LATER) for query in queries])
    assert [line.item_id for line in known.items] == best(snapshot.candidates(ROWS) @ model.users[0, 0], 3)
    assert [line.source for answer in (read, cold) for line in answer.items] == ["model"] * 3 + ["popular"] * 3


async def test_similar_items_by_the_learned_id(recommender, snapshot):
    listing = await recommender.similar(ItemId("i0004"), k=3, modality="id", deadline=LATER)
    states = snapshot.states(ROWS)[:, 3]
    cosines = states @ states[4] / (np.linalg.norm(states, axis=1) * np.linalg.norm(states[4]))
    cosines[4] = -2
    assert [line.item_id for line in listing.items] == best(cosines, 3)


def test_the_model_says_what_it_is_made_of(servable, recommender):
    card = recommender.model("factors")
    assert card is recommender.model(servable.version.model_version)
    assert [(one.name, one.mask) for one in card.modalities] == [("visual", MASK), ("text", None), ("category", None)]
    assert (card.parts, card.num_known_items, card.num_known_users) == (servable.parts, 30, 3)
    assert card.fold_in["kind"] == "affine"
    assert card.cold_items["imputation"] == "ridge"


def test_what_is_named_in_the_manifest_lies_in_the_bundle(bundle: Bundle):
    listed = {Path(entry.path) for entry in bundle.manifest.files}
    assert {Path("warm/ids.arrow"), Path("warm/states.npy"), Path("users/queries.npy")} <= listed
