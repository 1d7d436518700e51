"""Changes of items on their way into the next index: exported, folded into the data set, rebuilt, trimmed."""

import asyncio
import json
import shutil

import pytest
from typer.testing import CliRunner

from api_schemas.health import Ready
from index.cli import app as index_app
from index.dataset import Dataset
from index.dataset_validate import validate
from index.fold import fold, read_records
from index.store import ArtefactError, ArtifactStore
from index.trimmed import check_complete, note_trimmed, trimmed_to
from service.cli import app as service_app
from tests import bundles
from tests.conftest import told
from tests.integration.test_live_items import answers, vectors_of, where
from tests.integration.test_service_app import running


@pytest.fixture
def store(toy_store, tmp_path):
    """A store of its own, with the bundle and the snapshot of the toy data."""
    shutil.copytree(toy_store.store, tmp_path / "store")
    return tmp_path / "store"


async def follow(client, version):
    async def current():
        return (await client.get("/version")).json()["index"]

    for _ in range(2_000):
        if await current() == version:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(Ready.model_validate((await client.get("/readyz")).json()))


async def change_much(client, toy_store):
    bodies = {
        "new": {"modalities": vectors_of(toy_store, 20), "title": "New", "attributes": {"fresh": True, "year": 2026}},
        "i0030": {"modalities": vectors_of(toy_store, 21), "title": "Other", "categories": ["travel"]},
        "hidden": {"modalities": vectors_of(toy_store, 22), "available": False},
    }
    for item_id, body in bodies.items():
        assert (await client.put(f"/v1/items/{item_id}", json=body)).status_code == 200
    await client.patch("/v1/items/i0031", json={"categories": ["unheard"], "title": None})
    await client.patch("/v1/items/i0032", json={"available": False})
    await client.delete("/v1/items/i0033")


def plain(found) -> dict[str, dict[str, float]]:
    """Return scores by path and item, without those of popularity, which counts anew."""
    return {
        name: {item["item_id"]: round(item["score"], 4) for item in items if item["source"] != "popular"}
        for name, items in found.items()
    }


async def test_a_rebuild_folds_the_changes_in_and_answers_stay_what_they_are(toy_store, store, tmp_path):
    history = f"sqlite:{tmp_path}/events.db"
    export, folded = tmp_path / "items.ndjson", tmp_path / "folded"
    async with running(store, history=history, reload={"interval_s": 0.01}) as client:
        await change_much(client, toy_store)
        before = await answers(client)

        said = await asyncio.to_thread(told, service_app, "export-items", "--history", history, "--out", export)
        assert said.endswith("6 changed items, up to change 6")
        said = await asyncio.to_thread(
            told, index_app, "fold", "--data", toy_store.dataset, "--items", export, "--out", folded
        )
        assert "61 items (2 added, 2 changed, 1 deleted, 1 ignored), changes up to 6 are in it" in said
        assert validate(folded) == []
        again = fold(Dataset.open(folded), read_records(export), tmp_path / "again")
        assert (again.num_added, again.num_changed, again.num_deleted, again.num_ignored) == (0, 0, 0, 6)

        artefacts = ArtifactStore(store)
        version = await asyncio.to_thread(bundles.make_snapshot, artefacts, folded, bundle=toy_store.bundle)
        assert artefacts.open_snapshot(version)[1].changes_seq == 6
        await follow(client, version)
        after = await answers(client)
        assert plain(after) == plain(before)
        assert {item["item_id"] for item in after["popular"]} == {item["item_id"] for item in before["popular"]}
        assert (await client.get("/v1/items/hidden")).json()["available"] is False
        assert (await client.get("/v1/items/new")).json()["metadata"]["attributes"]["fresh"] is True

        # The index before knows nothing of the changes, so they are kept, and show when it is current again.
        trim = ("trim-items", "--history", history, "--store", store)
        assert (await asyncio.to_thread(told, service_app, *trim)).startswith("changes up to 0 are in the indexes; 6 ")
        artefacts.rollback()
        await follow(client, toy_store.snapshot)
        assert await answers(client) == before

        for _ in range(2):
            version = await asyncio.to_thread(bundles.make_snapshot, artefacts, folded, bundle=toy_store.bundle)
        await follow(client, version)
        said = await asyncio.to_thread(told, service_app, *trim)
        assert said == "changes up to 6 are in the indexes; 2 changed or hidden items are kept"
        with pytest.raises(ValueError, match="up to 0, and those up to 6 were trimmed: rebuild from a folder"):
            await asyncio.to_thread(bundles.make_snapshot, artefacts, toy_store.dataset, bundle=toy_store.bundle)
        assert artefacts.current() == version
        assert plain(await answers(client)) == plain(before)
        await client.patch("/v1/items/i0032", json={"available": True})
        assert where(await answers(client), "i0032") >= {"model", "popular"}
    async with running(store, history=history) as client:
        found = await answers(client)
        assert where(found, "i0032") >= {"model", "popular"}
        assert where(found, "hidden") | where(found, "i0033") == set()
        assert plain({"model": found["model"]})["model"].items() >= plain({"model": before["model"]})["model"].items()


