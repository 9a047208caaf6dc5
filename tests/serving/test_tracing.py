"""Spans of real doors: which there are, of whom they are, when they were, and what they do not say."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from metastable.bundle import Bundle
from metastable.errors import SettingsError
from metastable.serving.door.observing import Observer
from metastable.serving.tracing import Tracing
from metastable.version import __version__
from tests.serving.collector import collecting
from tests.serving.door.conftest import png
from tests.serving.door.running import PATIENCE, Running, running
from tests.serving.door.written import MARK

pytestmark = pytest.mark.slow

PARENT = "b7ad6b7169203331"
TRACE = f"00-0af7651916cd43dd8448eb211c80319c-{PARENT}-"
STAGES = ["receive", "admit", "decode", "look", "queue", "purify", "segment", "classify", "decide"]


class Spans:
    """Those of the requests since the last look."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def next(self, requests: int = 1) -> Sequence[ReadableSpan]:
        ends = time.monotonic() + PATIENCE
        while len(roots(found := self._exporter.get_finished_spans())) < requests:
            assert time.monotonic() < ends, found
            time.sleep(0.01)
        self._exporter.clear()
        assert len(roots(found)) == requests
        return found


def roots(spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
    return [span for span in spans if span.kind == SpanKind.SERVER]


def named(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


@contextmanager
def traced(tiny: Bundle, **given: object) -> Iterator[tuple[Running, Spans]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    with running(tiny, observer=Observer(tracing), **given) as door:  # type: ignore[arg-type]
        yield door, Spans(exporter)
    tracing.close()


@pytest.fixture(scope="module")
def both(tiny: Bundle) -> Iterator[tuple[Running, Spans]]:
    with traced(tiny) as found:
        yield found


def ask(door: Running, **headers: str) -> httpx.Response:
    return httpx.post(
        door.url + "/classify", content=png(), headers=headers, trust_env=False, timeout=PATIENCE
    )


def test_a_request_has_a_span_of_each_stage_inside_its_own(both: tuple[Running, Spans]) -> None:
    door, exported = both
    before = time.time_ns()
    answer = ask(door, **{"X-Metastable-Setting": "fast"}).json()
    spans = exported.next()
    [root] = roots(spans)
    assert root.name == "POST /classify"
    assert root.parent is None
    assert sorted({span.name for span in spans} - {"image", root.name}) == sorted(STAGES)
    by_id = {span.context.span_id: span for span in spans}
    parents = {"receive": root.name, "image": root.name, "segment": "purify"}
    for span in spans:
        assert span.context.trace_id == root.context.trace_id
        if span is root:
            continue
        assert span.parent is not None
        parent = by_id[span.parent.span_id]
        assert parent.name == parents.get(span.name, "image")
        assert before <= parent.start_time <= span.start_time <= span.end_time <= parent.end_time  # type: ignore[operator]
    starts = [min(s.start_time for s in named(spans, one)) for one in STAGES]  # type: ignore[type-var]
    assert starts == sorted(starts)  # type: ignore[type-var]
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "http.request.body.size": len(png()),
        "metastable.code": "ok",
        "metastable.setting": "fast",
    }
    [image] = named(spans, "image")
    assert image.attributes is not None
    assert image.attributes["metastable.chains"] == answer["chains"]
    assert image.attributes["metastable.seconds.purify"] == pytest.approx(
        1e-3 * answer["timings_ms"]["purify"]
    )
    segments = named(spans, "segment")
    assert all(s.attributes["metastable.chains"] >= 1 for s in segments)  # type: ignore[index,operator]
    assert sum(s.attributes["metastable.steps"] for s in segments) >= answer["steps"]  # type: ignore[index,misc]


def test_images_of_one_request_have_spans_of_their_own(both: tuple[Running, Spans]) -> None:
    door, exported = both
    images = [base64.b64encode(one).decode() for one in (png(1), b"no image", png(2))]
    httpx.post(door.url + "/classify", json={"images": images}, trust_env=False, timeout=PATIENCE)
    spans = exported.next()
    found = {span.attributes["metastable.image"]: span for span in named(spans, "image")}  # type: ignore[index]
    codes = [found[i].attributes["metastable.code"] for i in range(3)]  # type: ignore[index]
    assert codes == ["ok", "unsupported_image", "ok"]
    assert (len(named(spans, "decode")), len(named(spans, "purify"))) == (3, 2)


def test_a_clients_trace_goes_on_and_its_choice_counts(both: tuple[Running, Spans]) -> None:
    door, exported = both
    assert ask(door, Traceparent=TRACE + "00").status_code == 200  # which it does not sample
    assert ask(door, Traceparent=TRACE + "01").status_code == 200
    [root] = roots(exported.next())
    assert root.parent is not None
    assert f"{root.context.trace_id:032x}" == TRACE.split("-")[1]
    assert f"{root.parent.span_id:016x}" == PARENT
    assert root.parent.is_remote


def test_what_is_refused_is_an_error_only_where_the_server_failed(both: tuple[Running, Spans]) -> None:
    door, exported = both
    assert ask(door, **{"X-Metastable-Setting": "none", "X-Metastable-Deadline-Ms": "1"}).status_code == 504
    late = exported.next()
    assert roots(late)[0].status.status_code == StatusCode.ERROR
    assert roots(late)[0].attributes["error.type"] == "deadline_exceeded"  # type: ignore[index]
    assert "admit" in {span.name for span in late}
    assert ask(door, **{"X-Metastable-Setting": "other"}).status_code == 422
    [root, receive] = sorted(exported.next(), key=lambda span: span.kind != SpanKind.SERVER)
    assert receive.name == "receive"
    assert root.status.status_code == StatusCode.UNSET
    assert root.attributes["error.type"] == "invalid_option"  # type: ignore[index]


def test_no_attribute_and_no_name_holds_what_a_client_wrote(both: tuple[Running, Spans]) -> None:
    door, exported = both
    fields = {"X-Request-Id": MARK, "User-Agent": MARK, "Tracestate": f"{MARK}=1", "Baggage": f"{MARK}=1"}
    paths = (f"/{MARK}", f"/classify?{MARK}=1", f"/v2/models/{MARK}", "/classify")
    for path in paths:
        httpx.request(MARK, door.url + path, headers=fields, trust_env=False)
        httpx.post(door.url + path, headers=fields, content=MARK.encode(), trust_env=False)
    spans = exported.next(2 * len(paths))
    assert not any(MARK in span.to_json() for span in spans)
    routes = ("", " /classify", " /v2/models/{name}")
    assert {root.name for root in roots(spans)} == {
        f"{verb}{route}" for verb in ("HTTP", "POST") for route in routes
    }


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_spans_reach_a_collector(tiny: Bundle, clean: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        clean.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        tracing = Tracing.configured()
        assert tracing is not None
        with running(tiny, observer=Observer(tracing)) as door:
            ask(door)
        tracing.close(PATIENCE)
    assert {span.name for span in collector.spans} == {"POST /classify", "image", *STAGES}
    assert collector.resources[0]["service.name"] == "metastable"
    assert collector.resources[0]["service.version"] == __version__


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SERVICE_NAME", "mine"), ("OTEL_RESOURCE_ATTRIBUTES", "a=b,service.name=mine")]
)
def test_the_environment_names_the_service(name: str, value: str, clean: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        clean.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.url + "/v1/traces")
        clean.setenv(name, value)
        tracing = Tracing.configured()
        assert tracing is not None
        begun = tracing.begin(None, time.monotonic())
        assert begun is not None
        tracing.end(begun.span, time.monotonic())
        tracing.close(PATIENCE)
    assert collector.resources[0]["service.name"] == "mine"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SERVICE_NAME": "mine"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://here", "OTEL_SDK_DISABLED": "True"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://here", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_a_place_there_are_none(variables: dict[str, str], clean: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        clean.setenv(name, value)
    assert Tracing.configured() is None


def test_another_protocol_is_refused(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://here:4317")
    clean.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(SettingsError, match="http/protobuf only"):
        Tracing.configured()


def test_a_sampler_takes_none_of_those_that_nobody_sampled(tiny: Bundle, clean: pytest.MonkeyPatch) -> None:
    clean.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with traced(tiny) as (door, exported):
        ask(door)
        ask(door, Traceparent=TRACE + "01")
        [root] = roots(exported.next())
    assert root.parent is not None


def test_a_collector_that_is_gone_holds_nobody_up(tiny: Bundle, clean: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        pass
    clean.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    tracing = Tracing.configured()
    assert tracing is not None
    with running(tiny, observer=Observer(tracing)) as door:
        assert ask(door).status_code == 200
    tracing.close(0.1)


def test_without_a_place_nothing_of_it_is_imported() -> None:
    code = (
        "import sys\n"
        "import metastable.serving.door.app, deploy.observing\n"
        "from metastable.serving.tracing import Tracing\n"
        "assert Tracing.configured() is None\n"
        "kinds = ('opentelemetry.sdk', 'opentelemetry.exporter')\n"
        "assert not [name for name in sys.modules if name.startswith(kinds)]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
