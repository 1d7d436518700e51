"""From a job's stored and inline behaviour to rows: what is encoded, what was seen, what the catalogue does not know.

A subject's events come first, the inline history follows. An item that occurs more than once counts once, at its latest
place: viewing, opening and buying one thing is one interest, and must not push others out of the L places.

Where a model reads ages, they are counted from the latest behaviour that is encoded: no clock is asked, and the same
history gives the same answer at any time. What comes without a time is as old as what comes before it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.recommend.diversity import pool_size
from service.recommend.errors import InvalidQuery
from service.recommend.filters import FinalFilter
from service.recommend.job import Basis, Job, Past, UsedHistory
from service.recommend.ports import StoredHistory
from service.recommend.servable import Ages, EncodedItems, Model, Servable
from service.recommend.types import HistoryItem, ItemId, Query, UserState, Vectors, user_id_of
from service.recommend.what_if import left_of


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """A job whose ids have become rows."""

    job: Job
    past: Past
    basis: Basis
    """Of the model that retrieves."""
    candidate_rows: tuple[int, ...] | None
    """The known ones of the query's candidates, each once, in the order given."""
    filter: FinalFilter
    unknown_item_ids: tuple[ItemId, ...]

    @property
    def pool_size(self) -> int:
        """How many rows the slate is chosen among: more than are shown, where it shall be diverse."""
        query = self.job.query
        return pool_size(query.k) if query.diversity else query.k

    @property
    def num_candidates(self) -> int:
        """How many rows the search shall find: a ranker, if there is one, chooses among more than are shown."""
        ranker = self.job.servable.ranker
        return self.pool_size if ranker is None else max(self.pool_size, ranker.num_candidates)

    @property
    def search_filter(self) -> FinalFilter:
        """What the search may find. How much an item has to score is for the model to say whose scores are shown."""
        if self.job.servable.ranker is None or self.filter.min_score is None:
            return self.filter
        return replace(self.filter, min_score=None)

    @property
    def user_state(self) -> UserState:
        """Anonymous without a subject; known with a usable history or a learned vector; else cold."""
        if self.job.query.subject is None:
            return "anonymous"
        return "known" if self.basis else "cold"


def check_query(query: Query, servable: Servable) -> None:
    """Find what this version can not answer, before anything is queued next to other callers' work.

    Raises:
        InvalidQuery: Names the field.
    """
    if query.k < 1:
        raise InvalidQuery("/k", f"{query.k} is below 1")
    if not 0 <= query.diversity <= 1:
        raise InvalidQuery("/diversity", f"{query.diversity} does not lie between 0 and 1")
    if query.min_score is not None and not math.isfinite(query.min_score):
        raise InvalidQuery("/min_score", "is not a finite number")
    methods = servable.methods if servable.ranker is None else servable.ranker.methods
    if query.method is not None and query.method not in methods:
        known = ", ".join(methods)
        raise InvalidQuery("/method", f"{query.method!r} is not offered by this model; it offers {known}")
    for position, name in enumerate(query.without.modalities if query.without is not None else ()):
        if name not in servable.parts:
            known = ", ".join(servable.parts)
            raise InvalidQuery(f"/without/modalities/{position}", f"is not a modality of this model; it has {known}")
    for position, item in enumerate(query.history or ()):
        if item.modalities:
            check_vectors(item.modalities, servable.modalities, pointer=f"/history/{position}/modalities")


def check_vectors(vectors: Mapping[str, Vectors], widths: Mapping[str, int], *, pointer: str) -> None:
    """Find vectors that a model can not read; `pointer` leads to them in the request.

    Raises:
        InvalidQuery: Names the field.
    """
    for name, vector in vectors.items():
        field = f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
        width = widths.get(name)
        if width is None:
            raise InvalidQuery(field, f"is not a modality of this model; it has {', '.join(widths)}")
        if vector.shape != (width,):
            raise InvalidQuery(field, f"has {vector.size} numbers, this model's {name} has {width}")
        if not np.isfinite(vector).all():
            raise InvalidQuery(field, "holds a number that is not finite as float32")


def resolve(jobs: Sequence[Job], servable: Servable) -> list[Resolved | Exception]:
    """Turn the ids of all jobs into rows with one look-up; what fails for one job is that job's result alone."""
    item_ids: list[str] = []
    ends: list[int] = []
    for job in jobs:
        item_ids += job.stored.item_ids
        item_ids += [item.item_id for item in job.query.history or ()]
        item_ids += job.query.exclude_item_ids
        item_ids += job.stored.blocked_item_ids
        item_ids += job.query.candidate_item_ids or ()
        ends.append(len(item_ids))
    rows = servable.rows(item_ids).tolist() if item_ids else []
    results: list[Resolved | Exception] = []
    start = 0
    for job, end in zip(jobs, ends, strict=True):
        try:
            results.append(_resolve_one(job, servable, rows[start:end]))
        except Exception as error:  # noqa: BLE001 - handed to the caller whose job it is
            results.append(error)
        start = end
    return results


def resolve_one(job: Job) -> Resolved:
    """Turn the ids of one job into rows.

    Raises:
        Exception: What failed.
    """
    (resolved,) = resolve([job], job.servable)
    if isinstance(resolved, Exception):
        raise resolved
    return resolved


