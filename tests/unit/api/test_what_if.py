"""`POST /v1/what-if`: the answer is what its schema says, and what is wrong is named."""

import pytest

from api_schemas.what_if import WhatIfAnswer
from tests.http_app import Rig, assert_problem
from tests.unit.api.test_answers import read

PATH = "/v1/what-if"
ASKED = {"history": [{"item_id": "i3"}, {"item_id": "i9"}], "k": 6}


async def test_the_answer_is_what_its_schema_says():
    rig = Rig()
    async with rig.client() as client:
        response = await client.post(PATH, json={**ASKED, "without": {"item_ids": ["i9"], "modalities": ["text"]}})
        plain = (await client.post("/v1/recommendations", json=ASKED)).json()
    answer = read(WhatIfAnswer, response)
    assert [item["item_id"] for item in answer["before"]["items"]] == [item["item_id"] for item in plain["items"]]
    assert (answer["before"]["events_used"], answer["after"]["events_used"]) == (2, 1)
    ranks = {item["item_id"]: item["rank"] for item in answer["after"]["items"]}
    assert all(change["rank_after"] == ranks.get(change["item_id"]) for change in answer["changes"])
    assert "ounterfactual" in answer["caveats"][0]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (ASKED, "/without"),
        ({**ASKED, "without": {}}, "/without"),
        ({**ASKED, "without": {"modalities": ["Not One"]}}, "/without/modalities/0"),
        ({**ASKED, "without": {"modalities": ["smell"]}}, "/without/modalities/0"),
        ({**ASKED, "without": {"item_ids": ["i"] * 501}}, "/without/item_ids"),
        ({**ASKED, "without": {"users": ["i"]}}, "/without/users"),
        ({**ASKED, "without": {"item_ids": ["i3"]}, "explain": "full"}, "/explain"),
    ],
)
async def test_a_bad_request_names_its_field(body, pointer):
    async with Rig().client() as client:
        assert_problem(await client.post(PATH, json=body), "validation-error", pointer)
