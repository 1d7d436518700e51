"""Stand-ins for the core's neighbours: a servable in a few lines of NumPy, a store in a dict, a compute lane inline.

The model of `FakeServable`: a modality's state is its unit vector padded to width S, an item's vector is the sum of its
states, a user's query is the mean of the past items' vectors, the score is the inner product. So every right answer can
be computed by hand, and the score splits exactly over (past item, modality).
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from service.recommend.admission import Admission
from service.recommend.answer import answer_jobs
from service.recommend.deadline import Deadline
from service.recommend.errors import BlocksFull, ModelNotFound, ScenarioNotFound, StoreUnavailable
from service.recommend.items import Catalogue, ItemChange
from service.recommend.job import Answer, Job
from service.recommend.once import Claim, KeptAnswer
from service.recommend.ports import NEWEST, Block, EventPlace, KeptEvent, Merged, ShownSlate, StoredHistory
from service.recommend.recommender import Recommender
from service.recommend.rerank import Reranking, rerank
from service.recommend.servable import CURRENT, Attribution, EncodedItems, find_model
from service.recommend.shown import ShownSlates
from service.recommend.types import Event, Filter, ItemId, ModalityCard, ModelCard, ServedVersion, Subject

WIDTHS = {"visual": 6, "text": 4}
STATE_DIM = 8
FAKE_BLOCKS = 50
"""So many items can be blocked in a `FakeStore`."""


class FakeSelection:
    def __init__(self, mask_N: Sequence[bool]) -> None:
        self.mask_N = np.array(mask_N, dtype=np.bool_)

    def without(self, rows: Sequence[int]) -> "FakeSelection":
        smaller = FakeSelection(self.mask_N)
        smaller.mask_N[rows] = False
        return smaller


class FakeServable:
    """N items named `i0`, `i1`, ...; `i<n>` has category `c<n % 5>` and attribute `colour` red or blue.

    Items are popular in the order of their numbers. `calls` counts what was asked of it.
    """

    def __init__(
        self, num_items: int = 50, *, version: str = "snapshot-fake-1", seed: int = 0, length: int = 5
    ) -> None:
        random = np.random.default_rng(seed)
        self.num_items = num_items
        self.modalities = dict(WIDTHS)
        self.parts = tuple(WIDTHS)
        self.history_length = length
        self.reads_ages = False
        self.answer_cpu_s = 0.0005
        self.ranker: FakeRanker | None = None
        self.methods = ("grad_x_input", "decomposition", "occlusion")
        self.method_without_history = "decomposition"
        self.version = ServedVersion("fake", "bundle-fake-1", version, datetime(2026, 1, 1, tzinfo=UTC))
        self.card = ModelCard(
            version=self.version,
            parts=self.parts,
            modalities=tuple(ModalityCard(name, width) for name, width in WIDTHS.items()),
            methods=self.methods,
        )
        self.known_users: dict[str, np.ndarray] = {}
        """User id to queries `[Q, D]`."""
        self.popular_rows = np.arange(num_items)
        self.hidden_rows = frozenset()
        self.raw = {
            name: random.standard_normal((num_items, width)).astype(np.float32) for name, width in WIDTHS.items()
        }
        self._presence = np.ones((num_items, len(WIDTHS)), dtype=np.bool_)
        encoded = self.encode_items([{name: self.raw[name][row] for name in WIDTHS} for row in range(num_items)])
        self._states, self._vectors = encoded.states_BMS, encoded.history_BH
        self._row_of = {f"i{row}": row for row in range(num_items)}
        self.calls: list[str] = []
        self.fail: dict[str, Exception] = {}
        """Method name to the exception that it raises."""
        self.before: dict[str, Callable[[], None]] = {}
        """Method name to what runs first."""
        self._lock = threading.Lock()
        self._holds = 1
        self.closed = False

    def _called(self, name: str) -> None:
        assert not self.closed, f"{name} after close"
        self.calls.append(name)
        if name in self.before:
            self.before[name]()
        if name in self.fail:
            raise self.fail[name]

    def retain(self) -> bool:
        with self._lock:
            if self.closed:
                return False
            self._holds += 1
            return True

    def release(self) -> None:
        with self._lock:
            self._holds -= 1
            assert self._holds >= 0
            self.closed = self._holds == 0

    @property
    def holds(self) -> int:
        return self._holds

    def faithfulness(self, method):
        return {"deletion_auc": 0.3, "random_deletion_auc": 0.5} if method == "grad_x_input" else {}

    def rows(self, item_ids):
        self._called("rows")
        return np.array([self._row_of.get(item_id, -1) for item_id in item_ids], dtype=np.int64)

    def item_ids(self, rows):
        return [f"i{row}" for row in rows.tolist()]

    def metadata(self, rows):
        return [{"title": f"Item {row}", "categories": [f"c{row % 5}"]} for row in rows.tolist()]

    def popularity_positions(self, rows):
        return np.asarray(rows)

    def select(self, restriction: Filter):
        self._called("select")
        category_N = [f"c{row % 5}" for row in range(self.num_items)]
        colour_N = ["red" if row % 2 else "blue" for row in range(self.num_items)]
        known = restriction
        return FakeSelection(
            [
                (not known.categories_any or category in known.categories_any)
                and all(wanted == category for wanted in known.categories_all)
                and category not in known.categories_none
                and all(name == "colour" and colour in values for name, values in known.attributes.items())
                for category, colour in zip(category_N, colour_N, strict=True)
            ]
        )

    def encode_items(self, raw: Sequence[Mapping[str, np.ndarray]]) -> EncodedItems:
        states = np.zeros((len(raw), len(WIDTHS), STATE_DIM), dtype=np.float32)
        presence = np.zeros((len(raw), len(WIDTHS)), dtype=np.bool_)
        for place, vectors in enumerate(raw):
            for column, (name, width) in enumerate(WIDTHS.items()):
                norm = np.linalg.norm(vectors[name]) if name in vectors else 0.0
                if norm > 0:
                    states[place, column, :width] = vectors[name] / norm
                    presence[place, column] = True
        return EncodedItems(history_BH=states.sum(axis=1), states_BMS=states, presence_BM=presence)

    def history(self, rows):
        return self._vectors[rows]

    def states(self, rows):
        return self._states[rows]

    def presence(self, rows):
        return self._presence[rows]

    def encode_users(self, history_BLH, mask_BL, ages_BL=None):
        self._called("encode_users")
        assert history_BLH.shape[1:] == (self.history_length, STATE_DIM)
        assert (ages_BL is not None) == self.reads_ages
        if ages_BL is not None:  # an item of so many seconds counts for so much less
            history_BLH = history_BLH / (1 + ages_BL[:, :, np.newaxis])
        count_B1 = np.maximum(mask_BL.sum(axis=1, keepdims=True), 1)
        user_BD = (history_BLH * mask_BL[:, :, np.newaxis]).sum(axis=1) / count_B1
        return user_BD[:, np.newaxis].astype(np.float32)

    def history_with(self, states_LMS, presence_LM, *, allowed_M):
        self._called("history_with")
        return (states_LMS * (presence_LM & allowed_M)[:, :, np.newaxis]).sum(axis=1)

    def user_queries(self, user_id):
        return self.known_users.get(user_id)

    def search(self, queries_BQD, *, k, allowed=None):
        self._called("search")
        scores_BN = (queries_BQD @ self._vectors.T).max(axis=1)
        if allowed is not None:
            scores_BN[:, ~allowed.mask_N] = -np.inf
        rows_BK = np.argsort(-scores_BN, axis=1, kind="stable")[:, :k]
        scores_BK = np.take_along_axis(scores_BN, rows_BK, axis=1)
        return scores_BK, np.where(np.isinf(scores_BK), -1, rows_BK)

    def score(self, queries_QD, rows):
        self._called("score")
        return (queries_QD @ self._vectors[rows].T).max(axis=0)

    def similar(self, row, *, k, modality, allowed=None):
        self._called("similar")
        table = self._vectors if modality is None else self._states[:, list(WIDTHS).index(modality)]
        scores = table @ table[row]
        if allowed is not None:
            scores[~allowed.mask_N] = -np.inf
        rows = np.argsort(-scores, kind="stable")[:k]
        return scores[rows], np.where(np.isinf(scores[rows]), -1, rows)

    def attribute(self, method, *, states_LMS, presence_LM, candidate_states_KMS, candidate_presence_KM, ages_L=None):
        self._called("attribute")
        assert (ages_L is not None) == self.reads_ages
        if ages_L is not None:
            states_LMS = states_LMS / (1 + ages_L[:, np.newaxis, np.newaxis])
        candidate_KS = candidate_states_KMS.sum(axis=1)
        grid_KLM = np.einsum("lms,ks->klm", states_LMS, candidate_KS) / len(states_LMS)
        user_S = states_LMS.sum(axis=(0, 1)) / len(states_LMS)
        contributions_KM = candidate_states_KMS @ user_S
        scores_K = candidate_KS @ user_S
        residual_K = scores_K - contributions_KM.sum(axis=1)
        return Attribution(
            scores_K=scores_K,
            interest_KM=grid_KLM.sum(axis=1),
            history_KL=grid_KLM.sum(axis=2),
            grid_KLM=grid_KLM,
            contributions_KM=contributions_KM,
            residual_K=residual_K,
            additive=True,
        )

    def decompose(self, queries_QD, *, candidate_states_KMS, candidate_presence_KM):
        self._called("decompose")
        num_candidates = len(candidate_states_KMS)
        contributions_KM = candidate_states_KMS @ queries_QD[0]
        return Attribution(
            scores_K=contributions_KM.sum(axis=1),
            interest_KM=contributions_KM,
            history_KL=np.zeros((num_candidates, 0), dtype=np.float32),
            grid_KLM=np.zeros((num_candidates, 0, len(WIDTHS)), dtype=np.float32),
            contributions_KM=contributions_KM,
            residual_K=np.zeros(num_candidates, dtype=np.float32),
            additive=True,
        )

    def modality_shares(self, interest_KM, *, scores_K):
        positive_M = np.maximum(interest_KM.mean(axis=0), 0) + 1e-9
        return (positive_M / positive_M.sum()).tolist()


class FakeRanker(FakeServable):
    """A ranker of the same items: a number of an item's vector counts where it goes with the user's, never against it.

    `score = sum over s of max(q_s * v_s, 0)`. Its own length of histories is shorter than that of `FakeServable`.
    """

    def __init__(self, num_items: int = 50, *, num_candidates: int = 10, length: int = 3) -> None:
        super().__init__(num_items, length=length)
        self.num_candidates = num_candidates
        self.rerank_cpu_s = 0.0005
        self.methods = ("shapley", "occlusion")
        self.method_without_history = "occlusion"
        version = replace(self.version, model_name="fake-ranker", model_version="bundle-fake-2")
        self.card = replace(self.card, version=version, methods=self.methods)

    def score(self, queries_QD, rows):
        self._called("score")
        return np.maximum(queries_QD[0] * self._vectors[rows], 0).sum(axis=1)


class FakeSource:
    """Hands out one servable, as a registry does."""

    def __init__(self, servable: FakeServable) -> None:
        self.servable = servable

    def choose(self, query):
        if query.scenario != "default":
            raise ScenarioNotFound(query.scenario)
        if query.model is not None and find_model(self.servable, query.model) is None:
            raise ModelNotFound(query.model)
        return CURRENT

    def like(self, version):
        return CURRENT

    def acquire(self, choice=CURRENT):
        return _Held(self.servable)


class _Held:
    def __init__(self, servable: FakeServable) -> None:
        self.servable = servable

    def __enter__(self) -> FakeServable:
        assert self.servable.retain()
        return self.servable

    def __exit__(self, *_: object) -> None:
        self.servable.release()


class FakeStore:
    """Events in a dict. `away` makes every call fail; `hang` makes every call wait for ever."""

    def __init__(self) -> None:
        self.events: dict[Subject, list[Event]] = {}
        self.blocked: dict[Subject, dict[str, float]] = {}
        self.seen_ids: set[str] = set()
        self.away = False
        self.hang = False

    @property
    def users(self) -> "FakeUsers":
        return FakeUsers(self)

    async def reach(self) -> None:
        if self.hang:
            await asyncio.Event().wait()
        if self.away:
            raise StoreUnavailable("the fake store is away")

    async def history(self, subject: Subject, *, limit: int) -> StoredHistory:
        await self.reach()
        last = sorted(self.events.get(subject, []), key=lambda event: event.occurred_at)[-limit:]
        blocked = tuple(self.blocked.get(subject, ()))
        return StoredHistory(tuple(e.item_id for e in last), tuple(e.occurred_at for e in last), blocked)

    async def append(self, events: Sequence[Event]) -> tuple[bool, ...]:
        await self.reach()
        new: list[bool] = []
        for event in events:
            new.append(event.event_id not in self.seen_ids)
            if new[-1]:
                self.seen_ids.add(event.event_id)
                self.events.setdefault(event.subject, []).append(event)
        return tuple(new)

    async def ping(self) -> None:
        await self.reach()

    async def close(self) -> None:
        return None


class FakeUsers:
    """What users may do with the events in a `FakeStore`."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store

    async def events(self, subject: Subject, *, before: EventPlace = NEWEST, limit: int) -> tuple[KeptEvent, ...]:
        await self.store.reach()
        places = [
            (EventPlace(round(event.occurred_at * 1e6), seq), event)
            for seq, event in enumerate(self.store.events.get(subject, []))
        ]
        ordered = sorted(places, key=lambda kept: kept[0], reverse=True)
        return tuple(KeptEvent(event, place) for place, event in ordered if place < before)[:limit]

    async def erase(self, subject: Subject) -> None:
        await self.store.reach()
        self.store.seen_ids -= {event.event_id for event in self.store.events.pop(subject, [])}
        self.store.blocked.pop(subject, None)

    async def merge(self, source: Subject, *, into: Subject) -> Merged:
        await self.store.reach()
        moved = [replace(event, subject=into) for event in self.store.events.pop(source, [])]
        self.store.events.setdefault(into, []).extend(moved)
        return Merged(num_events=len(moved))

    async def block(self, subject: Subject, item_id: ItemId, *, at: float) -> None:
        await self.store.reach()
        blocked = self.store.blocked.setdefault(subject, {})
        if item_id not in blocked and len(blocked) == FAKE_BLOCKS:
            raise BlocksFull(FAKE_BLOCKS)
        blocked.setdefault(item_id, at)

    async def unblock(self, subject: Subject, item_id: ItemId) -> None:
        await self.store.reach()
        self.store.blocked.get(subject, {}).pop(item_id, None)

    async def blocks(self, subject: Subject) -> tuple[Block, ...]:
        await self.store.reach()
        return tuple(Block(ItemId(item_id), at) for item_id, at in self.store.blocked.get(subject, {}).items())


