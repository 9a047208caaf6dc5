import io
import itertools
import json
import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from handlers.requests import Request
from handlers.service import Service
from metastable.bundle import Bundle
from metastable.dynamics import score_norm
from metastable.engine.engine import EngineLimits
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.images import ImageLimits, decode
from metastable.serving.metrics import Metrics

pytestmark = pytest.mark.slow


def png(seed: int = 0, size: tuple[int, int] = (32, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


IDS = itertools.count()


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
    options.setdefault("runner", TorchRunner(tiny.networks, tiny.classifier))
    return Service(tiny, Metrics(registry, settings=tiny.settings.names), **options)


def request(data: bytes | None = None, id: str | None = None, **headers: str) -> Request:
    id = id or f"r{next(IDS)}"
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


def test_fewer_bits_leave_the_anomaly_score_as_it_was_calibrated(tiny: Bundle) -> None:
    scores = []
    for precision in ("f32", "bf16"):
        rough = TorchRunner(tiny.networks, tiny.classifier, precision=precision)
        [response] = service(tiny, CollectorRegistry(), runner=rough).answer([request(png(5))])
        scores.append(json.loads(response.body)["anomaly"]["score"])
    other = score_norm(rough.score(tiny.anomaly.network, decode(png(5)).pixels[None])) if tiny.anomaly else 0
    assert scores[0] == scores[1] != round(float(other), 6)


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
    assert count("metastable_requests_total", {"setting": "fast", "outcome": "ok", "arm": ""}) == 2
    assert (
        count("metastable_requests_total", {"setting": "fast", "outcome": "unsupported_image", "arm": ""})
        == 1
    )
    assert count("metastable_batch_size_count") >= 1


def test_seeds_are_secret_unless_allowed(tiny: Bundle, registry: CollectorRegistry) -> None:
    closed = service(tiny, registry)
    twice = [request(setting="fast"), request(setting="fast")]
    one, two = (json.loads(r.body) for r in closed.answer(twice))
    assert one["margin"] != two["margin"]
    [refused] = closed.answer([request(seed="5")])
    assert refused.status == 422
    opened = service(tiny, CollectorRegistry(), allow_seed=True)
    twice = [request(setting="fast", seed="5"), request(setting="fast", seed="5")]
    three, four = (json.loads(r.body) for r in opened.answer(twice))
    [five] = opened.answer([request(setting="fast", seed="5")])
    assert three["margin"] == pytest.approx(four["margin"], abs=1e-4)
    assert three["margin"]["value"] == pytest.approx(json.loads(five.body)["margin"]["value"], abs=1e-4)


def test_a_passed_deadline_is_504_and_harms_no_neighbour(tiny: Bundle, registry: CollectorRegistry) -> None:
    slow = service(tiny, registry, clock=Clock(0.01))
    late, fine = slow.answer([request(deadline_ms="20", setting="fast"), request(setting="fast")])
    assert (late.status, fine.status) == (504, 200)
    assert json.loads(late.body)["error"]["code"] == "deadline_exceeded"


def test_a_deadline_with_some_chains_done_is_the_best_answer_so_far(
    tiny: Bundle, registry: CollectorRegistry
) -> None:
    # A segment is one chain; the clock moves 10 ms a look.
    slow = service(tiny, registry, clock=Clock(0.01), engine_limits=EngineLimits(segment=1e-6))
    [reply] = slow.answer([request(deadline_ms="400", setting="fast")])
    body = json.loads(reply.body)
    assert reply.status == 200
    assert body["late"]
    assert not body["decided"]
    assert body["chains"] == 2
    count = registry.get_sample_value
    assert count("metastable_late_total", {"setting": "fast"}) == 1


def test_requests_join_while_others_run_and_those_that_vanish_are_given_up(
    tiny: Bundle, registry: CollectorRegistry
) -> None:
    served = service(tiny, registry, engine_limits=EngineLimits(segment=1e-6))
    first, second, third = (request(setting="fast") for _ in range(3))
    assert served.step([first, second]) == [None, None]
    assert served.step([first, third]) == [None, None]
    count = registry.get_sample_value
    assert count("metastable_requests_total", {"setting": "fast", "outcome": "cancelled", "arm": ""}) == 1
    assert [reply.status for reply in served.answer([first, third])] == [200, 200]
    assert count("metastable_requests_total", {"setting": "fast", "outcome": "ok", "arm": ""}) == 2
    assert count("metastable_chains_under_way") == 0


def test_work_beyond_the_backlog_is_503_with_a_time(tiny: Bundle, registry: CollectorRegistry) -> None:
    small = service(tiny, registry, engine_limits=EngineLimits(backlog=1e-9, few=1))
    fine, refused = small.answer([request(setting="fast"), request(setting="fast")])
    assert (fine.status, refused.status) == (200, 503)
    assert int(refused.headers["Retry-After"]) >= 1
    assert json.loads(refused.body)["error"]["code"] == "overloaded"


def test_an_inner_failure_is_a_500_without_details(
    tiny: Bundle,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(TorchRunner):
        def advance(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("secret detail")

    served = service(tiny, registry, runner=TorchRunner(tiny.networks, tiny.classifier))
    monkeypatch.setattr(TorchRunner, "advance", Broken.advance)
    with caplog.at_level(logging.ERROR):
        [reply] = served.answer([request(id="r7")])
    assert reply.status == 500
    assert "secret" not in reply.body
    assert "r7" in reply.body
    assert "RuntimeError" in caplog.text


def test_limits_reach_the_decoder(tiny: Bundle, registry: CollectorRegistry) -> None:
    strict = service(tiny, registry, limits=ImageLimits(max_bytes=100, max_pixels=2000))
    assert strict.answer([request()])[0].status == 413
    strict = service(tiny, registry=CollectorRegistry(), limits=ImageLimits(max_pixels=900))
    assert strict.answer([request()])[0].status == 413


def test_no_noise_no_error_bar(tiny: Bundle, registry: CollectorRegistry) -> None:
    [reply] = service(tiny, registry).answer([request(setting="none")])
    body = json.loads(reply.body)
    assert body["margin"]["standard_error"] is None
    assert body["class"] == body["unpurified"]["class"]
    assert not body["decided"]
