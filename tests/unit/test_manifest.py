import json
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from api_schemas.manifest import BundleManifest, ColdItems, FoldIn, ModalityMask, SnapshotManifest

MODALITIES = [{"name": "visual", "dim": 6}, {"name": "text", "dim": 4}]


def bundle(**changes):
    fields = {
        "version": "bundle-1",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "family": "ultragcn",
        "modalities": MODALITIES,
        "dim": 8,
        "history_dim": 8,
        "state_dim": 8,
        "history_length": 5,
        "num_queries": 1,
        "history_is_candidate": True,
        "graphs": {},
        "golden_atol": 1e-5,
        "explanation_methods": ["decomposition"],
        "dataset_name": "toy",
        "data_fingerprint": "0" * 8,
        "code_revision": "test",
        "files": [],
    }
    return BundleManifest.model_validate(fields | changes)


def warm(*parts):
    return {"ids": "warm/ids.arrow", "states": "warm/states.npy", "parts": list(parts), "num_items": 3}


def mask(modality, **changes):
    return {"modality": modality, "mean": 0.5, "q10": 0.1, "median": 0.5, "q90": 0.9} | changes


def test_a_manifest_without_parts_has_its_modalities_as_parts():
    assert bundle().part_names == ("visual", "text")


def test_a_manifest_from_before_there_were_ages_reads_none():
    assert not bundle().history_ages
    assert not BundleManifest.model_validate_json(bundle().model_dump_json(exclude={"history_ages"})).history_ages
    assert bundle(history_ages=True).history_ages


def test_parts_are_the_modalities_and_what_the_model_adds():
    assert bundle(parts=["visual", "text", "id", "bias"]).part_names == ("visual", "text", "id", "bias")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ["text", "visual", "id"]}, "parts: .* do not start with the modalities"),
        ({"parts": ["id"]}, "parts: .* do not start with the modalities"),
        ({"parts": ["visual", "text", "id", "id"]}, "parts: the names repeat"),
        ({"parts": ["visual", "text", "visual"]}, "parts: 'visual' is a part that the model adds, and a modality"),
        ({"modalities": MODALITIES * 2}, "modalities: the names repeat"),
        ({"parts": ["visual", "text", "id"], "warm": warm("bias")}, "warm.parts: 'bias' is not one of the parts"),
        ({"parts": ["visual", "text", "id"], "warm": warm("id", "id")}, "warm.parts: the names repeat"),
        ({"warm": warm()}, "warm.parts"),
        ({"warm": warm("text") | {"ids": "../ids.arrow"}}, "warm.ids"),
        ({"modality_mask": [mask("sound")]}, "modality_mask: 'sound' is not a modality"),
        ({"modality_mask": [mask("text"), mask("text")]}, "modality_mask: the names repeat"),
        ({"modality_mask": [mask("text", contribution_removed=-0.1)]}, "contribution_removed"),
        ({"modality_mask": [mask("text", contribution_with_mask=float("nan"))]}, "contribution_with_mask"),
    ],
)
def test_names_that_do_not_fit_are_refused_by_name(changes, message):
    with pytest.raises(ValidationError, match=message):
        bundle(**changes)


def test_where_users_are_learned_a_state_starts_with_a_part_of_the_vector():
    known = {"ids": "users/ids.arrow", "queries": "users/queries.npy", "num_users": 7}
    assert bundle(known_users=known, state_dim=13, history_dim=5, history_is_candidate=False).state_dim == 13
    with pytest.raises(ValidationError, match="known_users: state_dim is 7 and dim 8, but where users are learned"):
        bundle(known_users=known, state_dim=7)


def test_a_data_set_modality_called_as_a_part_of_the_model_is_refused_with_what_to_do():
    clash = [*MODALITIES, {"name": "id", "dim": 2}]
    with pytest.raises(ValidationError, match="'id' is a part that the model adds, and a modality of the data: rename"):
        bundle(modalities=clash, parts=["visual", "text", "id", "id"])


def test_a_content_model_may_have_a_modality_of_any_name():
    assert bundle(modalities=[{"name": "id", "dim": 2}]).part_names == ("id",)


@pytest.mark.parametrize("changes", [{"q10": 0.6}, {"median": 0.95}, {"mean": 1.5}, {"mean": float("nan")}])
def test_figures_of_a_mask_that_can_not_be_are_refused(changes):
    with pytest.raises(ValidationError):
        ModalityMask.model_validate(mask("text", **changes))


@pytest.mark.parametrize("ratio", [0.29, 3.01, float("nan"), float("inf")])
def test_an_exposure_of_new_items_outside_the_bounds_is_refused(ratio):
    with pytest.raises(ValidationError, match="exposure_ratio"):
        ColdItems(imputation="ridge", exposure_ratio=ratio, num_items=10, num_users=10)


