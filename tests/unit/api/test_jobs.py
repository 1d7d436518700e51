"""`POST /v1/indexes` and `/v1/jobs` over a real store; the builds are in tests/integration/test_builds.py."""

import pytest
from structlog.testing import capture_logs

from api_schemas.jobs import Job, Jobs
from index.store import ArtifactStore
from service.api.access import KeyAccess
from service.api.keys import KeyRing, new_key
from tests.bundles import make_bundle
from tests.http_app import Rig, assert_problem


@pytest.fixture
def store(tmp_path, toy_dataset) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "store")
    (store.root / "data").mkdir(parents=True)
    (store.root / "data" / "shop").symlink_to(toy_dataset)
    return store


@pytest.fixture
def body(store, toy_dataset):
    return {"model": make_bundle(store, toy_dataset), "data": "shop"}


async def test_a_build_is_queued_shown_listed_and_cancelled(store, body):
    async with Rig(artifacts=store).client() as client:
        made = await client.post("/v1/indexes", json=body)
        assert made.status_code == 202
        job = Job.model_validate_json(made.content, strict=True)
        assert made.headers["location"] == f"/v1/jobs/{job.id}"
        assert (job.state, job.request.make_current, job.progress, job.eta_s) == ("queued", True, None, None)
        shown = await client.get(made.headers["location"])
        assert shown.json() == made.json()
        second = (await client.post("/v1/indexes", json={**body, "make_current": False})).json()
        listed = Jobs.model_validate_json((await client.get("/v1/jobs")).content, strict=True)
        assert [one.id for one in listed.jobs] == [second["id"], job.id]
        assert len((await client.get("/v1/jobs?limit=1")).json()["jobs"]) == 1
        cancelled = await client.post(f"/v1/jobs/{job.id}/cancel")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        assert_problem(await client.post(f"/v1/jobs/{job.id}/cancel"), "conflict")


async def test_more_builds_than_may_wait_are_a_conflict(store, body):
    async with Rig(artifacts=store).client() as client:
        for _ in range(2):
            assert (await client.post("/v1/indexes", json=body)).status_code == 202
        assert "wait" in assert_problem(await client.post("/v1/indexes", json=body), "conflict").detail


@pytest.mark.parametrize(
    ("change", "pointers"),
    [
        ({"model": "bundle-20200101t000000z-000000"}, ["/model"]),
        ({"ranker": "bundle-20200101t000000z-000000"}, ["/ranker"]),
        ({"data": "elsewhere", "model": "bundle-x"}, ["/model", "/data"]),
        ({"model": "../x"}, ["/model"]),
        ({"model": "snapshot-20200101t000000z-000000"}, ["/model"]),
        ({"data": "../data/shop"}, ["/data"]),
        ({"data": ".."}, ["/data"]),
        ({"data": ""}, ["/data"]),
        ({"make_current": "no"}, ["/make_current"]),
        ({"config": {}}, ["/config"]),
    ],
)
async def test_a_build_of_what_is_not_there_names_the_field(store, body, change, pointers):
    async with Rig(artifacts=store).client() as client:
        assert_problem(await client.post("/v1/indexes", json={**body, **change}), "validation-error", *pointers)
        assert (await client.get("/v1/jobs")).json() == {"jobs": []}


async def test_a_job_that_is_not_there_is_not_found(store):
    async with Rig(artifacts=store).client() as client:
        path = "/v1/jobs/job-20260101t000000000000z-000000"
        assert_problem(await client.get(path), "not-found")
        assert_problem(await client.post(f"{path}/cancel"), "not-found")
        assert_problem(await client.get("/v1/jobs/..%2f..%2fCURRENT"), "not-found")
        assert_problem(await client.get("/v1/jobs/x"), "validation-error", "{job_id}")


async def test_a_store_that_can_not_be_written_to_is_said(store, body):
    (store.root / "jobs").write_text("no folder")
    async with Rig(artifacts=store).client() as client:
        problem = assert_problem(await client.post("/v1/indexes", json=body), "conflict")
    assert str(store.root) not in problem.detail


async def test_the_log_says_who_asked_for_a_build(store, body, tmp_path):
    key, line = new_key(name="nightly", scopes=["admin"])
    (tmp_path / "keys").write_text(line)
    async with Rig(artifacts=store, access=KeyAccess(KeyRing(tmp_path / "keys"))).client() as client:
        with capture_logs() as logs:
            made = await client.post("/v1/indexes", json=body, headers={"x-api-key": key})
            await client.post(f"{made.headers['location']}/cancel", headers={"x-api-key": key})
    told = [(line["event"], line["caller"], line["job_id"]) for line in logs]
    job_id = made.json()["id"]
    assert told == [("build_queued", "nightly", job_id), ("build_cancelled", "nightly", job_id)]
    assert key not in str(logs)
