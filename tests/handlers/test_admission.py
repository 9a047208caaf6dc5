"""A request is refused before anything is paid for it, and no permit stays."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from handlers import service as service_module
from handlers.requests import Request
from handlers.service import Service
from metastable.bundle import Bundle
from metastable.engine.engine import EngineLimits
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.images import DecodedImage, decode
from tests.handlers.test_service import Clock, png, request, service

pytestmark = pytest.mark.slow


class Counting(TorchRunner):
    """Says how many images were scored and classified; fails on request."""

    scored = classified = 0
    fail_score = fail_classify = False

    def score(self, network: str, x: Tensor) -> Tensor:
        if self.fail_score:
            raise RuntimeError("the score network is gone")
        self.scored += len(x)
        return super().score(network, x)

    def classify(self, x: Tensor) -> Tensor:
        self.classified += len(x)
        found = super().classify(x)
        return torch.full_like(found, torch.nan) if self.fail_classify else found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the bodies that were decoded."""
    seen: list[int] = []

    def counted(data: bytes, **more: object) -> DecodedImage:
        seen.append(len(data))
        return decode(data, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(service_module, "decode", counted)
    return seen


def made(tiny: Bundle, **limits: float) -> tuple[Service, Counting]:
    runner = Counting(tiny.networks, tiny.classifier)
    served = service(tiny, CollectorRegistry(), runner=runner, engine_limits=EngineLimits(**limits))  # type: ignore[arg-type]
    runner.scored = runner.classified = 0  # what its costs took
    return served, runner


def statuses(served: Service, requests: Sequence[Request]) -> list[int]:
    return [response.status for response in served.answer(requests)]


def permits(served: Service) -> int:
    return served._engine.admission.out


def test_what_is_refused_was_not_decoded_scored_or_classified(tiny: Bundle, decoded: list[int]) -> None:
    served, runner = made(tiny, backlog=1e-9, few=1)
    long, short, unknown = request(setting="langevin"), request(setting="fast"), request(setting="magic")
    found = served.step([long, short, unknown])
    while found[0] is None:
        [found[0]] = served.step([long])
    assert [response.status if response else 0 for response in found] == [200, 503, 422]
    assert len(decoded) == runner.scored == 1
    assert runner.classified == 1 + tiny.settings["langevin"].chains
    assert permits(served) == 0


def test_broken_images_give_their_permits_back(tiny: Bundle, decoded: list[int]) -> None:
    served, _ = made(tiny, jobs=2)
    broken = [request(b"no image"), request(png()[:60]), request(b""), request(b"RIFF")]
    assert 503 not in statuses(served, broken)  # each frees the place of the one before
    assert len(decoded) == len(broken)
    assert permits(served) == 0
    assert statuses(served, [request(), request()]) == [200, 200]


def test_a_score_network_that_breaks_gives_the_permits_back(tiny: Bundle) -> None:
    served, runner = made(tiny, jobs=3)
    runner.fail_score = True
    assert statuses(served, [request(), request(), request()]) == [500, 500, 500]
    assert permits(served) == 0
    runner.fail_score = False
    assert statuses(served, [request(), request(), request()]) == [200, 200, 200]


def test_a_network_that_breaks_in_its_chains_gives_the_permits_back(tiny: Bundle) -> None:
    served, runner = made(tiny)
    runner.fail_classify = True
    assert statuses(served, [request(), request(setting="none")]) == [500, 500]
    assert permits(served) == 0


def test_deadlines_and_those_who_left_give_their_permits_back(tiny: Bundle) -> None:
    slow = service(tiny, CollectorRegistry(), clock=Clock(0.01))
    assert statuses(slow, [request(deadline_ms="20", setting="fast")]) == [504]
    assert permits(slow) == 0
    served, _ = made(tiny, segment=1e-6)
    gone, stays = request(setting="langevin"), request(setting="langevin")
    served.step([gone, stays])
    assert permits(served) == 2
    assert statuses(served, [stays]) == [200]
    assert permits(served) == 0


def test_the_place_of_those_who_left_is_free_at_once(tiny: Bundle) -> None:
    served, _ = made(tiny, segment=1e-6, jobs=1)
    assert served.step([request(setting="langevin")]) == [None]
    assert statuses(served, [request(setting="langevin")]) == [200]


def test_an_overload_counts_under_its_setting(tiny: Bundle) -> None:
    registry = CollectorRegistry()
    small = service(tiny, registry, engine_limits=EngineLimits(jobs=1))
    [_, refused] = small.answer([request(), request(setting="none")])
    assert json.loads(refused.body)["error"]["code"] == "overloaded"
    labels = {"setting": "none", "outcome": "overloaded", "arm": ""}
    assert registry.get_sample_value("metastable_requests_total", labels) == 1
