"""Every error is a problem of the closed list, documented, and tells nothing of our insides."""

import re

import pytest

from service.api.problems import PROBLEM_TYPES, PROBLEMS, reply_to
from service.recommend.errors import ItemNotFound, Overloaded, RecommendError, StoreUnavailable
from tests.http_app import Rig, assert_problem
from tests.skips import ROOT


def all_subclasses(kind):
    return {found for child in kind.__subclasses__() for found in {child, *all_subclasses(child)}}


def test_every_error_of_the_core_has_its_problem():
    ours = {kind for kind in all_subclasses(RecommendError) if kind.__module__ == "service.recommend.errors"}
    assert ours == set(PROBLEMS)


def test_every_problem_of_the_core_is_on_the_list_and_slugs_are_unique():
    assert set(PROBLEMS.values()) <= set(PROBLEM_TYPES)
    assert len({kind.slug for kind in PROBLEM_TYPES}) == len(PROBLEM_TYPES)


def test_every_problem_type_has_a_heading_in_the_documentation_with_its_status_and_title():
    text = (ROOT / "docs/errors.md").read_text()
    headings = re.findall(r"^## `([a-z-]+)` \((\d+)\)\n\n\*(.+)\*$", text, flags=re.MULTILINE)
    assert headings == [(kind.slug, str(kind.status), kind.title) for kind in PROBLEM_TYPES]


@pytest.mark.parametrize("kind", sorted(all_subclasses(RecommendError) & set(PROBLEMS), key=lambda kind: kind.__name__))
def test_what_can_be_tried_again_says_when(kind):
    error = kind("/k", "detail") if kind.__name__ == "InvalidQuery" else kind("x")
    reply = reply_to(error, instance="/x", request_id="r")
    assert (b"retry-after" in dict(reply.headers)) == (PROBLEMS[kind].status == 503)


def test_a_subclass_that_nobody_has_named_is_internal_not_something_else():
    class Novel(StoreUnavailable):
        pass

    assert reply_to(Novel("secret"), instance="/", request_id="r").kind.slug == "internal"


def test_the_core_s_words_about_the_caller_s_request_are_passed_on_and_words_about_ourselves_are_not():
    def detail(error):
        return reply_to(error, instance="/", request_id="r").problem.detail

    assert "'i9'" in detail(ItemNotFound("i9"))
    assert "secret" not in detail(StoreUnavailable("redis://secret@host"))
    assert "secret" not in detail(Overloaded("secret"))


class Broken:
    async def recommend(self, query, *, deadline):
        raise ZeroDivisionError("the secret of the house")


async def test_an_unknown_error_is_internal_with_the_request_id_and_nothing_else(caplog, capsys):
    async with Rig(recommender=Broken()).client() as client:
        response = await client.post("/v1/recommendations", json={}, headers={"x-request-id": "my-id"})
    problem = assert_problem(response, "internal")
    assert problem.request_id == "my-id"
    assert "secret" not in response.text
    assert "ZeroDivision" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "slug"),
    [
        ("GET", "/", "not-found"),
        ("GET", "/v1", "not-found"),
        ("POST", "/v1/recommendations/", "not-found"),
        ("GET", "/v1/items//x", "not-found"),
        ("GET", "/../etc/passwd", "not-found"),
        ("GET", "/v1/recommendations", "method-not-allowed"),
        ("DELETE", "/v1/events", "method-not-allowed"),
        ("POST", "/v1/popular", "method-not-allowed"),
        ("PUT", "/livez", "method-not-allowed"),
        ("OPTIONS", "/v1/explanations", "method-not-allowed"),
    ],
)
async def test_what_is_not_there_is_a_problem_too(method, path, slug):
    async with Rig().client() as client:
        response = await client.request(method, path)
    assert_problem(response, slug)
    assert ("allow" in response.headers) == (slug == "method-not-allowed")
