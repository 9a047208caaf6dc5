import io
import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client import CollectorRegistry

from handlers.metrics import Metrics
from handlers.service import Request, Service
from metastable.bundle import Bundle
from metastable.images import Limits


def png(seed: int = 0, size: tuple[int, int] = (32, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Clock:
    """Goes on by a fixed time at each look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def service(tiny: Bundle, registry: CollectorRegistry, **options: Any) -> Service:
    return Service(tiny, Metrics(registry, settings=tiny.settings.names), **options)


def request(data: bytes | None = None, id: str = "r", **headers: str) -> Request:
    named = {"X-Metastable-" + k.replace("_", "-"): v for k, v in headers.items()}
    return Request(id, named, {"body": bytearray(png() if data is None else data)})


def test_a_verdict_has_everything_a_client_needs(tiny: Bundle, registry: CollectorRegistry) -> None:
    [response] = service(tiny, registry).answer([request(id="abc", setting="fast", top_k="4")])
    assert response.status == 200
    body = json.loads(response.body)
    assert body["class"] == tiny.classes[body["label"]] == body["top"][0]["class"]
    probabilities = [entry["probability"] for entry in body["top"]]
    assert len(probabilities) == 4
    assert probabilities == sorted(probabilities, reverse=True)
    assert body["margin"]["value"] >= 0
    assert body["margin"]["standard_error"] > 0
    assert (body["chains"], body["setting"], body["request_id"]) == (3, "fast", "abc")
    assert 0 <= body["steps"] <= 2
    assert body["anomaly"]["flagged"] is (body["anomaly"]["score"] > body["anomaly"]["threshold"])
    assert body["anomaly"]["false_positive_rate"] == 0.05
    assert set(body["timings_ms"]) == {"queue", "decode", "anomaly", "purify", "classify", "total"}
    assert body["model"] == {"name": "tiny", "version": "1.2", "digest": tiny.digest}
    assert body["image"]["resized"] is False


def test_a_batch_mixes_settings_and_failures_and_keeps_order(
    tiny: Bundle, registry: CollectorRegistry
) -> None:
    batch = [
        request(setting="langevin"),
        request(b"not an image"),
        request(setting="none"),
        request(setting="magic"),
        request(b""),
        request(png(size=(64, 48)), setting="fast"),
        request(png()[:60]),
        Request("j", {}, {"body": {"json": 1}}),
        request(setting="fast"),
    ]
    replies = service(tiny, registry).answer(batch)
    assert [r.status for r in replies] == [200, 415, 200, 422, 400, 200, 400, 400, 200]
    bodies = [json.loads(r.body) for r in replies]
    assert [b["setting"] for b in bodies if "setting" in b] == ["langevin", "none", "fast", "fast"]
    assert bodies[5]["image"]["resized"]
    for reply, body in zip(replies, bodies, strict=True):
        if reply.status != 200:
            assert set(body) == {"error", "request_id"}
            assert body["error"]["message"].isascii()
    count = registry.get_sample_value
    assert count("metastable_requests_total", {"setting": "fast", "outcome": "ok"}) == 2
    assert count("metastable_requests_total", {"setting": "other", "outcome": "unsupported_image"}) == 1
    assert count("metastable_batch_size_sum") == len(batch)


def test_seeds_are_secret_unless_allowed(tiny: Bundle, registry: CollectorRegistry) -> None:
    closed = service(tiny, registry)
    one, two = (json.loads(r.body) for r in closed.answer([request(setting="fast")] * 2))
    assert one["margin"] != two["margin"]
    [refused] = closed.answer([request(seed="5")])
    assert refused.status == 422
    opened = service(tiny, CollectorRegistry(), allow_seed=True)
    three, four = (json.loads(r.body) for r in opened.answer([request(setting="fast", seed="5")] * 2))
    [five] = opened.answer([request(setting="fast", seed="5")])
    assert three["margin"] == pytest.approx(four["margin"], abs=1e-4)
    assert three["margin"]["value"] == pytest.approx(json.loads(five.body)["margin"]["value"], abs=1e-4)


def test_a_passed_deadline_is_504_and_harms_no_neighbour(tiny: Bundle, registry: CollectorRegistry) -> None:
    slow = service(tiny, registry, clock=Clock(0.01))
    late, fine = slow.answer([request(deadline_ms="20", setting="fast"), request(setting="fast")])
    assert (late.status, fine.status) == (504, 200)
    assert json.loads(late.body)["error"]["code"] == "deadline_exceeded"


def test_work_stops_when_every_deadline_has_passed(
    tiny: Bundle, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metastable.defense.CHAINS_AT_ONCE", 1)
    clock, calls = Clock(0.001), []
    original = tiny.classifier.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        clock.now += 0.05
        calls.append(1)
        return original(x)

    monkeypatch.setattr(tiny.classifier, "forward", forward)
    [late] = service(tiny, registry, clock=clock).answer([request(deadline_ms="80", setting="fast")])
    assert late.status == 504
    assert len(calls) < 1 + 3  # the raw image and three chains would be four


def test_an_inner_failure_is_a_500_without_details(
    tiny: Bundle,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("handlers.service.defend", broken)
    with caplog.at_level(logging.ERROR):
        [reply] = service(tiny, registry).answer([request(id="r7")])
    assert reply.status == 500
    assert "secret" not in reply.body
    assert "r7" in reply.body
    assert "RuntimeError" in caplog.text


def test_limits_reach_the_decoder(tiny: Bundle, registry: CollectorRegistry) -> None:
    strict = service(tiny, registry, limits=Limits(max_bytes=100, max_pixels=2000))
    assert strict.answer([request()])[0].status == 413
    strict = service(tiny, registry=CollectorRegistry(), limits=Limits(max_pixels=900))
    assert strict.answer([request()])[0].status == 413


def test_no_noise_no_error_bar(tiny: Bundle, registry: CollectorRegistry) -> None:
    [reply] = service(tiny, registry).answer([request(setting="none")])
    body = json.loads(reply.body)
    assert body["margin"]["standard_error"] is None
    assert body["class"] == body["unpurified"]["class"]
