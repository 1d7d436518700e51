"""What may be forgotten of the changes of items: never what an index in use lacks, or a caller may come without."""

import json
import os
import shutil

import pytest

from api_schemas.aliases import AliasTarget
from api_schemas.jobs import IndexRequest
from index.aliases import AliasStore
from index.job_worker import build
from index.jobs import JobStore
from index.store import ArtifactStore
from index.trimmed import folded_in_use, note_trimmed, trimmed_to
from service import item_records
from service.adapters.sqlite_items import SqliteItems
from service.recommend.items import ItemChange
from tests.bundles import make_bundle, make_snapshot


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def copy(dataset, target, **said):
    """Copy a dataset whose manifest says something else."""
    shutil.copytree(dataset, target)
    manifest = json.loads((target / "dataset.json").read_text())
    (target / "dataset.json").write_text(json.dumps(manifest | said))
    return target


def test_what_any_index_in_use_lacks_is_not_forgotten(store, toy_dataset, tmp_path):
    assert folded_in_use(store) == 0
    bundle = make_bundle(store, toy_dataset)
    oldest = make_snapshot(store, toy_dataset, bundle=bundle)
    later = copy(toy_dataset, tmp_path / "later", changes_seq=4)
    middle = make_snapshot(store, later, bundle=bundle)
    assert folded_in_use(store) == 0, "a rollback would go to the oldest"
    last = make_snapshot(store, copy(toy_dataset, tmp_path / "last", changes_seq=7), bundle=bundle)
    assert folded_in_use(store) == 4
    aliases = AliasStore(store)
    aliases.set("home", AliasTarget(index=oldest))
    assert folded_in_use(store) == 0
    aliases.set("home", AliasTarget(index=last))
    assert folded_in_use(store) == 0, "a rollback of the alias would go to the oldest"
    aliases.set("home", AliasTarget(index=middle))
    assert folded_in_use(store) == 4


def test_a_build_allows_to_forget_what_was_folded_in_before_it_and_nothing_of_who_brings_new_data(
    store, toy_dataset, tmp_path
):
    model, jobs = make_bundle(store, toy_dataset), JobStore(store.root)

    def build_of(day, *seqs):
        jobs.submit(IndexRequest(model=model, data=day))
        turn = jobs.take_turn()
        lines = [{"item_id": f"i{seq:04d}", "seq": seq, "op": "delete"} for seq in seqs]
        end = {"schema_version": 1, "end": True, "changes_seq": seqs[-1], "trimmed_to": 0, "num_items": len(seqs)}
        jobs.changes_file(turn.job.id).write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, end]))
        data = tmp_path / day
        if not data.exists():
            copy(toy_dataset, data, description=day)
        job = build(jobs, turn.job, store=store, dataset=data, config=None)
        os.close(turn.lock)
        assert (job.state, job.error) == ("succeeded", None)
        assert not jobs.changes_file(job.id).exists()
        return trimmed_to(store)

    assert [build_of("monday", 1, 2), build_of("tuesday", 1, 2, 3), build_of("wednesday", 1, 2, 3)] == [0, 0, 0]
    assert build_of("wednesday", 1, 2, 3, 4) == 3
    assert build_of("wednesday", 1, 2, 3, 4, 5) == 4


async def test_changes_are_forgotten_in_steps_and_none_when_they_are_of_another_store(store, tmp_path, monkeypatch):
    monkeypatch.setattr(item_records, "_TRIM_STEP", 2)
    changes = SqliteItems(tmp_path / "events.db", max_items=10, read_timeout_s=5, write_timeout_s=5)
    await changes.change([ItemChange(f"i{number}", "delete") for number in range(1, 8)])
    assert await item_records.trim_noted(changes, store) == (0, 7)
    note_trimmed(store, up_to=5)
    assert await item_records.trim_noted(changes, store) == (5, 2)
    assert await item_records.trim_noted(changes, store) == (5, 2)
    note_trimmed(store, up_to=9)
    with pytest.raises(ValueError, match="after the latest change"):
        await item_records.trim_noted(changes, store)
    assert (await changes.changed_since(0, limit=10)).num_records == 2
    await changes.close()