class FakeChanges:
    """Changes of the catalogue in a list: kept, numbered and never shown."""

    def __init__(self) -> None:
        self.kept: list[ItemChange] = []
        self.away = False

    async def change(self, changes: Sequence[ItemChange]) -> tuple[int | None, ...]:
        await self.changes_seq()
        self.kept += changes
        return tuple(range(len(self.kept) - len(changes) + 1, len(self.kept) + 1))

    async def changes_seq(self) -> int:
        if self.away:
            raise StoreUnavailable("the fake store is away")
        return len(self.kept)


class FakeCatalogue:
    """A catalogue that shows no change."""

    def at(self, servable, seq):
        return servable

    def latest(self, servable):
        return servable

    async def fresh(self, servable, seq=None):
        return servable


class FakeSlates:
    """What was shown, in a dict. `away` makes every call fail."""

    def __init__(self) -> None:
        self.slates: dict[str, ShownSlate] = {}
        self.away = False
        self.kept = asyncio.Semaphore(0)
        """Is released at every call that keeps."""

    def _reach(self) -> None:
        if self.away:
            raise StoreUnavailable("the fake store is away")

    async def keep(self, slates: Sequence[ShownSlate]) -> int:
        self._reach()
        self.slates |= {slate.recommendation_id: slate for slate in slates}
        self.kept.release()
        return len(slates)

    async def find(self, recommendation_id: str) -> ShownSlate | None:
        self._reach()
        return self.slates.get(recommendation_id)

    async def forget(self, subject: Subject) -> None:
        self._reach()
        self.slates = {key: slate for key, slate in self.slates.items() if slate.subject != subject}

    async def count(self) -> int:
        self._reach()
        return len(self.slates)

    async def close(self) -> None:
        return None


