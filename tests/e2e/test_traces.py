"""A real service sends real traces, over OTLP, to a collector of this test's own; and only when it is told to."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.processes import Service, wait_until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes in what exporters send to `/v1/traces`."""

    def __init__(self) -> None:
        self.spans: list[object] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, request_id: str) -> tuple[object, dict[str, object]] | None:
        """Return the span of a request and those of its stages, when they have come."""
        found = [span for span in self.spans if attributes(span).get("prismrec.request_id") == request_id]
        if not found:
            return None
        (span,) = found
        return span, {one.name: one for one in self.spans if one.parent_span_id == span.span_id}


def attributes(span) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_continues_the_callers_trace_with_a_span_for_each_stage(toy_store, tmp_path, collector, workers):
    service = Service(
        toy_store.store,
        *("--history", f"sqlite:{tmp_path}/events.db", "--workers", str(workers)),
        log=tmp_path / "log",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="50",
        PRISMREC_LOG__REQUESTS="true",
    ).start()
    try:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r-1"}
        body = {"user_id": "secret-user", "k": 5, "explain": "full", "timeout_ms": 10_000}
        answer = httpx2.post(f"{service.url}/v1/recommendations", json=body, headers=headers)
        assert (answer.status_code, answer.json()["degraded"]) == (200, [])
        wait_until(lambda: collector.of("r-1") is not None, what="the trace arrives")
        span, stages = collector.of("r-1")
        assert (span.trace_id.hex(), span.parent_span_id.hex(), span.name) == (
            TRACE,
            PARENT,
            "POST /v1/recommendations",
        )
        said = attributes(span)
        assert (said["http.route"], said["http.response.status_code"]) == ("/v1/recommendations", 200)
        assert list(stages) == [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")]
        assert {one.trace_id.hex() for one in stages.values()} == {TRACE}
        for stage in stages.values():
            assert span.start_time_unix_nano <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert [line["trace_id"] for line in service.lines() if line.get("request_id") == "r-1"] == [TRACE]

        lost = httpx2.get(f"{service.url}/v1/users/secret-user/events?limit=0", headers={"x-request-id": "r-2"})
        assert lost.status_code == 422
        wait_until(lambda: collector.of("r-2") is not None, what="the trace arrives")
        span, _ = collector.of("r-2")
        said = attributes(span)
        assert (said["url.path"], said["prismrec.problem"]) == ("/v1/users/{user_id}/events", "validation-error")
        assert "secret-user" not in str(collector.spans)
        assert not [span for span in collector.spans if "livez" in span.name], "probes leave no traces"
        (line,) = [line for line in service.lines() if line.get("request_id") == "r-2"]
        assert line["trace_id"] == span.trace_id.hex(), "without a traceparent the trace is ours"
        service.terminate()
        assert service.wait() == 0
    finally:
        service.stop()
