"""What every request goes through: its id, its times, its bounds, its end."""

import asyncio
import json

import pytest

from service.recommend.admission import Admission
from service.recommend.errors import DeadlineExceeded
from tests.http_app import Rig, assert_problem
from tests.processes import until

JSON = {"content-type": "application/json"}


async def test_an_id_is_given_and_one_that_was_brought_is_kept():
    async with Rig().client() as client:
        first, second = await client.get("/livez"), await client.get("/livez")
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        kept = await client.get("/livez", headers={"x-request-id": "Ab-1:2.3_4"})
        assert kept.headers["x-request-id"] == "Ab-1:2.3_4"


@pytest.mark.parametrize("brought", ["", "a b", "x" * 129, "ünï", "a\x01"])
async def test_an_id_that_could_break_a_log_is_replaced(brought):
    async with Rig().client() as client:
        answer = await client.get("/livez", headers={"x-request-id": brought.encode()})
        assert answer.headers["x-request-id"] not in ("", brought)


async def test_the_time_of_each_stage_is_in_the_header_and_in_the_metrics():
    rig = Rig()
    async with rig.client() as client:
        body = {"user_id": "u", "history": [{"item_id": "i3"}], "explain": "full"}
        response = await client.post("/v1/recommendations", json=body)
        stages = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
        assert list(stages) == ["store", "encode", "search", "explain"]
        assert all(float(milliseconds) >= 0 for milliseconds in stages.values())
        page = (await client.get("/metrics")).text
    for stage in stages:
        assert f'prismrec_stage_duration_seconds_count{{stage="{stage}"}} 1.0' in page
    assert 'prismrec_requests_total{route="/v1/recommendations",status="200"} 1.0' in page
    assert "prismrec_requests_in_flight 1.0" in page  # the one that asks


async def test_labels_never_hold_what_callers_send():
    rig = Rig()
    async with rig.client() as client:
        for number in range(30):
            await client.get(f"/v1/items/i{number}/similar")
            await client.get(f"/nothing/{number}")
            await client.request("GET", f"/v1/popular?k={-number}")
        page = (await client.get("/metrics")).text
    routes = {line.split('"')[1] for line in page.splitlines() if line.startswith("prismrec_requests_total{")}
    assert routes == {"/v1/items/{item_id}/similar", "/v1/popular", "other"}


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
async def test_only_json_is_read(media_type):
    async with Rig().client() as client:
        headers = {} if media_type is None else {"content-type": media_type}
        assert_problem(await client.post("/v1/events", content=b"{}", headers=headers), "unsupported-media-type")


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;"])
async def test_json_may_be_spelled_as_the_standard_allows(media_type):
    async with Rig().client() as client:
        response = await client.post("/v1/recommendations", content=b"{}", headers={"content-type": media_type})
        assert response.status_code == 200


async def test_a_compressed_body_is_refused_not_misread():
    async with Rig().client() as client:
        response = await client.post("/v1/events", content=b"\x1f\x8b", headers={**JSON, "content-encoding": "gzip"})
    assert_problem(response, "unsupported-media-type")


async def test_a_body_as_large_as_allowed_is_read_and_one_byte_more_is_not():
    async with Rig(max_body_bytes=1_000).client() as client:
        fits = b"{" + b" " * 998 + b"}"
        assert (await client.post("/v1/recommendations", content=fits, headers=JSON)).status_code == 200
        assert_problem(await client.post("/v1/recommendations", content=fits + b" ", headers=JSON), "payload-too-large")


async def call(rig, messages, headers=(), path="/v1/recommendations"):
    """Call the application with these messages of a body; return status, body and how many messages it took."""
    taken, sent = [], []

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        taken.append(messages[0])
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "server": ("localhost", 80),
        "state": {},
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers],
    }
    await rig.app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return (sent[0] if sent else None), body, len(taken)


def piece(body, *, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_length_that_is_too_large_is_refused_before_a_byte_is_read():
    start, body, taken = await call(Rig(max_body_bytes=1_000), [piece(b"{")], [(b"content-length", b"1001")])
    assert (start["status"], taken) == (413, 0)
    assert json.loads(body)["type"].endswith("payload-too-large")


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"9" * 40, b""])
async def test_a_length_that_is_none_is_refused(length):
    start, _, taken = await call(Rig(), [piece(b"{}", more=False)], [(b"content-length", length)])
    assert (start["status"], taken) == (413, 0)


async def test_a_stream_is_cut_off_where_it_becomes_too_large():
    start, _, taken = await call(Rig(max_body_bytes=1_000), [piece(b" " * 400) for _ in range(100)])
    assert (start["status"], taken) == (413, 3)


async def test_a_body_in_pieces_is_put_together():
    start, _, _ = await call(Rig(), [piece(b'{"k"'), piece(b""), piece(b": 3}", more=False)])
    assert start["status"] == 200


@pytest.mark.parametrize("messages", [[piece(b"{")], []], ids=["a piece", "nothing"])
async def test_a_body_that_does_not_come_is_given_up(messages):
    start, body, _ = await call(Rig(), messages, [(b"content-length", b"900")])
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]
    assert json.loads(body)["type"].endswith("request-timeout")


