"""Spans of OpenTelemetry, made of what was noted of a request once it has been answered.

    tracing = Tracing.configured()     # None unless the environment names where spans go

Only the sampled requests cost anything: a client that sends `traceparent` has decided that for its own, and
the sampler that the environment names decides it for others.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags

from metastable.engine.timeline import Part
from metastable.errors import MissingPackage, SettingsError
from metastable.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from metastable.serving.door.accounts import Account

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPOKEN = "http/protobuf"
NAME = "metastable"
PURIFY = "purify"


class Tracing:
    """Where spans go.

    Args:
        provider: makes them; it belongs to this object from now on.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(NAME, __version__)
        # One pair of clocks for all: spans of one process stay in order whatever becomes of the time of day.
        self._epoch = time.time_ns() - time.monotonic_ns()

    @classmethod
    def configured(cls) -> Tracing | None:
        """With the exporter that the standard variables of OpenTelemetry describe; None where they name none.

        Raises MissingPackage without the extra `tracing`, SettingsError for another protocol than SPOKEN.
        """
        environment = os.environ  # where OpenTelemetry itself looks, too
        given = {name: environment.get(name, "").strip() for name in (*ENDPOINTS, *PROTOCOLS)}
        if not any(given[name] for name in ENDPOINTS):
            return None
        if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
            return None
        protocol = next((given[name] for name in PROTOCOLS if given[name]), SPOKEN)
        if protocol != SPOKEN:
            raise SettingsError(f"traces are sent as {SPOKEN} only: set {PROTOCOLS[1]} to it")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise MissingPackage(
                f"{ENDPOINTS[1]} is set, and traces need packages: pip install 'metastable[tracing]'"
            ) from None
        named = Resource.create()  # of the environment; it would lose to what is passed here
        if "OTEL_SERVICE_NAME" not in environment and SERVICE_NAME + "=" not in environment.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        ):
            named = named.merge(Resource({SERVICE_NAME: NAME}))
        named = named.merge(Resource({"service.version": __version__}))
        provider = TracerProvider(resource=named, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def begin(self, traceparent: str | None, received: float) -> Trace | None:
        """The span of a request, or None where it is not sampled.

        Args:
            traceparent: the client's, which `identity` has found valid.
            received: on `time.monotonic`.
        """
        context = trace.set_span_in_context(NonRecordingSpan(_remote(traceparent)) if traceparent else NONE)
        span = self._tracer.start_span(
            "request", context=context, kind=SpanKind.SERVER, start_time=self._time(received)
        )
        return Trace(self, span) if span.is_recording() else None

    def traceparent(self, begun: Trace | None, given: str | None) -> str | None:
        """What is passed on: the request's own span, or what the client sent."""
        if begun is None:
            return given
        context = begun.span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def child(self, parent: Span, name: str, began: float, ended: float, attributes: dict[str, Any]) -> Span:
        """A span that is over, to which others may still be added."""
        span = self._tracer.start_span(
            name,
            context=trace.set_span_in_context(parent),
            start_time=self._time(began),
            attributes=_there(attributes),
        )
        span.end(self._time(ended))
        return span

    def end(self, span: Span, ended: float) -> None:
        span.end(self._time(ended))

    def close(self, seconds: float = 3.0) -> None:
        """Send what is left, if that takes no longer: nobody may wait for a collector that is gone."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(seconds)

    def _time(self, monotonic: float) -> int:
        return self._epoch + int(1e9 * monotonic)


class Trace:
    """The span of one request that is under way."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing, self.span = tracing, span

    def end(self, account: Account, method: str, ended: float) -> None:
        """Make the spans inside it, and end it.

        Args:
            method: of a known name.
        """
        span, status = self.span, account.status
        verb = "HTTP" if method == "other" else method  # as OpenTelemetry's conventions have it
        span.update_name(verb if account.route is None else f"{verb} {account.route}")
        found = {
            "http.request.method": method if method != "other" else "_OTHER",
            "http.route": account.route,
            "http.response.status_code": status,
            "http.request.body.size": account.bytes_in,
            "error.type": None if account.code == "ok" else account.code,
            "metastable.code": account.code,
            "metastable.setting": account.setting,
        }
        span.set_attributes(_there(found))
        if status is not None and status >= 500:
            span.set_status(StatusCode.ERROR)
        self._tracing.child(span, "receive", account.received, account.whole or ended, {})
        for index, timeline in enumerate(account.timelines):
            facts = account.images[index] if index < len(account.images) else {}
            self._image(index, timeline.parts(), facts)
        self._tracing.end(span, ended)

    def _image(self, index: int, parts: list[Part], facts: dict[str, Any]) -> None:
        if not parts:
            return
        told = {f"metastable.{name}": value for name, value in facts.items() if name != "seconds"}
        told |= {f"metastable.seconds.{name}": value for name, value in facts.get("seconds", {}).items()}
        ended = max(part.ended for part in parts)
        image = self._tracing.child(
            self.span, "image", parts[0].began, ended, {"metastable.image": index} | told
        )
        walks = [part for part in parts if part.stage == PURIFY]
        if walks:
            ends = max(part.ended for part in walks)
            purify = self._tracing.child(image, PURIFY, walks[0].began, ends, {})
        for part in parts:
            walk = part.stage == PURIFY
            counts = {"chains": part.chains, "steps": part.steps} if part.chains else {}
            self._tracing.child(
                purify if walk else image,
                "segment" if walk else part.stage,
                part.began,
                part.ended,
                {f"metastable.{name}": value for name, value in counts.items()}
                | ({"metastable.batches": part.batches} if part.batches > 1 else {}),
            )


NONE = NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)


def _remote(traceparent: str) -> SpanContext:
    _, trace_id, span_id, flags = traceparent.split("-")[:4]
    return SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))


def _there(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