def _resolve_one(job: Job, servable: Servable, rows: list[int]) -> Resolved:
    query = job.query
    inline = query.history or ()
    num_stored, num_inline = len(job.stored.item_ids), len(inline)
    num_excluded = len(query.exclude_item_ids) + len(job.stored.blocked_item_ids)
    past_rows = rows[: num_stored + num_inline]
    excluded_rows = rows[len(past_rows) : len(past_rows) + num_excluded]
    candidate_rows = rows[len(past_rows) + num_excluded :]

    past_ids = [*job.stored.item_ids, *(item.item_id for item in inline)] if inline else list(job.stored.item_ids)
    raw, encoded, usable_rows = _encode_brought(servable, inline, past_rows, num_stored)
    unknown = [item_id for item_id, row in zip(past_ids, past_rows, strict=True) if row < 0] if -1 in past_rows else []

    known_candidates: tuple[int, ...] | None = None
    if query.candidate_item_ids is not None:
        hidden = servable.hidden_rows
        known_candidates = tuple(dict.fromkeys(row for row in candidate_rows if row >= 0 and row not in hidden))
        if -1 in candidate_rows:
            pairs = zip(query.candidate_item_ids, candidate_rows, strict=True)
            unknown += [item_id for item_id, row in pairs if row < 0]

    blocked = set(excluded_rows)
    if not query.include_seen:
        blocked.update(past_rows)
    blocked.discard(-1)
    past = _last_unique(past_ids, usable_rows, raw)
    if servable.reads_ages or (servable.ranker is not None and servable.ranker.reads_ages):
        time_of = dict(zip(usable_rows, _times(job.stored, inline), strict=True))  # that of the latest place
        past = replace(past, occurred_at=tuple([time_of[row] for row in past.rows]))
    return Resolved(
        job=job,
        past=past,
        basis=basis_for(servable, past, query, encoded),
        candidate_rows=known_candidates,
        filter=FinalFilter(
            blocked=blocked,
            allowed=servable.select(query.filter) if query.filter else None,
            only=None if known_candidates is None else frozenset(known_candidates),
            min_score=query.min_score,
        ),
        unknown_item_ids=tuple(dict.fromkeys(unknown)),
    )


def basis_for(model: Model, past: Past, query: Query, brought: EncodedItems | None = None) -> Basis:
    """Return what a model has to go by: the last L past items, or else what it has learned of a signed-in user.

    Args:
        model: The retriever or the ranker.
        past: Of the user.
        query: Who asks.
        brought: What the model makes of the items that came with vectors; None: not asked yet.
    """
    length = model.history_length
    if brought is None and past.brought:
        brought = model.encode_items(past.brought)
    ages_L = _ages_of(past.occurred_at[-length:]) if model.reads_ages else None
    history = UsedHistory(past.item_ids[-length:], past.rows[-length:], brought, ages_L=ages_L)
    if query.without is not None:
        history = left_of(model, history, query.without)
    user_id = None if history.rows else user_id_of(query.subject)
    return Basis(history, None if user_id is None else model.user_queries(user_id))


def _encode_brought(
    servable: Servable, inline: Sequence[HistoryItem], past_rows: list[int], num_stored: int
) -> tuple[tuple[Mapping[str, Vectors], ...], EncodedItems | None, list[int]]:
    """Encode the unknown items that bring vectors; return these, what they become, and each past item's row."""
    brought = {
        item.item_id: item.modalities  # of an item that is there twice, the latest vectors count
        for item, row in zip(inline, past_rows[num_stored:], strict=True)
        if row < 0 and item.modalities
    }
    if not brought:
        return (), None, past_rows
    raw = tuple(brought.values())
    encoded = servable.encode_items(raw)
    # Vectors of zeros say nothing: such an item stays merely unknown.
    place_of = {item_id: -2 - index for index, item_id in enumerate(brought) if encoded.presence_BM[index].any()}
    inline_rows = [
        row if row >= 0 else place_of.get(item.item_id, -1)
        for item, row in zip(inline, past_rows[num_stored:], strict=True)
    ]
    return raw, encoded, past_rows[:num_stored] + inline_rows


def _times(stored: StoredHistory, inline: Sequence[HistoryItem]) -> list[float]:
    """Return when each behaviour was: without a time as the one before it, at the start as the first that has one."""
    said = [*stored.occurred_at, *(item.occurred_at for item in inline)]
    latest = next((moment for moment in said if moment is not None), 0.0)
    times: list[float] = []
    for moment in said:
        latest = latest if moment is None else moment
        times.append(latest)
    return times


def _ages_of(times: tuple[float, ...]) -> Ages:
    """Return the seconds from each moment to the latest one."""
    times_L = np.array(times, dtype=np.float64)
    ages_L: Ages = (times_L.max(initial=-math.inf) - times_L).astype(np.float32)
    return ages_L


def _last_unique(item_ids: list[ItemId], rows: list[int], brought: tuple[Mapping[str, Vectors], ...]) -> Past:
    """Keep the usable items, each at its latest place, oldest first."""
    latest_first = dict(zip(reversed(rows), reversed(item_ids), strict=True))  # a key stays where it came first
    latest_first.pop(-1, None)
    return Past(item_ids=tuple(latest_first.values())[::-1], rows=tuple(latest_first)[::-1], brought=brought)
