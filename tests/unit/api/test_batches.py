"""`POST /v1/recommendations/batch`: each request is judged, admitted and answered as if it came alone."""

import pytest

from api_schemas.recommend import BatchAnswer
from service.recommend.admission import Admission
from service.recommend.errors import DeadlineExceeded
from tests.http_app import Rig, assert_problem
from tests.unit.api.test_answers import read

BATCH = "/v1/recommendations/batch"
ASKED = {"history": [{"item_id": "i3"}], "k": 3}


async def ask(rig: Rig, requests, **rest):
    async with rig.client() as client:
        return await client.post(BATCH, json={"requests": requests, **rest})


def ids(body):
    return [item["item_id"] for item in body["items"]]


async def test_a_batch_gives_each_what_it_would_have_got_alone_in_its_order():
    rig = Rig()
    requests = [{"history": [{"item_id": f"i{row}"}], "k": 1 + row % 4} for row in range(40)]
    answer = read(BatchAnswer, await ask(rig, requests))
    async with rig.client() as client:
        for request, result in zip(requests, answer["results"], strict=True):
            alone = (await client.post("/v1/recommendations", json=request)).json()
            assert result["status"] == 200
            assert ids(result["body"]) == ids(alone)
    assert len({result["body"]["recommendation_id"] for result in answer["results"]}) == len(requests)


async def test_a_bad_request_spoils_only_itself_and_names_its_field_in_the_whole_body():
    bad = [{"k": 0}, {"history": [{"item_id": "new", "modalities": {"smell": [1.0]}}]}, {"unheard": 1}, 7]
    rig = Rig()
    results = (await ask(rig, [ASKED, *bad, ASKED])).json()["results"]
    assert [result["status"] for result in results] == [200, 422, 422, 422, 422, 200]
    pointers = [result["problem"]["errors"][0]["pointer"] for result in results[1:5]]
    assert pointers == [
        "/requests/1/k", "/requests/2/history/0/modalities/smell", "/requests/3/unheard", "/requests/4"
    ]  # fmt: skip
    assert {result["problem"]["type"] for result in results[1:5]} == {"urn:prismrec:problem:validation-error"}
    assert ids(results[0]["body"]) == ids(results[5]["body"])


class Late:
    """A recommender that no time suffices for."""

    def __init__(self):
        self.deadlines = []

    async def recommend(self, query, *, deadline):
        self.deadlines.append(deadline)
        raise DeadlineExceeded


async def test_the_deadline_of_a_batch_is_for_all_and_one_of_a_request_can_only_be_earlier():
    late = Late()
    requests = [ASKED, {**ASKED, "timeout_ms": 4_000}, {**ASKED, "timeout_ms": 1_000}]
    results = (await ask(Rig(recommender=late), requests, timeout_ms=3_000)).json()["results"]
    assert [result["status"] for result in results] == [504, 504, 504]
    first, second, third = late.deadlines
    assert first == second
    assert 1.5 < first.at - third.at < 2


async def test_every_request_of_a_batch_counts_as_one_in_flight():
    rig = Rig(admission=Admission(3))
    rig.store.hang = True  # until its time is up: so all are in flight at once
    results = (await ask(rig, [{"user_id": "ann"}] * 5, timeout_ms=5_000)).json()["results"]
    assert [result["status"] for result in results] == [200, 200, 200, 503, 503]
    assert rig.admission.in_flight == 0


async def test_what_breaks_is_internal_and_tells_nothing():
    rig = Rig()
    rig.servable.select = None
    results = (await ask(rig, [{**ASKED, "filter": {"categories_any": ["c1"]}}, ASKED])).json()["results"]
    assert [result["status"] for result in results] == [500, 200]
    assert "NoneType" not in str(results[0])


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/requests"),
        ({"requests": []}, "/requests"),
        ({"requests": {}}, "/requests"),
        ({"requests": [ASKED] * 101}, "/requests"),
        ({"requests": [ASKED], "timeout_ms": 0}, "/timeout_ms"),
        ({"requests": [{"k": 0}], "k": 3}, "/k"),
        ([ASKED], ""),
    ],
)
async def test_a_batch_that_is_wrong_as_a_whole_is_refused_as_a_whole(body, pointer):
    rig = Rig()
    async with rig.client() as client:
        response = await client.post(BATCH, json=body)
    problem = assert_problem(response, "validation-error")
    assert pointer in [error.pointer for error in problem.errors]
    assert rig.servable.calls == []


async def test_a_hundred_requests_fit():
    rig = Rig()
    assert len((await ask(rig, [ASKED] * 100)).json()["results"]) == 100