async def test_who_leaves_while_sending_is_not_answered():
    rig = Rig()
    start, _, _ = await call(rig, [piece(b'{"events": ['), {"type": "http.disconnect"}], path="/v1/events")
    assert start is None
    assert rig.store.events == {}


async def test_a_bound_on_requests_in_flight_refuses_at_once_and_says_when_to_come_back():
    rig = Rig(admission=Admission(2))
    rig.store.hang = True
    async with rig.client() as client:
        waiting = [asyncio.create_task(client.post("/v1/recommendations", json={"user_id": "u"})) for _ in range(2)]
        await until(lambda: rig.admission.in_flight == 2, what="both are in flight")
        response = await client.post("/v1/recommendations", json={"user_id": "u"})
        assert_problem(response, "overloaded")
        assert int(response.headers["retry-after"]) > 0
        assert (await client.get("/livez")).status_code == 200, "the loop turns"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert rig.admission.in_flight == 0


@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/explanations", "/v1/what-if"])
async def test_when_there_is_no_room_nothing_of_a_body_is_read(path):
    rig = Rig(admission=Admission(1))
    with rig.admission:
        start, body, taken = await call(rig, [piece(b"{")], [(b"content-length", b"900")], path=path)
    assert (start["status"], taken) == (503, 0)
    assert json.loads(body)["type"].endswith("overloaded")


async def test_when_there_is_no_room_each_request_of_a_batch_is_refused_by_itself():
    rig = Rig(admission=Admission(1))
    async with rig.client() as client:
        with rig.admission:
            response = await client.post("/v1/recommendations/batch", json={"requests": [{"user_id": "u"}, {"k": 0}]})
    assert [one["status"] for one in response.json()["results"]] == [503, 422]


async def test_a_caller_who_may_not_come_in_is_not_told_that_the_house_is_full():
    rig = Rig(admission=Admission(1))
    async with rig.client(address="10.0.0.1") as client:
        with rig.admission:
            assert_problem(await client.post("/v1/recommendations", json={}), "forbidden")


async def test_a_deadline_that_passes_is_504():
    class Late:
        async def recommend(self, query, *, deadline):
            assert 0 < deadline.remaining_s() <= 0.05
            raise DeadlineExceeded("late")

    async with Rig(recommender=Late()).client() as client:
        assert_problem(await client.post("/v1/recommendations", json={"timeout_ms": 50}), "deadline-exceeded")


async def test_nobody_gets_more_time_than_the_service_gives():
    class Asked:
        async def recommend(self, query, *, deadline):
            assert 4 < deadline.remaining_s() <= 5
            raise DeadlineExceeded("seen")

    async with Rig(recommender=Asked()).client() as client:
        assert_problem(await client.post("/v1/recommendations", json={"timeout_ms": 60_000}), "deadline-exceeded")


async def test_a_service_that_is_about_to_stop_says_so_and_closes_its_connections_after_the_answer():
    rig = Rig(draining=True)
    async with rig.client() as client:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.headers["connection"]) == (503, "close")
        answer = await client.post("/v1/recommendations", json={})
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_may_ask_with_head(path):
    async with Rig().client() as client:
        response = await client.head(path)
    assert (response.status_code, response.content) == (200, b"")


async def test_the_documentation_page_loads_nothing_from_elsewhere():
    async with Rig().client() as client:
        response = await client.get("/docs")
        document = await client.get("/openapi.json")
    assert document.json()["openapi"].startswith("3.1")
    assert "POST /v1/explanations" in response.text
    assert "<script" not in response.text
    assert "http://" not in response.text.replace("http://localhost", "")
    assert response.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/v1/recommendations", b'{"user_id": "u", "history": [{"item_id": "i3"}], "k": 2}'),
        ("POST", "/v1/recommendations", b'{"user_id": 3}'),
        ("POST", "/v1/recommendations", b"not JSON"),
        ("GET", "/v1/recommendations", b""),
        ("POST", "/v1/recommendations/batch", b'{"requests": [{"user_id": "u"}]}'),
        ("POST", "/v1/explanations", b'{"user_id": "u", "history": [{"item_id": "i3"}]}'),
        ("POST", "/v1/what-if", b'{"history": [{"item_id": "i3"}], "without": {"modalities": ["text"]}}'),
    ],
)
async def test_the_short_way_to_a_route_answers_as_the_long_one(method, path, content):
    rig, answers = Rig(), []
    assert path in rig.app.short
    for short in (rig.app.short, {}):
        rig.app.short = short
        async with rig.client() as client:
            headers = {"content-type": "application/json", "x-request-id": "one"}
            answer = await client.request(method, path, content=content, headers=headers)
        said = answer.json()
        for one in (said, *[result.get("body") or {} for result in said.get("results", ())]):
            one.pop("took_ms", None), one.pop("recommendation_id", None)
        kept = {
            name: value for name, value in answer.headers.items() if name not in ("server-timing", "content-length")
        }
        answers.append((answer.status_code, kept, said))
    assert answers[0] == answers[1]
    route = path if method == "POST" else "other"
    assert f'prismrec_requests_total{{route="{route}",status="{answers[0][0]}"}} 2.0' in rig.metrics.page().decode()