class FakeAnswers:
    """Answers by key, in a dict, without bound or end. `away` makes every call fail."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[str, KeptAnswer | None]] = {}
        self.away = False

    def _reach(self) -> None:
        if self.away:
            raise StoreUnavailable("the fake store is away")

    async def claim(self, key: str, *, token: str) -> Claim | KeptAnswer:
        self._reach()
        claimed_by, answer = self.held.setdefault(key, (token, None))
        return answer or (Claim.OURS if claimed_by == token else Claim.TAKEN)

    async def keep(self, key: str, answer: KeptAnswer, *, token: str) -> bool:
        self._reach()
        if self.held.get(key, (token, None))[0] != token:
            return False
        self.held[key] = token, answer
        return True

    async def release(self, key: str, *, token: str) -> None:
        self._reach()
        if self.held.get(key) == (token, None):
            del self.held[key]

    async def count(self) -> int:
        self._reach()
        return len(self.held)

    async def close(self) -> None:
        return None


class InlineCompute:
    """Computes on the loop: for tests of what is computed, not of where."""

    async def answer(self, job: Job) -> Answer:
        (result,) = answer_jobs([job])
        if isinstance(result, Exception):
            raise result
        return result

    async def rerank(self, reranking: Reranking) -> Answer:
        (result,) = rerank([reranking])
        if isinstance(result, Exception):
            raise result
        return result

    async def alone(self, work, *, deadline: Deadline):
        deadline.check()
        return work()


def recommender_of(servable, *, history: FakeStore | None = None, catalogue: Catalogue | None = None) -> Recommender:
    """Return a recommender of one servable, by default with no events and no changes, that computes on the loop."""
    return Recommender(
        servables=FakeSource(servable),
        history=history or FakeStore(),
        catalogue=catalogue,
        compute=InlineCompute(),
        admission=Admission(4),
        store_timeout_s=1.0,
        shown=ShownSlates(FakeSlates()),
    )