def test_a_fold_in_that_is_not_measured_is_refused():
    with pytest.raises(ValidationError, match="recall"):
        FoldIn(kind="affine", recall=float("nan"), recall_of_known=0.1, cutoff=20, num_users=10)


def test_what_a_manifest_says_survives_the_disk():
    whole = bundle(
        parts=["visual", "text", "id"],
        warm=warm("id"),
        known_users={"ids": "users/ids.arrow", "queries": "users/queries.npy", "num_users": 7},
        fold_in=FoldIn(kind="affine", r2=0.7, recall=0.3, recall_of_known=0.32, cutoff=20, num_users=10),
        cold_items=ColdItems(imputation="ridge", exposure_ratio=0.9, num_items=10, num_users=10),
        modality_mask=[mask("visual"), mask("text", contribution_with_mask=0.8, contribution_removed=0.4)],
    )
    assert BundleManifest.model_validate_json(whole.model_dump_json()) == whole


def snapshot():
    return {
        "schema_version": 1,
        "kind": "snapshot",
        "version": "snapshot-1",
        "created_at": "2026-01-01T00:00:00Z",
        "bundle_version": "bundle-1",
        "bundle_sha256": "0" * 64,
        "dataset_name": "toy",
        "data_fingerprint": "0",
        "num_items": 3,
        "dim": 8,
        "history_dim": 8,
        "state_dim": 8,
        "history_is_candidate": True,
        "modalities": MODALITIES,
        "factory": "Flat",
        "exact": True,
        "search": {},
        "recall_at_100": 1.0,
        "num_encoded": 3,
        "files": [],
    }


def test_a_snapshot_of_before_there_were_parts_is_one_of_modalities_alone():
    document = snapshot()
    old = SnapshotManifest.model_validate_json(json.dumps(document))
    assert (old.part_names, old.scorer, old.ranker, old.encoded) == (("visual", "text"), "max", None, (old,))
    with pytest.raises(ValidationError, match="parts"):
        SnapshotManifest.model_validate(document | {"parts": ["visual", "id"]})


def test_a_snapshots_ranker_reads_the_same_modalities_in_whatever_order():
    tables = {
        "bundle_version": "bundle-2",
        "bundle_sha256": "1" * 64,
        "dim": 4,
        "history_dim": 4,
        "state_dim": 6,
        "history_is_candidate": True,
        "modalities": MODALITIES[::-1],
        "parts": ["text", "visual", "id"],
        "num_encoded": 3,
    }
    whole = SnapshotManifest.model_validate_json(json.dumps(snapshot() | {"ranker": tables}))
    assert SnapshotManifest.model_validate_json(whole.model_dump_json()) == whole
    assert [one.bundle_version for one in whole.encoded] == ["bundle-1", "bundle-2"]
    assert whole.ranker.part_names == ("text", "visual", "id")
    for wrong in (MODALITIES[:1], [MODALITIES[0], {"name": "text", "dim": 5}]):
        with pytest.raises(ValidationError, match=r"ranker.modalities: not those of the snapshot"):
            SnapshotManifest.model_validate(snapshot() | {"ranker": tables | {"modalities": wrong, "parts": []}})
    with pytest.raises(ValidationError, match=r"ranker\s+Value error, parts: .* do not start with the modalities"):
        SnapshotManifest.model_validate(snapshot() | {"ranker": tables | {"parts": ["id"]}})


def ranker(**changes):
    graphs = {name: {"file": f"{name}.onnx", "inputs": [], "outputs": []} for name in ("user_encoder", "ranker")}
    return bundle(**{"scorer": "ranker", "graphs": graphs, "explanation_methods": ["shapley"], **changes})


def test_a_ranker_is_one_by_its_scorer_and_its_graph():
    assert ranker().is_ranker
    assert (ranker().width_of_queries, ranker(query_dim=3).width_of_queries) == (8, 3)
    users = {"ids": "users/ids.arrow", "queries": "users/queries.npy", "num_users": 7}
    assert ranker(known_users=users, state_dim=2).known_users, "its states need not be parts of its vectors"
    for changes, message in (
        ({"graphs": {}}, "scorer: is ranker, but the graphs are"),
        ({"scorer": "max"}, "scorer: is max, but the graphs are"),
        ({"explanation_methods": ["shapley", "decomposition"]}, "explanation_methods: decomposition needs more"),
    ):
        with pytest.raises(ValidationError, match=message):
            ranker(**changes)
    with pytest.raises(ValidationError, match="query_dim: only a ranker's queries"):
        bundle(query_dim=3)
