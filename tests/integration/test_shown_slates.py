"""What was shown, in the whole service: kept after the answer, explained and continued by its id, gone when erased."""

from tests.http_app import assert_problem
from tests.integration.test_service_app import running

ASKED = {"user_id": "ann", "history": [{"item_id": "i0003"}], "k": 5}


def ids(answer) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


async def test_what_was_shown_is_explained_continued_and_erased(toy_store, history):
    async with running(toy_store.store, history=history) as client:
        first = (await client.post("/v1/recommendations", json=ASKED)).json()
        key = first["recommendation_id"]
        explained = (await client.post("/v1/explanations", json={"recommendation_id": key})).json()
        assert ids(explained) == ids(first)
        assert [one["item_id"] for one in explained["history"]] == ["i0003"]
        second = (await client.post("/v1/recommendations", json={**ASKED, "after": key})).json()
        whole = (await client.post("/v1/recommendations", json={**ASKED, "k": 10, "store": False})).json()
        assert ids(first) + ids(second) == ids(whole)
        again = await client.post("/v1/explanations", json={"recommendation_id": whole["recommendation_id"]})
        assert_problem(again, "not-found")
        assert (await client.delete("/v1/users/ann")).status_code == 204
        for path, body in (
            ("/v1/explanations", {"recommendation_id": key}),
            ("/v1/recommendations", {"after": second["recommendation_id"]}),
        ):
            assert_problem(await client.post(path, json=body), "not-found")


async def test_what_was_shown_is_found_after_a_restart(toy_store, history):
    async with running(toy_store.store, history=history) as client:
        first = (await client.post("/v1/recommendations", json=ASKED)).json()
    async with running(toy_store.store, history=history) as client:
        explained = await client.post("/v1/explanations", json={"recommendation_id": first["recommendation_id"]})
        assert ids(explained.json()) == ids(first)
