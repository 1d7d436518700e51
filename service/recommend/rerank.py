"""Re-ranking: a second model orders what the first one has retrieved. Plain functions, any thread.

Answers that wait together are re-ranked together: users are encoded in one call, items dressed in one look-up. Scores
are made user by user: a ranker scores every user with every candidate, and each user has candidates of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.recommend.answer import Result, by_version, dress
from service.recommend.deadline import Deadline
from service.recommend.diversity import shown
from service.recommend.errors import DeadlineExceeded
from service.recommend.filters import Picks
from service.recommend.history import basis_for
from service.recommend.job import Answer, Basis, Candidates, Job
from service.recommend.servable import Ranker, Servable
from service.recommend.sources import encode_users
from service.recommend.types import Vectors


@dataclass(frozen=True, slots=True, eq=False)
class Reranking:
    """An answer with candidates, which the ranker of the job's version may order anew."""

    job: Job
    answer: Answer
    candidates: Candidates
    deadline: Deadline
    """Earlier than the job's, so that the answer as it is still comes in time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ordered:
    """What is shown, and what the ranker went by."""

    picks: Picks
    basis: Basis


def has_time(ranker: Ranker, candidates: Candidates, deadline: Deadline) -> bool:
    """Tell whether so many candidates are likely to be ordered in the time that is left."""
    share = max(1.0, len(candidates.picks) / ranker.num_candidates)
    return deadline.remaining_s() > share * ranker.rerank_cpu_s


def rerank(rerankings: Sequence[Reranking]) -> list[Result]:
    """Return each answer in the ranker's order, or as it was where the ranker has nothing to go by for the user.

    What fails, or would be late, for one is that one's result alone.
    """
    return by_version(rerankings, lambda one: one.job.servable, _rerank)


def _rerank(servable: Servable, rerankings: Sequence[Reranking]) -> list[Result]:
    ranker = servable.ranker
    if ranker is None:
        return [one.answer for one in rerankings]
    ordered = _ordered(ranker, rerankings)
    items = iter(dress(servable, [(one.picks, "model") for one in ordered if isinstance(one, _Ordered)]))
    return [
        replace(
            one.answer,
            items=next(items),
            rows=tuple([row for row, _ in done.picks]),
            basis=done.basis,
            ranker=ranker,
        )
        if isinstance(done, _Ordered)
        else done or one.answer
        for one, done in zip(rerankings, ordered, strict=True)
    ]


def _ordered(ranker: Ranker, rerankings: Sequence[Reranking]) -> list[_Ordered | Exception | None]:
    """Return what the ranker makes of each; None: it has nothing to go by."""
    try:
        bases = [basis_for(ranker, one.candidates.past, one.job.query) for one in rerankings]
        usable = [basis for basis in bases if basis]
        queries = iter(encode_users(ranker, usable) if usable else ())
    except Exception as error:  # noqa: BLE001 - handed to the caller, whose answer is as it was
        if len(rerankings) == 1:
            return [error]
        return [alone for one in rerankings for alone in _ordered(ranker, [one])]
    return [
        _order(ranker, one, basis, next(queries)) if basis else None
        for one, basis in zip(rerankings, bases, strict=True)
    ]


def _order(ranker: Ranker, one: Reranking, basis: Basis, queries_QD: Vectors) -> _Ordered | Exception:
    candidates = one.candidates
    if not has_time(ranker, candidates, one.deadline):
        return DeadlineExceeded("there is no time left to re-rank")
    rows = np.array([row for row, _ in candidates.picks], dtype=np.int64)
    try:
        scores = ranker.score(queries_QD, rows)
    except Exception as error:  # noqa: BLE001 - as above
        return error
    if not np.isfinite(scores).all():
        return FloatingPointError("the ranker returned NaN or infinity")
    order = np.argsort(-scores, kind="stable")  # equal ones keep the retriever's order
    picks = list(zip(rows[order].tolist(), scores[order].tolist(), strict=True))
    best = shown(
        one.job.servable,
        picks,
        k=candidates.k,
        min_score=candidates.min_score,
        diversity=candidates.diversity,
    )
    return _Ordered(best, basis)
