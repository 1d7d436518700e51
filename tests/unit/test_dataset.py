"""Opening and validating a dataset folder: every way in which it can be wrong is told with file, row and column."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.dataset import Dataset, DatasetError
from index.dataset_validate import validate
from tests import toy


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return toy.make_dataset(tmp_path_factory.mktemp("dataset") / "toy", num_users=30, num_items=40)


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "toy")


def set_manifest(folder, **changes):
    manifest = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(manifest | changes))


def set_column(folder, file, name, values, dtype=None):
    table = pq.read_table(folder / file)
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, dtype)
    table = table.set_column(table.column_names.index(name), name, array)
    pq.write_table(table, folder / file)


def edit(folder, file, name, row, value):
    table = pq.read_table(folder / file)
    values = table[name].to_pylist()
    values[row] = value
    set_column(folder, file, name, values, table.schema.field(name).type)


def edit_array(folder, file, change):
    array = np.load(folder / file)
    np.save(folder / file, change(array))


def only_problem(folder):
    problems = validate(folder)
    assert len(problems) == 1, [str(problem) for problem in problems]
    return problems[0]


class TestOpen:
    def test_gives_what_was_written(self, folder):
        dataset = Dataset.open(folder)
        assert dataset.item_ids == [f"i{row:04d}" for row in range(40)]
        assert dataset.modality_names == ("visual", "text", "category")
        assert dataset.features("visual").shape == (40, 32)
        assert dataset.presence("visual").sum() == 38
        assert dataset.items().num_rows == 40
        batches = list(dataset.iter_interactions(batch_rows=50))
        assert [batch.num_rows for batch in batches[:-1]] == [50] * (len(batches) - 1)
        assert pa.Table.from_batches(batches).equals(dataset.interactions().combine_chunks())
        assert validate(folder) == []

    def test_gives_read_only_memory_mapped_arrays(self, folder):
        dataset = Dataset.open(folder)
        for array in (dataset.features("text"), dataset.presence("text")):
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable

    def test_gives_one_string_type_whatever_wrote_the_file(self, folder):
        for file in ("items.parquet", "interactions.parquet"):
            table = pq.read_table(folder / file)
            fields = [(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in table.schema]
            pq.write_table(table.cast(pa.schema(fields)), folder / file)
        dataset = Dataset.open(folder)
        assert dataset.interactions().schema.field("user_id").type == pa.string()
        assert next(dataset.iter_interactions()).schema.field("item_id").type == pa.string()
        assert dataset.items().schema.field("title").type == pa.string()

    def test_takes_categories_that_are_empty_everywhere(self, folder):
        set_column(folder, "items.parquet", "categories", [[]] * 40, pa.list_(pa.null()))
        assert validate(folder) == []
        assert Dataset.open(folder).items()["categories"].to_pylist() == [[]] * 40

    def test_knows_the_planted_truth_only_where_there_is_one(self, folder):
        assert set(Dataset.open(folder).truth().values()) == set(toy.MODALITIES)
        (folder / "truth.parquet").unlink()
        assert Dataset.open(folder).truth() is None

    def test_fingerprint_changes_with_any_file_and_not_with_the_place(self, folder, pristine):
        before = Dataset.open(pristine).fingerprint()
        assert Dataset.open(folder).fingerprint() == before
        edit_array(folder, "features/category.present.npy", np.logical_not)
        assert Dataset.open(folder).fingerprint() != before

    @pytest.mark.parametrize(
        "file",
        ["dataset.json", "items.parquet", "interactions.parquet", "features/visual.npy", "features/text.present.npy"],
    )
    def test_names_a_missing_file(self, folder, file):
        (folder / file).unlink()
        with pytest.raises(DatasetError, match=f"^{file}: file is missing"):
            Dataset.open(folder)
        assert str(only_problem(folder)) == f"{file}: file is missing"

    @pytest.mark.parametrize("file", ["items.parquet", "features/visual.npy", "features/visual.present.npy"])
    @pytest.mark.parametrize("share", [0, 0.5, 0.97])
    def test_names_a_truncated_file(self, folder, file, share):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DatasetError, match=f"^{file}: is not a readable"):
            Dataset.open(folder)
        assert only_problem(folder).file == file

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"name": "x"}', b'{"schema_version": 2}'])
    def test_refuses_a_broken_manifest(self, folder, content):
        (folder / "dataset.json").write_bytes(content)
        with pytest.raises(DatasetError, match=r"^dataset\.json"):
            Dataset.open(folder)
        assert only_problem(folder).file == "dataset.json"

    def test_names_the_field_of_a_wrong_manifest(self, folder):
        set_manifest(folder, num_items=-1)
        with pytest.raises(DatasetError, match=r"^dataset\.json, column num_items"):
            Dataset.open(folder)

    @pytest.mark.parametrize("file", ["../outside.npy", "/etc/passwd", "features/../../x.npy", ".hidden.npy"])
    def test_refuses_a_path_that_leaves_the_folder(self, folder, file):
        manifest = json.loads((folder / "dataset.json").read_text())
        manifest["modalities"][0]["file"] = file
        set_manifest(folder, modalities=manifest["modalities"])
        with pytest.raises(DatasetError, match=r"dataset\.json, column modalities\.0\.file"):
            Dataset.open(folder)

    def test_refuses_a_link_that_leaves_the_folder(self, folder, tmp_path):
        outside = tmp_path / "outside.npy"
        shutil.move(folder / "features/visual.npy", outside)
        (folder / "features/visual.npy").symlink_to(outside)
        with pytest.raises(DatasetError, match=r"features/visual\.npy: leads out of the dataset's folder"):
            Dataset.open(folder)

    def test_refuses_what_is_no_folder(self, tmp_path):
        with pytest.raises(DatasetError, match="folder is missing"):
            Dataset.open(tmp_path / "nowhere")
        (tmp_path / "file").touch()
        with pytest.raises(DatasetError, match="is not a folder"):
            Dataset.open(tmp_path / "file")

    def test_never_unpickles(self, folder):
        np.save(folder / "features/visual.npy", np.array([print] * 40, dtype=object), allow_pickle=True)
        with pytest.raises(DatasetError, match=r"features/visual\.npy: is not a readable \.npy file: .*Python objects"):
            Dataset.open(folder)

    def test_refuses_an_archive_in_place_of_an_array(self, folder):
        with (folder / "features/visual.npy").open("wb") as file:
            np.savez(file, visual=np.zeros((40, 32)))
        with pytest.raises(DatasetError, match=r"visual\.npy: is a \.npz archive"):
            Dataset.open(folder)

    @pytest.mark.parametrize(
        ("change", "detail"),
        [
            (lambda a: a.astype(np.float64), "dtype is float64, expected float16 or float32"),
            (lambda a: a[:-1], r"shape is \(39, 32\), expected \(40, 32\)"),
            (lambda a: a[:, :-1], r"shape is \(40, 31\), expected \(40, 32\)"),
            (np.ravel, r"shape is \(1280,\)"),
            (np.asfortranarray, "Fortran order"),
        ],
    )
    def test_names_features_of_a_wrong_kind(self, folder, change, detail):
        edit_array(folder, "features/visual.npy", change)
        with pytest.raises(DatasetError, match=rf"^features/visual\.npy: .*{detail}"):
            Dataset.open(folder)
        assert only_problem(folder).file == "features/visual.npy"

    @pytest.mark.parametrize(
        ("change", "detail"),
        [(lambda a: a.astype(np.int8), "dtype is int8, expected bool"), (lambda a: a[:-1], r"shape is \(39,\)")],
    )
    def test_names_presence_of_a_wrong_kind(self, folder, change, detail):
        edit_array(folder, "features/visual.present.npy", change)
        with pytest.raises(DatasetError, match=rf"^features/visual\.present\.npy: {detail}"):
            Dataset.open(folder)

    def test_names_a_modality_that_it_does_not_have(self, folder):
        with pytest.raises(DatasetError, match="no modality 'audio'; it has visual, text, category"):
            Dataset.open(folder).features("audio")

    @pytest.mark.parametrize(
        ("field", "file"), [("num_items", "items.parquet"), ("num_interactions", "interactions.parquet")]
    )
    def test_names_a_count_that_disagrees(self, folder, field, file):
        actual = json.loads((folder / "dataset.json").read_text())[field]
        set_manifest(folder, **{field: actual + 1})
        says = rf"dataset\.json says {field} = {actual + 1}"
        with pytest.raises(DatasetError, match=f"^{file}: has {actual} rows, but {says}"):
            Dataset.open(folder)


class TestColumns:
    @pytest.mark.parametrize(
        ("file", "column"),
        [
            ("items.parquet", "item_id"),
            ("interactions.parquet", "user_id"),
            ("interactions.parquet", "item_id"),
            ("interactions.parquet", "timestamp"),
        ],
    )
    def test_a_missing_column_is_named(self, folder, file, column):
        table = pq.read_table(folder / file)
        pq.write_table(table.drop_columns([column]), folder / file)
        with pytest.raises(DatasetError, match=f"^{file}, column {column}: column is missing"):
            Dataset.open(folder)
        assert any((p.file, p.column) == (file, column) for p in validate(folder))

    @pytest.mark.parametrize(
        ("file", "column", "dtype"),
        [
            ("items.parquet", "item_id", pa.int64()),
            ("items.parquet", "categories", pa.list_(pa.int64())),
            ("items.parquet", "title", pa.int64()),
            ("items.parquet", "year", pa.timestamp("s")),
            ("items.parquet", "year", pa.list_(pa.int64())),
            ("interactions.parquet", "timestamp", pa.int32()),
            ("interactions.parquet", "timestamp", pa.float64()),
            ("interactions.parquet", "timestamp", pa.timestamp("s")),
            ("interactions.parquet", "user_id", pa.int64()),
            ("interactions.parquet", "event", pa.int64()),
        ],
    )
    def test_a_wrong_type_is_named(self, folder, file, column, dtype):
        rows = pq.read_table(folder / file).num_rows
        set_column(folder, file, column, [None] * rows, dtype)
        with pytest.raises(DatasetError, match=f"^{file}, column {column}: type is .*, expected"):
            Dataset.open(folder)
        assert (only_problem(folder).file, only_problem(folder).column) == (file, column)

    def test_an_unknown_column_of_the_interactions_is_a_warning(self, folder):
        table = pq.read_table(folder / "interactions.parquet")
        pq.write_table(table.append_column("Split", table["event"]), folder / "interactions.parquet")
        problem = only_problem(folder)
        assert (problem.severity, problem.column) == ("warning", "Split")
        Dataset.open(folder)


class TestValues:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_features_that_are_not_finite_name_row_and_column(self, folder, bad):
        def spoil(array):
            array[12, 5] = bad
            return array

        edit_array(folder, "features/text.npy", spoil)
        problem = only_problem(folder)
        assert (problem.file, problem.row, problem.column) == ("features/text.npy", 12, "5")
        assert f"value is {bad}" in problem.detail

    def test_a_zero_vector_that_is_said_to_be_present_is_a_warning(self, folder):
        def spoil(array):
            array[3] = 0
            return array

        edit_array(folder, "features/text.npy", spoil)
        problem = only_problem(folder)
        assert (problem.severity, problem.file, problem.row) == ("warning", "features/text.npy", 3)

    def test_a_repeated_item_id_names_the_later_row(self, folder):
        edit(folder, "items.parquet", "item_id", 39, "i0007")
        problems = validate(folder)
        assert (problems[0].row, problems[0].column) == (39, "item_id")
        assert problems[0].detail == "item id 'i0007' appears again"

    @pytest.mark.parametrize("bad", [None, ""])
    def test_an_empty_item_id_is_named(self, folder, bad):
        edit(folder, "items.parquet", "item_id", 39, bad)
        assert str(validate(folder)[0]) == "items.parquet, row 39, column item_id: id is missing or empty"

    def test_a_very_long_id_is_named(self, folder):
        edit(folder, "interactions.parquet", "user_id", 0, "x" * 257)
        assert "id has 257 characters" in validate(folder)[0].detail

    def test_an_interaction_of_an_unknown_item_is_named(self, folder):
        edit(folder, "interactions.parquet", "item_id", 17, "nobody")
        problem = only_problem(folder)
        assert str(problem) == "interactions.parquet, row 17, column item_id: item 'nobody' is not in items.parquet"

    @pytest.mark.parametrize("bad", [None, ""])
    def test_an_empty_user_is_named(self, folder, bad):
        edit(folder, "interactions.parquet", "user_id", 5, bad)
        assert str(validate(folder)[0]) == "interactions.parquet, row 5, column user_id: id is missing or empty"

    def test_a_negative_timestamp_is_named(self, folder):
        edit(folder, "interactions.parquet", "timestamp", 0, -1)
        assert str(only_problem(folder)) == "interactions.parquet, row 0, column timestamp: timestamp -1 is negative"

    def test_a_missing_timestamp_is_named(self, folder):
        edit(folder, "interactions.parquet", "timestamp", 0, None)
        assert only_problem(folder).detail == "timestamp is missing"

    def test_unsorted_timestamps_name_the_row_that_is_early(self, folder):
        times = pq.read_table(folder / "interactions.parquet")["timestamp"].to_pylist()
        edit(folder, "interactions.parquet", "timestamp", 0, times[1] + 1)
        problem = only_problem(folder)
        assert (problem.row, problem.column) == (1, "timestamp")
        assert "time order within a user" in problem.detail

    def test_users_may_be_interleaved_and_are_checked_across_batches(self, folder, monkeypatch):
        table = pq.read_table(folder / "interactions.parquet").sort_by("timestamp")
        pq.write_table(table, folder / "interactions.parquet")
        monkeypatch.setattr("index.dataset_validate._BATCH_ROWS", 7)
        assert validate(folder) == []
        users = table["user_id"].to_pylist()
        last = len(users) - 1 - users[::-1].index("u0000")
        edit(folder, "interactions.parquet", "timestamp", last, 5)
        assert only_problem(folder).row == last

    def test_a_wrong_split_is_named(self, folder):
        table = pq.read_table(folder / "interactions.parquet")
        split = ["train"] * (table.num_rows - 1) + ["dev"]
        pq.write_table(table.append_column("split", pa.array(split)), folder / "interactions.parquet")
        assert only_problem(folder).detail == "split is 'dev', expected one of train, valid, test"

    @pytest.mark.parametrize("name", ["rating", "weight"])
    def test_a_rating_that_is_not_finite_is_named(self, folder, name):
        table = pq.read_table(folder / "interactions.parquet")
        values = pa.array([1.0] * (table.num_rows - 1) + [float("nan")], pa.float32())
        pq.write_table(table.append_column(name, values), folder / "interactions.parquet")
        problem = only_problem(folder)
        assert (problem.row, problem.column, problem.detail) == (table.num_rows - 1, name, "value is nan")

    def test_the_number_of_users_is_checked(self, folder):
        set_manifest(folder, num_users=31)
        assert only_problem(folder).detail == "has 30 users, but dataset.json says num_users = 31"

    def test_a_page_that_can_not_be_decoded_is_named(self, folder):
        path = folder / "interactions.parquet"
        content = bytearray(path.read_bytes())
        content[4:200] = b"\xa5" * 196
        path.write_bytes(content)
        problem = only_problem(folder)
        assert problem.file == "interactions.parquet"
        assert "can not be decoded" in problem.detail
        with pytest.raises(DatasetError, match=r"^interactions\.parquet"):
            Dataset.open(folder).interactions()

    def test_many_bad_rows_are_told_in_few_lines(self, folder):
        rows = pq.read_table(folder / "interactions.parquet").num_rows
        set_column(folder, "interactions.parquet", "item_id", ["nobody"] * rows)
        problems = validate(folder)
        assert len(problems) == 5
        assert problems[-1].detail.endswith(f"(and {rows - 5} more rows like this)")

    def test_all_that_is_wrong_is_told_at_once(self, folder):
        edit(folder, "interactions.parquet", "timestamp", 0, -1)
        edit_array(folder, "features/visual.npy", lambda a: a * np.nan)
        (folder / "features/text.npy").unlink()
        files = {problem.file for problem in validate(folder)}
        assert files == {"interactions.parquet", "features/visual.npy", "features/text.npy"}

    def test_progress_is_told_for_every_file(self, folder):
        told = {}
        validate(folder, on_progress=lambda what, done, total: told.update({what: (done, total)}))
        assert {"items.parquet", "interactions.parquet", "features/visual.npy"} <= set(told)
        assert all(done == total for done, total in told.values())


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", ["ml1m-mm", "tiktok-mm", "lfm2k-mm"])
def test_the_measured_sets_are_valid(shared_data, name):
    assert validate(shared_data / name) == []
    assert Dataset.open(shared_data / name).manifest.name == name