async def test_who_still_answers_from_an_older_version_keeps_the_changes_that_are_trimmed_behind_it(
    toy_store, store, tmp_path
):
    history = f"sqlite:{tmp_path}/events.db"
    export, folded = tmp_path / "items.ndjson", tmp_path / "folded"
    async with running(store, history=history, reload={"interval_s": 3_600}) as client:
        await change_much(client, toy_store)
        before = await answers(client)
        await asyncio.to_thread(told, service_app, "export-items", "--history", history, "--out", export)
        fold(Dataset.open(toy_store.dataset), read_records(export), folded)
        for _ in range(2):
            await asyncio.to_thread(bundles.make_snapshot, ArtifactStore(store), folded, bundle=toy_store.bundle)
        trim = ("trim-items", "--history", history, "--store", store)
        assert (await asyncio.to_thread(told, service_app, *trim)).startswith("changes up to 6 are in the indexes; 2 ")
        await client.patch("/v1/items/i0040", json={"available": False})
        await client.patch("/v1/items/i0040", json={"available": True})
        assert (await client.get("/version")).json()["index"] == toy_store.snapshot
        assert await answers(client) == before


def test_a_rebuild_is_refused_only_where_changes_are_forgotten_that_the_dataset_lacks(toy_store, store):
    artefacts, old = ArtifactStore(store), Dataset.open(toy_store.dataset)
    assert trimmed_to(artefacts) == 0
    note_trimmed(artefacts, up_to=0)
    check_complete(artefacts, old)
    note_trimmed(artefacts, up_to=4)
    note_trimmed(artefacts, up_to=3)
    assert trimmed_to(artefacts) == 4, "what is forgotten does not come back"
    result = CliRunner().invoke(
        index_app,
        ["rebuild", "--store", str(store), "--bundle", toy_store.bundle, "--data", str(toy_store.dataset)],
    )
    assert result.exit_code == 1
    assert f"{toy_store.dataset}: has the changes of items up to 0, and those up to 4 were trimmed" in " ".join(
        result.output.split()
    )
    manifest = json.loads((toy_store.dataset / "dataset.json").read_text())
    elsewhere = store.parent / "elsewhere"
    shutil.copytree(toy_store.dataset, elsewhere)
    (elsewhere / "dataset.json").write_text(json.dumps({**manifest, "changes_seq": 4}))
    check_complete(artefacts, Dataset.open(elsewhere))
    (store / "TRIMMED").write_text('{"schema_version": 2, "changes_seq": 4}')
    with pytest.raises(ArtefactError, match="TRIMMED: schema_version"):
        check_complete(artefacts, old)


async def test_what_was_trimmed_can_not_be_folded_into_a_data_set_that_lacks_it(toy_store, tmp_path):
    file = tmp_path / "items.ndjson"
    file.write_text(json.dumps({"schema_version": 1, "end": True, "changes_seq": 9, "trimmed_to": 4, "num_items": 0}))
    with pytest.raises(ValueError, match="fold into a folder that has those in between"):
        fold(Dataset.open(toy_store.dataset), read_records(file), tmp_path / "out")


END = {"schema_version": 1, "end": True, "changes_seq": 9, "trimmed_to": 0, "num_items": 1}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"item_id": "a", "seq": 1, "op": "put"}], "no last line"),
        ([{"item_id": "a", "seq": 1, "op": "sell"}, END], r"line 1, op: "),
        (["{no json", END], r"line 1: "),
        (
            [{"item_id": "a", "seq": 1, "op": "put"}, {"item_id": "b", "seq": 2, "op": "put"}, END],
            "2 items, its end says 1",
        ),
        (
            [{"item_id": "a", "seq": 1, "op": "put", "modalities": {"visual": [1.0]}}, END],
            r"line 1, item 'a', modalities.visual",
        ),
        (
            [{"item_id": "a", "seq": 1, "op": "put", "modalities": {"smell": [1.0]}}, END],
            r"line 1, item 'a', modalities.smell",
        ),
        (
            [{"item_id": "a", "seq": 1, "op": "put", "attributes": {"year": "old"}}, END],
            r"line 1, item 'a', year: 'old'",
        ),
        ([END, END], r"line 2 comes after the end"),
    ],
)
def test_a_fold_names_the_line_that_is_wrong_and_leaves_nothing(toy_store, tmp_path, lines, said):
    file = tmp_path / "items.ndjson"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    with pytest.raises(ValueError, match=said):
        fold(Dataset.open(toy_store.dataset), read_records(file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_commands_say_in_one_line_what_is_wrong(tmp_path):
    missing = f"sqlite:{tmp_path}/nowhere/e.db"
    result = CliRunner().invoke(service_app, ["export-items", "--history", missing, "--out", str(tmp_path / "f")])
    assert (result.exit_code, "does not exist" in result.output) == (1, True)
    result = CliRunner().invoke(
        service_app, ["trim-items", "--history", f"sqlite:{tmp_path}/e.db", "--store", str(tmp_path)]
    )
    assert (result.exit_code, "no index is current" in result.output) == (1, True)
