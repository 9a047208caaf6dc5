"""Many requests at once, or images that take long to look at: those under way go on, deadlines are met."""

from __future__ import annotations

import json

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from handlers import service as service_module
from handlers.service import ARRIVALS, Service
from metastable.bundle import Bundle
from metastable.engine.runners.torch_runner import TorchRunner
from tests.handlers.test_service import request, service

LOOK = 0.06  # seconds of a score


class Slow(TorchRunner):
    """Takes LOOK seconds a score and image, on a clock of its own."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.networks, bundle.classifier)
        self.now = 0.0
        self.looked = 0

    def score(self, network: str, x: Tensor) -> Tensor:
        self.now += LOOK * len(x)
        self.looked += len(x)
        return torch.ones_like(x)


@pytest.fixture
def runner(tiny: Bundle) -> Slow:
    return Slow(tiny)


@pytest.fixture
def served(
    tiny: Bundle, runner: Slow, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> Service:
    """One image is looked at at a time, as large ones are."""
    monkeypatch.setattr(service_module, "LOOK_PIXELS", 1024)
    made = service(tiny, registry, runner=runner, clock=lambda: runner.now, sizes=(1,))
    runner.looked = 0
    return made


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_a_step_looks_at_as_many_images_as_there_is_time_for(served: Service, runner: Slow) -> None:
    requests = [request(setting="langevin") for _ in range(5)]
    started = runner.now
    assert served.step(requests) == [None] * 5
    assert runner.looked == 2
    assert runner.now - started <= ARRIVALS + LOOK
    assert {response.status for response in served.answer(requests)} == {200}
    assert runner.looked == 5


def test_a_deadline_is_met_by_a_request_that_waits_for_its_turn(served: Service, runner: Slow) -> None:
    requests = [request(setting="none") for _ in range(9)]
    hurried = request(setting="none", deadline_ms="150")
    waiting, ended = [*requests, hurried], {}
    while waiting:
        responses = served.step(waiting)
        ended |= {
            one.id: (response, runner.now)
            for one, response in zip(waiting, responses, strict=True)
            if response is not None
        }
        waiting = [one for one in waiting if one.id not in ended]
    response, when = ended[hurried.id]
    assert (response.status, json.loads(response.body)["error"]["code"]) == (504, "deadline_exceeded")
    assert when < max(end for _, end in ended.values())
    assert runner.looked == 9  # nothing was paid for the one that was late
    assert {response.status for one, (response, _) in ended.items() if one != hurried.id} == {200}


def test_a_request_that_leaves_before_its_turn_is_given_up(
    served: Service, registry: CollectorRegistry
) -> None:
    first, gone = [request(setting="langevin") for _ in range(3)], request(setting="langevin")
    served.step([*first, gone])
    assert {response.status for response in served.answer(first)} == {200}
    labels = {"setting": "langevin", "outcome": "cancelled", "arm": ""}
    assert registry.get_sample_value("metastable_requests_total", labels) == 1
    assert served._engine.admission.out == 0


def test_the_price_of_a_request_has_the_look_in_it(served: Service) -> None:
    [none] = served.answer([request(setting="none")])
    assert none.status == 200
    assert served._engine.admission.price(served._bundle.settings["none"]) >= LOOK
