"""When traces are made, which trace a request belongs to, and when its stages were."""

import pytest

from service.observability.tracing import is_wanted, lay_out, trace_id_of
from tests.http_app import Rig

ENDPOINT = "http://localhost:4318"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{ENDPOINT}/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_traces_are_made_when_the_environment_says_where_they_go(environment, wanted):
    assert is_wanted(environment) is wanted


TRACE, PARENT = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (b"00-%b-%b-01" % (TRACE, PARENT), TRACE.decode()),
        (b"00-%b-%b-00" % (TRACE, PARENT), TRACE.decode()),
        (b"cc-%b-%b-01-what-will-be" % (TRACE, PARENT), TRACE.decode()),
        (b"00-%b-%b-01-more" % (TRACE, PARENT), None),
        (b"ff-%b-%b-01" % (TRACE, PARENT), None),
        (b"00-%b-%b-01" % (b"0" * 32, PARENT), None),
        (b"00-%b-%b-01" % (TRACE, b"0" * 16), None),
        (b"00-%b-%b-01" % (TRACE.upper(), PARENT), None),
        (b"\n" * 200, None),
        (b"", None),
        (None, None),
    ],
)
def test_a_traceparent_is_read_as_the_recommendation_says_and_what_is_none_is_ignored(traceparent, trace_id):
    assert trace_id_of(traceparent) == trace_id


def test_the_store_comes_first_and_the_other_stages_end_with_the_answer():
    timings_ms = {"store": 1.0, "encode": 2.0, "search": 3.0, "explain": 0.5, "other": 9.0}
    laid = lay_out(timings_ms, took_ms=10.0, now_ns=1_000_000_000)
    assert {stage: ((1e9 - began) / 1e6, (1e9 - ended) / 1e6) for stage, (began, ended) in laid.items()} == {
        "store": (10.0, 9.0),
        "encode": (5.5, 3.5),
        "search": (3.5, 0.5),
        "explain": (0.5, 0.0),
    }
    assert list(laid) == ["store", "encode", "search", "explain"]


def test_stages_never_leave_the_request_and_none_is_none():
    laid = lay_out({"store": 5.0, "encode": 5.0, "search": 5.0}, took_ms=4.0, now_ns=10_000_000)
    assert all(6_000_000 <= began <= ended <= 10_000_000 for began, ended in laid.values())
    assert lay_out({}, took_ms=4.0, now_ns=10_000_000) == {}


def test_without_traces_the_framework_looks_for_none():
    """To look costs a request microseconds, more than the rest of what surrounds an answer."""
    assert not Rig().app._native_telemetry.enabled()
