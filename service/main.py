"""The only composition root: settings in, application out. All is built in the lifespan and closed in reverse order."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path

import structlog
from fastapi import FastAPI
from prometheus_client import Gauge

from index.aliases import AliasStore
from index.jobs import JobStore
from index.store import ArtifactStore
from service.api.access import Access, KeyAccess, LoopbackAccess
from service.api.app import make_app
from service.api.keys import KeyRing
from service.api.limits import RateLimiter
from service.api.parts import Parts
from service.api.ready import Readiness
from service.api.routing import Border
from service.item_records import export_items, trim_noted
from service.observability.logging import (
    SERVICE_FAILED,
    SERVICE_STARTED,
    SERVICE_STOPPED,
    STORE_FOUND_NOT_DURABLE,
    STORE_LOST,
    STORE_RECOVERED,
)
from service.observability.metrics import Metrics
from service.observability.tracing import is_wanted
from service.recommend.admission import Admission
from service.recommend.catalogue import CatalogueItems
from service.recommend.errors import NoServable, StoreUnavailable
from service.recommend.interests import InterestTimeline
from service.recommend.recommender import Recommender
from service.recommend.shown import ShownSlates
from service.runtime.builds import Builder
from service.runtime.executor import Executor
from service.runtime.live import LiveCatalogue
from service.runtime.memory import give_back_memory
from service.runtime.registry import ServableRegistry
from service.runtime.reloader import Reloader
from service.runtime.scenarios import ScenarioReloader
from service.runtime.servable import LoadedServable, load_servable
from service.settings import ServiceSettings
from service.stores import EventStore, open_answers, open_items, open_slates, open_store, with_items

MAINTAIN_EVERY_S = 30.0
LONG_WORK_TIMEOUT_S = 10.0
"""For one piece of what nobody waits for."""

_log = structlog.get_logger()


class Drain:
    """Whether the service is on its way out: `/readyz` fails and connections are closed after their answer."""

    def __init__(self) -> None:
        self.begun = False


def stop_process() -> None:
    """Ask this process to stop: what becomes of the service when a part of it has died."""
    os.kill(os.getpid(), signal.SIGTERM)


def create_app(
    settings: ServiceSettings, *, drain: Drain | None = None, on_failure: Callable[[], None] = stop_process
) -> FastAPI:
    """Return the application; its lifespan starts and stops everything.

    Args:
        settings: All of them.
        drain: Set by whoever handles signals.
        on_failure: Called when a part that must not die has died.
    """
    return Composition(settings, drain=drain or Drain(), on_failure=on_failure).app()


class Composition:
    """Builds one service."""

    def __init__(self, settings: ServiceSettings, *, drain: Drain, on_failure: Callable[[], None]) -> None:
        self._settings = settings
        self._drain = drain
        self._on_failure = on_failure
        self._metrics = Metrics()
        self._parts: Parts | None = None

    def app(self) -> FastAPI:
        """Wire the routes; what they work with comes with the lifespan."""
        http = self._settings.http
        border = Border(
            access=open_access(self._settings),
            max_body_bytes=http.max_body_bytes,
            body_timeout_s=http.body_timeout_s,
            default_timeout_ms=http.default_timeout_ms,
            max_timeout_ms=http.max_timeout_ms,
        )
        return make_app(
            self._running,
            lifespan=self._lifespan,
            border=border,
            metrics=self._metrics,
            is_draining=lambda: self._drain.begun,
            log_requests=self._settings.log.requests,
            max_future_s=self._settings.events.max_future_s,
            docs=http.docs,
            traced=is_wanted(os.environ),
        )

    def _running(self) -> Parts:
        if self._parts is None:
            raise NoServable("the service has not started")
        return self._parts

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        settings, metrics = self._settings, self._metrics
        async with contextlib.AsyncExitStack() as stack:
            store = open_store(settings.history_url, settings.events)
            stack.push_async_callback(store.close)
            changes = open_items(settings.history_url, settings.events, settings.items)
            stack.push_async_callback(changes.close)
            live = LiveCatalogue(changes, interval_s=settings.items.interval_s)
            stack.push_async_callback(live.close)
            slates = open_slates(settings.history_url, settings.events)
            stack.push_async_callback(slates.close)
            answers = open_answers(settings.history_url, settings.events)
            stack.push_async_callback(answers.close)
            shown = ShownSlates(slates, on_dropped=metrics.dropped_slates.inc)
            stack.push_async_callback(shown.flush)
            registry = ServableRegistry()
            stack.callback(registry.close)
            executor = Executor(
                max_waiting=settings.compute.max_in_flight,
                max_batch=settings.compute.max_batch,
                num_threads=settings.compute.num_threads,
                num_lone_threads=settings.compute.num_explain_threads,
                on_loop_below_s=settings.compute.on_loop_below_ms / 1e3,
            )
            admission = Admission(settings.compute.max_in_flight)
            recommender = Recommender(
                servables=registry,
                history=store,
                compute=executor,
                admission=admission,
                store_timeout_s=settings.events.read_timeout_s,
                catalogue=live,
                shown=shown,
            )
            artifacts = ArtifactStore(settings.store)
            aliases = AliasStore(artifacts, max_versions=settings.reload.max_versions)
            builder = Builder(
                JobStore(settings.store, max_waiting=settings.builds.max_waiting),
                store=settings.store,
                data=settings.data_folder,
                config=settings.builds.config,
                interval_s=settings.reload.interval_s,
                export=partial(_export, settings.history_url),
                trim=partial(_trim, settings.history_url, artifacts),
                on_ended=lambda job: metrics.builds.labels(job.state).inc(),
            )
            load = partial(self._load, artifacts, live)
            reloader = Reloader(
                store=artifacts,
                registry=registry,
                load=load,
                interval_s=settings.reload.interval_s,
                on_swapped=lambda _version, _seconds: self._swapped(registry),
                on_refused=lambda _version, _reason: metrics.refusals.inc(),
                scenarios=ScenarioReloader(
                    aliases=aliases,
                    registry=registry,
                    load=load,
                    max_versions=settings.reload.max_versions,
                    on_refused=lambda _version, _reason: metrics.refusals.inc(),
                ),
            )
            interests = InterestTimeline(
                servables=registry, history=store, compute=executor, admission=admission, catalogue=live
            )
            readiness = Readiness(
                registry=registry,
                reloader=reloader,
                recommender=recommender,
                store=store,
                is_draining=lambda: self._drain.begun,
            )

            await live.begin()
            await reloader.check()  # the first answer is as fast as the next: loaded and warm before the port opens
            self._parts = Parts(
                recommender=recommender,
                admission=admission,
                interests=interests,
                events=store,
                users=store.users,
                shown=shown,
                answers=answers,
                artifacts=artifacts,
                aliases=aliases,
                builds=builder,
                items=CatalogueItems(servables=registry, catalogue=live, changes=changes),
                served=readiness.served,
                ready=readiness,
            )
            stack.callback(self._forget_parts)
            async with background(
                executor.serve,
                reloader.run,
                live.run,
                partial(keep_store, store, metrics),
                shown.serve,
                builder.serve,
                partial(count_kept, slates.count, metrics.kept_slates),
                partial(count_kept, answers.count, metrics.kept_answers),
                partial(watch_queue, executor, registry, live, metrics),
                on_failure=self._on_failure,
            ):
                served = readiness.served()
                _log.info(SERVICE_STARTED, index_version=served.index_version if served else None)
                yield
        _log.info(SERVICE_STOPPED)

    def _load(self, artifacts: ArtifactStore, live: LiveCatalogue, version: str) -> LoadedServable:
        """Load a version and encode for it what has changed since; in a thread, before it is swapped in."""
        servable = load_servable(
            artifacts,
            version,
            num_threads=self._settings.compute.model_threads,
            num_candidates=self._settings.compute.rerank_candidates,
        )
        live.prepare(servable)
        give_back_memory()
        return servable

    def _swapped(self, registry: ServableRegistry) -> None:
        self._metrics.swaps.inc()
        if registry.current is not None:
            self._metrics.index_built.set(registry.current.version.index_built_at.timestamp())

    def _forget_parts(self) -> None:
        self._parts = None


def _export(history: str, file: Path, check: Callable[[], None]) -> None:
    """Write all changes of items to a file: beside the service's own connections, whose requests wait for nothing."""
    with_items(history, lambda changes: export_items(changes, file, check=check), timeout_s=LONG_WORK_TIMEOUT_S)


