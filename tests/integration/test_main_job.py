"""The main job end to end: data, training, export, rebuild, service. What was planted in the data comes back."""

from contextlib import asynccontextmanager

import httpx2
import numpy as np
import pytest

from index.dataset import Dataset
from service.main import create_app
from service.settings import load_settings
from tests import toy

K = 5
HISTORY = 8


@asynccontextmanager
async def client(published, folder):
    app = create_app(load_settings(store=published.store, history=f"sqlite:{folder / 'events.db'}"))
    transport = httpx2.ASGITransport(app=app, client=("127.0.0.1", 1))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        yield http


@pytest.fixture
async def http(trained, tmp_path):
    async with client(trained, tmp_path) as http:
        yield http


@pytest.fixture(scope="module")
def planted(trained):
    """For each modality and style: items to have clicked, and the ones that such a user would click next."""
    truth = toy.truth(trained.dataset)
    ids = np.array(Dataset.open(trained.dataset).item_ids)
    draw = np.random.default_rng(0)
    cases = []
    for modality, styles in truth.item_style.items():
        for style in range(toy.NUM_STYLES):
            liked = draw.permutation(np.flatnonzero(styles == style))
            cases.append((modality, ids[liked[:HISTORY]].tolist(), set(ids[liked[HISTORY:]].tolist())))
    return cases


def body(history, **more):
    return {"history": [{"item_id": item_id} for item_id in history], "k": K, **more}


async def ask(http, path, body):
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_items_of_the_planted_style_come_back(http, planted):
    precision = []
    for _, history, wanted in planted:
        answer = await ask(http, "/v1/recommendations", body(history))
        found = [item["item_id"] for item in answer["items"]]
        assert len(found) == K
        assert not set(found) & set(history)
        assert {item["source"] for item in answer["items"]} == {"model"}
        precision.append(len(set(found) & wanted) / K)
    # By chance it is about the share of unseen items that have the style: 12 of 52.
    assert np.mean(precision) > 0.7, precision


async def test_an_answer_names_the_model_and_the_index_that_made_it(http, trained):
    answer = await ask(http, "/v1/recommendations", body([]))
    assert answer["model"] == {"name": "demure", "version": trained.bundle}
    assert answer["index"]["version"] == trained.snapshot


async def test_a_full_answer_says_how_much_each_past_item_and_each_modality_of_it_weighs(http, planted):
    _, history, _ = planted[0]
    answer = await ask(http, "/v1/recommendations", body(history, explain="full"))
    assert sum(one["share"] for one in answer["modality_interest"]) == pytest.approx(1)
    for item in answer["items"]:
        told = item["explanation"]["history"]
        assert sorted(one["item_id"] for one in told) == sorted(history)
        assert all(set(one["by_modality"]) <= set(toy.MODALITIES) for one in told)


@pytest.mark.parametrize("method", ["decomposition", "shapley"])
async def test_an_additive_explanation_sums_up_to_the_score(http, planted, method):
    for _, history, _ in planted[::4]:
        answer = await ask(http, "/v1/explanations", body(history, method=method))
        assert answer["method"] == method
        assert len(answer["items"]) == K
        for item in answer["items"]:
            assert item["additive"]
            total = sum(one["value"] for one in item["contributions"]) + item["residual"]
            assert total == pytest.approx(item["score"], abs=1e-4)


async def test_an_explanation_carries_the_faithfulness_that_was_measured_at_release(http, planted):
    answer = await ask(http, "/v1/explanations", body(planted[0][1]))
    assert {"deletion_auc", "insertion_auc"} <= set(answer["faithfulness"])
    assert answer["caveats"]


async def test_an_item_that_the_catalogue_does_not_know_counts_by_the_vectors_that_it_brings(http, planted, trained):
    dataset = Dataset.open(trained.dataset)
    row_of = {item_id: row for row, item_id in enumerate(dataset.item_ids)}
    _, history, _ = planted[0]
    unknown = [
        {
            "item_id": f"new-{number}",
            "modalities": {
                name: dataset.features(name)[row_of[item_id]].astype(float).tolist()
                for name in toy.MODALITIES
                if dataset.presence(name)[row_of[item_id]]
            },
        }
        for number, item_id in enumerate(history)
    ]
    known = await ask(http, "/v1/recommendations", body(history, exclude_item_ids=history))
    brought = await ask(http, "/v1/recommendations", {"history": unknown, "k": K, "exclude_item_ids": history})
    assert brought["events_used"] == HISTORY
    assert [item["item_id"] for item in brought["items"]] == [item["item_id"] for item in known["items"]]


async def test_what_is_similar_in_one_modality_has_its_style_in_that_modality(http, trained):
    truth = toy.truth(trained.dataset)
    ids = Dataset.open(trained.dataset).item_ids
    share = {}
    for modality, styles in truth.item_style.items():
        rows = np.flatnonzero(styles >= 0)[::4]
        same = []
        for row in rows:
            response = await http.get(f"/v1/items/{ids[row]}/similar", params={"k": K, "modality": modality})
            assert response.status_code == 200, response.text
            found = [ids.index(item["item_id"]) for item in response.json()["items"]]
            assert row not in found
            same.append(np.mean(styles[found] == styles[row]))
        share[modality] = np.mean(same)
    assert min(share.values()) > 1.2 / toy.NUM_STYLES, share
    assert np.mean(list(share.values())) > 2 / toy.NUM_STYLES, share
