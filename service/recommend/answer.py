"""The compute stages of many jobs at once: resolve, encode, search, filter, fall back. Plain functions, any thread.

Jobs that wait together are answered together: one look-up of ids, one encoder call, one search. What fails for one job
is that job's result alone.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from service.recommend.diversity import diversify, shown
from service.recommend.errors import DeadlineExceeded, NoServable
from service.recommend.filters import Picks
from service.recommend.history import Resolved, resolve
from service.recommend.job import Answer, Candidates, Job
from service.recommend.servable import Servable, ids_of
from service.recommend.sources import encode_users, popular_items, search_model
from service.recommend.types import ScoredItem, Source

MODEL_FAILED = "model_failed"
"""Degraded: the encoder or the search failed, the answer is what is popular."""

X = TypeVar("X")
Result = Answer | Exception


def answer_jobs(jobs: Sequence[Job]) -> list[Result]:
    """Answer every job; a result is an answer, or the exception that its caller gets."""
    return by_version(jobs, lambda job: job.servable, _answer)


def by_version(
    values: Sequence[X], servable_of: Callable[[X], Servable], run: Callable[[Servable, Sequence[X]], Sequence[Result]]
) -> list[Result]:
    """Return the result of every value; those of one version are run together, while it is kept open."""
    results: dict[int, Result] = {}
    by_servable: defaultdict[int, list[int]] = defaultdict(list)
    for position, value in enumerate(values):
        by_servable[id(servable_of(value))].append(position)
    for positions in by_servable.values():
        servable = servable_of(values[positions[0]])
        if not servable.retain():  # every caller that still waits holds it open: these have all gone
            results.update(dict.fromkeys(positions, NoServable("the version was closed")))
            continue
        try:
            results.update(zip(positions, run(servable, [values[p] for p in positions]), strict=True))
        finally:
            servable.release()
    return [results[position] for position in range(len(values))]


@dataclass(frozen=True, slots=True, eq=False)
class _Picked:
    """What one job gets to see, before ids and metadata are looked up."""

    resolved: Resolved
    picks: Picks
    source: Source
    candidates: Candidates | None = None
    failure: Exception | None = None


def _answer(servable: Servable, jobs: Sequence[Job]) -> list[Result]:
    results = _in_time(jobs, resolve(jobs, servable))
    for_model = [r for r in results if isinstance(r, Resolved) and r.basis]
    timings_ms: dict[str, float] = {}
    by_model = _model_picks(servable, for_model, timings_ms) if for_model else {}
    picked: list[_Picked] = []
    for result in results:
        if not isinstance(result, Resolved):
            continue
        outcome = by_model.get(id(result.job))
        query = result.job.query
        if not isinstance(outcome, list):
            popular = popular_items(servable, k=result.pool_size, final=result.filter)
            picks = diversify(servable, popular, k=query.k, diversity=query.diversity)
            picked.append(_Picked(result, picks, "popular", failure=outcome))
            continue
        picks, candidates = outcome, None
        if servable.ranker is not None:
            candidates = Candidates(outcome, query.k, query.min_score, result.past, query.diversity)
        if candidates is not None or query.diversity:
            picks = shown(servable, outcome, k=query.k, min_score=query.min_score, diversity=query.diversity)
        picked.append(_Picked(result, picks, "model", candidates))
    answers = iter(_build(servable, picked, timings_ms))
    return [next(answers) if isinstance(result, Resolved) else result for result in results]


def _in_time(jobs: Sequence[Job], results: Sequence[Resolved | Exception]) -> list[Resolved | Exception]:
    kept: list[Resolved | Exception] = []
    for job, result in zip(jobs, results, strict=True):
        try:
            job.deadline.check()
        except DeadlineExceeded as error:
            kept.append(error)
        else:
            kept.append(result)
    return kept


def _model_picks(
    servable: Servable, users: Sequence[Resolved], timings_ms: dict[str, float]
) -> dict[int, Picks | Exception]:
    """Return the model's picks by the id of the job, or what the model raised."""
    try:
        started = time.perf_counter()
        queries_BQD = encode_users(servable, [user.basis for user in users])
        encoded = time.perf_counter()
        timings_ms["encode"] = (encoded - started) * 1e3
        picks = search_model(servable, users, queries_BQD)
        timings_ms["search"] = (time.perf_counter() - encoded) * 1e3
    except Exception as error:  # noqa: BLE001 - a stage that fails degrades the answer, whatever it was
        if len(users) == 1:
            return {id(users[0].job): error}
        alone: dict[int, Picks | Exception] = {}  # one by one, so that a bad neighbour takes only itself away
        for user in users:
            alone |= _model_picks(servable, [user], timings_ms)
        return alone
    return {id(user.job): pick for user, pick in zip(users, picks, strict=True)}


def _build(servable: Servable, picked: Sequence[_Picked], timings_ms: Mapping[str, float]) -> list[Answer]:
    """Dress the picks of all jobs with ids and metadata, one look-up for all."""
    items = iter(dress(servable, [(one.picks, one.source) for one in picked]))
    return [
        Answer(
            items=next(items),
            rows=tuple([row for row, _ in one.picks]),
            basis=one.resolved.basis,
            user_state=one.resolved.user_state,
            unknown_item_ids=one.resolved.unknown_item_ids,
            candidates=one.candidates,
            degraded=() if one.failure is None else (MODEL_FAILED,),
            failure=one.failure,
            timings_ms=timings_ms,
        )
        for one in picked
    ]


def dress(servable: Servable, lists: Sequence[tuple[Picks, Source]]) -> list[tuple[ScoredItem, ...]]:
    """Return each list's lines with ids, ranks and metadata."""
    rows = np.array([row for picks, _ in lists for row, _ in picks], dtype=np.int64)
    looked_up = zip(ids_of(servable, rows), servable.metadata(rows), strict=True)
    # Each list takes its own lines from `looked_up`: zip asks `picks` first, and stops there.
    return [
        tuple(
            ScoredItem(item_id, rank, score, source, metadata)
            for rank, ((_, score), (item_id, metadata)) in enumerate(zip(picks, looked_up, strict=False), start=1)
        )
        for picks, source in lists
    ]