def _trim(history: str, artifacts: ArtifactStore) -> tuple[int, int]:
    """Forget the changes that no index needs any more."""
    return with_items(history, lambda changes: trim_noted(changes, artifacts), timeout_s=LONG_WORK_TIMEOUT_S)


@contextlib.asynccontextmanager
async def background(
    *jobs: Callable[[], Coroutine[object, object, None]], on_failure: Callable[[], None]
) -> AsyncIterator[None]:
    """Run jobs that never end while the block runs. When one of them dies, all end and `on_failure` is called."""

    async def run() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(job())
        except Exception as error:  # noqa: BLE001 - the process is asked to end, whatever it was
            _log.critical(SERVICE_FAILED, exc_info=error)
            on_failure()

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def keep_store(store: EventStore, metrics: Metrics, *, every_s: float = MAINTAIN_EVERY_S) -> None:
    """Look after the store for ever: forget what is old, measure it, say when it goes away and when it comes back."""
    was_up, was_durable = True, True
    while True:
        try:
            metrics.store_bytes.set(await store.maintain())
        except StoreUnavailable as error:
            if was_up:
                _log.error(STORE_LOST, reason=str(error))
            was_up = False
        else:
            if not was_up:
                _log.info(STORE_RECOVERED)
            was_up = True
            if was_durable and not store.durable:
                _log.warning(STORE_FOUND_NOT_DURABLE, durable=store.durable)
            was_durable = bool(store.durable)
        metrics.store_up.set(was_up)
        await asyncio.sleep(every_s)


async def count_kept(count: Callable[[], Awaitable[int]], gauge: Gauge, *, every_s: float = MAINTAIN_EVERY_S) -> None:
    """Say for ever how much is kept of something; `keep_store` says when a store is away."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            gauge.set(await count())
        await asyncio.sleep(every_s)


async def watch_queue(
    executor: Executor, registry: ServableRegistry, live: LiveCatalogue, metrics: Metrics, *, every_s: float = 1.0
) -> None:
    """Say for ever how many requests wait for a thread, how many versions are loaded, and how many items changed."""
    while True:
        metrics.versions_loaded.set(len(registry.loaded))
        metrics.waiting.set(executor.num_waiting)
        metrics.changed_items.set(live.num_changed)
        await asyncio.sleep(every_s)


def open_access(settings: ServiceSettings) -> Access:
    """Return who decides about callers.

    Raises:
        KeysFileError: The keys file can not be read.
    """
    file = settings.auth.keys_file
    return LoopbackAccess() if file is None else KeyAccess(KeyRing(file), RateLimiter(workers=settings.workers))
