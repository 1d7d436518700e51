"""What builds have folded in is kept beside the store: the next one goes on from it, and nothing half-written stays."""

import json
import shutil

import pytest

from index.dataset import Dataset
from index.dataset_validate import validate
from index.folded import KEPT, fold_in


@pytest.fixture
def named(tmp_path, toy_dataset):
    """The folder that callers name; a copy, to be changed."""
    shutil.copytree(toy_dataset, tmp_path / "data" / "shop")
    return lambda: Dataset.open(tmp_path / "data" / "shop")


@pytest.fixture
def export(tmp_path):
    """Write the file that a service exports: deletions by number, whose items are `i<number>`."""

    def write(*seqs, trimmed_to=0):
        lines = [{"item_id": f"i{seq:04d}", "seq": seq, "op": "delete"} for seq in seqs if seq > trimmed_to]
        end = {"schema_version": 1, "end": True, "changes_seq": max(seqs, default=0), "trimmed_to": trimmed_to}
        path = tmp_path / "changes"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, end | {"num_items": len(lines)}]))
        return path

    return write


def left(root):
    return sorted(path.name for path in (root / "folded").glob("*/*"))


def test_a_build_goes_on_from_what_the_one_before_has_folded_in(tmp_path, named, export):
    assert (fold_in(tmp_path, one := named(), export())).dataset is one
    assert not (tmp_path / "folded").exists(), "without changes nothing is copied"
    first = fold_in(tmp_path, named(), export(1, 2))
    assert (first.num_changes, first.seq_before, first.dataset.num_items) == (2, 0, 58)
    assert first.dataset.path.parent == tmp_path / "folded" / "shop"
    assert validate(first.dataset.path) == []
    again = fold_in(tmp_path, named(), export(1, 2))
    assert (again.num_changes, again.seq_before, again.dataset.path) == (0, 2, first.dataset.path)
    second = fold_in(tmp_path, named(), export(1, 2, 3, trimmed_to=2))
    assert (second.num_changes, second.seq_before, second.dataset.num_items) == (1, 2, 57)
    assert second.dataset.manifest.changes_seq == 3
    assert named().num_items == 60, "what callers have put there stays as it is"


def test_what_was_made_of_other_data_does_not_count(tmp_path, named, export):
    fold_in(tmp_path, named(), export(1))
    path = named().path
    manifest = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps({**manifest, "description": "another day"}))
    made = fold_in(tmp_path, named(), export(1, 2))
    assert (made.num_changes, made.seq_before, made.dataset.manifest.description) == (2, 0, "another day")
    (path / "dataset.json").write_text(json.dumps({**manifest, "description": "another day", "changes_seq": 2}))
    assert fold_in(tmp_path, one := named(), export(1, 2)).dataset is one, "it has them from elsewhere"
    (path / "dataset.json").write_text(json.dumps({**manifest, "description": "the day after"}))
    for trimmed in (export(1, 2, trimmed_to=2), export(1, 2, 3, trimmed_to=2)):
        with pytest.raises(ValueError, match="those up to 0: fold into a folder that has those in between"):
            fold_in(tmp_path, named(), trimmed)


def test_the_last_two_are_kept_and_what_was_half_written_is_removed(tmp_path, named, export):
    for last in range(1, 4):
        fold_in(tmp_path, named(), export(*range(1, last + 1)))
    assert [name.split("-")[1] for name in left(tmp_path)] == ["2", "3"]
    assert len(left(tmp_path)) == KEPT
    (tmp_path / "folded" / "other" / ".tmp-of-a-build-that-was-killed").mkdir(parents=True)
    fold_in(tmp_path, named(), export(1, 2, 3))
    assert [name.split("-")[1] for name in left(tmp_path)] == ["2", "3"]


def test_a_fold_that_fails_leaves_what_there_was(tmp_path, named, export):
    fold_in(tmp_path, named(), export(1))
    before = left(tmp_path)
    path = export(1, 2)
    path.write_text(path.read_text().replace('"op": "delete"', '"op": "put", "modalities": {"smell": [1.0]}'))
    with pytest.raises(ValueError, match=r"item 'i0002', modalities\.smell: the dataset has no such modality"):
        fold_in(tmp_path, named(), path)
    assert left(tmp_path) == before


def test_changes_of_another_store_are_told_by_their_number(tmp_path, named, export):
    fold_in(tmp_path, named(), export(1, 2, 3))
    with pytest.raises(ValueError, match="up to 3, and the service has had 2: they were counted elsewhere"):
        fold_in(tmp_path, named(), export(1, 2))
