"""Every metric of the service, declared here and nowhere else; docs/metrics.md says what each is for.

With several workers prometheus_client's multiprocess mode adds the workers up: each of them keeps its numbers in one
folder (`share_metrics`), and whichever worker is asked answers for all.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from service.recommend.types import Assignment

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
STAGES = ("store", "encode", "search", "rerank", "explain")
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""What prometheus_client calls it."""


class Metrics:
    """The numbers of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "prismrec_requests_total", "Requests answered, by route and status.", ("route", "status")
        )
        self.request_seconds = Histogram(
            "prismrec_request_duration_seconds",
            "Time from the first byte of a request to its answer, by route.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._by_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        stage_seconds = Histogram(
            "prismrec_stage_duration_seconds",
            "Time of one stage of an answer: store, encode, search, rerank, explain.",
            ("stage",),
            buckets=_STAGE_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = {stage: stage_seconds.labels(stage) for stage in STAGES}
        self.problems = self._counter("prismrec_problems_total", "Answers that were problems, by type.", ("type",))
        self.degraded = self._counter(
            "prismrec_degraded_answers_total", "Answers with something missing, by what.", ("reason",)
        )
        events = self._counter(
            "prismrec_events_total", "Events received: accepted, duplicate or rejected.", ("outcome",)
        )
        self.events = {outcome: events.labels(outcome) for outcome in ("accepted", "duplicate", "rejected")}
        self.in_flight = self._gauge("prismrec_requests_in_flight", "Requests being answered now.", "livesum")
        self.waiting = self._gauge("prismrec_compute_waiting_requests", "Requests waiting to be computed.", "livesum")
        self.store_up = self._gauge("prismrec_store_up", "1 while the event store answers.", "livemin")
        self.store_bytes = self._gauge(
            "prismrec_store_size_bytes", "Bytes of the event store: on disk (SQLite), in memory (Redis).", "livemax"
        )
        self.changed_items = self._gauge(
            "prismrec_changed_items", "Items that have changed since the index was built, or are hidden.", "livemax"
        )
        self.kept_slates = self._gauge(
            "prismrec_kept_slates", "Answers that are kept to be explained or continued.", "livemax"
        )
        self.kept_answers = self._gauge(
            "prismrec_kept_answers", "Idempotency-Keys whose requests are known.", "livemax"
        )
        self.dropped_slates = self._counter(
            "prismrec_dropped_slates_total", "Answers that were to be kept and were not: no room, or no store."
        )
        self.swaps = self._counter("prismrec_servable_swaps_total", "Versions that were taken into service.")
        self.refusals = self._counter("prismrec_servable_refusals_total", "Versions that were refused.")
        self.index_built = self._gauge(
            "prismrec_index_built_timestamp_seconds", "When the index that answers was built.", "livemin"
        )
        self.arms = self._counter(
            "prismrec_experiment_answers_total", "Answers of experiments, by experiment and arm.", ("experiment", "arm")
        )
        self.builds = self._counter("prismrec_builds_total", "Builds of indexes that have ended, by state.", ("state",))
        self.versions_loaded = self._gauge(
            "prismrec_loaded_versions", "Index versions that a worker holds open.", "livemax"
        )

    def count_request(self, route: str, status: int, *, seconds: float) -> None:
        """Count an answer and the time that it took."""
        child = self._by_route.get((route, status))
        if child is None:
            child = self.requests.labels(route, str(status)), self.request_seconds.labels(route)
            self._by_route[route, status] = child
        counter, histogram = child
        counter.inc()
        histogram.observe(seconds)

    def observe_stages(self, timings_ms: Mapping[str, float]) -> None:
        """Count an answer's stages."""
        for stage, milliseconds in timings_ms.items():
            histogram = self.stage_seconds.get(stage)
            if histogram is not None:
                histogram.observe(milliseconds / 1e3)

    def count_arm(self, assignment: Assignment | None) -> None:
        """Count an answer of an experiment; None is none."""
        if assignment is not None:
            self.arms.labels(assignment.experiment, assignment.arm).inc()

    def page(self) -> bytes:
        """Return the page that Prometheus reads, for all workers of this service."""
        folder = os.environ.get(_FOLDER)
        if folder is None:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]  # the library has no types here
        return generate_latest(registry)

    def names(self) -> dict[str, str]:
        """Return what each metric says of itself, by the name on the page."""
        return {
            f"{metric.name}_total" if metric.type == "counter" else metric.name: metric.documentation
            for metric in self.registry.collect()
        }

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, mode: str) -> Gauge:
        return Gauge(name, text, registry=self.registry, multiprocess_mode=mode)  # type: ignore[arg-type]  # a literal


def share_metrics(folder: Path) -> None:
    """Keep what is counted from now on in a folder, beside that of other workers; before any `Metrics` of a process."""
    os.environ[_FOLDER] = str(folder)
    # The library looks at the environment when it is imported, which was in another process, before there was a folder.
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]  # the library has no types here


def forget_worker(pid: int, folder: Path) -> None:
    """Drop the gauges of a worker that has ended; its counters stay in the sums."""
    for file in folder.glob(f"gauge_live*_{pid}.db"):
        file.unlink(missing_ok=True)
