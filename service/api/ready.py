"""Readiness: whether requests should be sent here, and how each part is."""

from collections.abc import Callable, Mapping
from contextlib import suppress

from api_schemas.health import Check, Ready
from service.api.parts import Served
from service.recommend.deadline import Deadline
from service.recommend.errors import RecommendError
from service.recommend.ports import Store
from service.recommend.recommender import Recommender
from service.recommend.types import HistoryItem, ItemId, Query
from service.runtime.loading import Refusal
from service.runtime.registry import ServableRegistry
from service.runtime.reloader import Reloader

PROBE_TIMEOUT_S = 1.0


class Readiness:
    """Asks every part. Only what makes answers impossible makes the service unready."""

    def __init__(
        self,
        *,
        registry: ServableRegistry,
        reloader: Reloader,
        recommender: Recommender,
        store: Store,
        is_draining: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._reloader = reloader
        self._recommender = recommender
        self._store = store
        self._is_draining = is_draining

    def served(self) -> Served | None:
        """Return which version answers."""
        current = self._registry.current
        if current is None:
            return None
        version, ranker = current.version, current.ranker
        return Served(
            version.model_version,
            None if ranker is None else ranker.card.version.model_version,
            version.index_version,
            version.index_built_at,
            self._registry.scenarios,
        )

    async def __call__(self) -> Ready:
        """Look at every part now."""
        model, store = await self._model(), await self._history()
        status = self._reloader.status()
        refused = status.refused
        checks = {
            "process": Check(status="failing", detail="stopping") if self._is_draining() else Check(status="ok"),
            "model": model,
            "index": self._index(is_latest=refused is None),
            "store": store,
        }
        ranker = await self._ranker()
        if ranker is not None:
            checks["ranker"] = ranker
        scenarios = self._scenarios(status.refused_scenarios)
        if scenarios is not None:
            checks["scenarios"] = scenarios
        refusals = {f"aliases/{name}": one for name, one in status.refused_scenarios.items()}
        if refused is not None:
            refusals[refused.version or "CURRENT"] = refused
        return Ready(
            ready=all(check.status != "failing" for check in checks.values()),
            checks=checks,
            refused_versions={name: one.reason for name, one in refusals.items()},
        )

    async def _model(self) -> Check:
        """The last answer tells; after a bad one, one answer is tried, so that a service that is well again says so."""
        served = self.served()
        if served is None:
            return Check(status="failing", detail="no version is loaded")
        if not self._recommender.model_ok:
            try:
                await self._try_model()
            except RecommendError as error:
                return Check(status="degraded", detail=type(error).__name__)
        if not self._recommender.model_ok:
            return Check(status="failing", detail="the model fails; the log says how")
        return Check(status="ok", detail=served.model_version)

    async def _try_model(self) -> None:
        with self._registry.acquire() as servable:
            (item_id,) = servable.item_ids(servable.popular_rows[:1])
        query = Query(history=(HistoryItem(ItemId(item_id)),), k=1)
        await self._recommender.recommend(query, deadline=Deadline.after(PROBE_TIMEOUT_S))

    async def _ranker(self) -> Check | None:
        """As for the model; but answers go on without a ranker, in the retriever's order."""
        served = self.served()
        if served is None or served.ranker_version is None:
            return None
        if not self._recommender.ranker_ok:
            with suppress(RecommendError):
                await self._try_model()
        if not self._recommender.ranker_ok:
            return Check(status="degraded", detail="the ranker fails; the log says how")
        return Check(status="ok", detail=served.ranker_version)

    def _index(self, *, is_latest: bool) -> Check:
        served = self.served()
        if served is None:
            return Check(status="failing", detail="no version is loaded")
        if is_latest:
            return Check(status="ok", detail=served.index_version)
        return Check(status="degraded", detail=f"{served.index_version}; a newer version was refused")

    def _scenarios(self, refused: Mapping[str, Refusal]) -> Check | None:
        """What answers each scenario; one that is behind its alias leaves the service ready."""
        held = self._registry.scenarios
        if not held:
            return None
        says = "; ".join(f"{name}: {', '.join(versions) or 'nothing'}" for name, versions in sorted(held.items()))
        if not refused:
            return Check(status="ok", detail=says)
        return Check(status="degraded", detail=f"{says}; refused for {', '.join(sorted(refused))}")

    async def _history(self) -> Check:
        try:
            await self._store.ping()
        except RecommendError:
            return Check(status="degraded", detail="the event store does not answer; the log says why")
        return Check(status="ok")
