"""Fleets on a simulated clock: against closed forms, plain arithmetic, and themselves."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from benchmarks.scaling_costs import Recorded
from benchmarks.scaling_model import capacity, needs
from benchmarks.scaling_replica import Replica
from benchmarks.scaling_requests import Mix, Requests, poisson
from benchmarks.scaling_simulation import ANSWERED, REFUSED, ROUTERS, Fleet, run, simulate, two_choices
from metastable.engine.costs import CLASSIFY, LOOK
from metastable.engine.engine import EngineLimits
from metastable.settings import Setting

NONE = Setting.of("none", "none")
EARLY = Setting.of("early", "adp", chains=24, delta=0.01, steps=1, sigma=0.1, step_bounds=(0.1, 2.0))
FIXED = Setting.of("fixed", "langevin", network="energy", chains=8, steps=20, tau=0.005)
SETTINGS = (NONE, EARLY, FIXED)
SECONDS = {CLASSIFY: 2.5e-3, LOOK: 6e-3, "early": 4e-3, "fixed": 1e-3}
RECORDED = Recorded(
    "toy", "none", "none", 1, {work: {n: s * n for n in (1, 2, 4, 8)} for work, s in SECONDS.items()}
)
FLEET = Fleet(RECORDED, Mix(((NONE, 0.2), (EARLY, 0.7), (FIXED, 0.1)), attacked=0.1))


def members(count: int, fleet: Fleet = FLEET) -> list[Replica]:
    return [
        Replica(fleet.recorded, [setting for setting, _ in fleet.mix.settings], fleet.limits)
        for _ in range(count)
    ]


def router(name: str = "requests"):  # type: ignore[no-untyped-def]
    return ROUTERS[name](random.Random(0))


@pytest.mark.slow
def test_requests_of_one_size_wait_as_long_as_in_the_queue_m_d_1() -> None:
    service, load = 0.01, 0.6
    curves = {CLASSIFY: {1: service}, LOOK: {1: 1e-9}}  # batches of one
    fleet = Fleet(Recorded("toy", "none", "none", 1, curves), Mix(((NONE, 1.0),), 0.0))
    requests = poisson(fleet.mix, load / service, 60.0, seed=1)
    outcomes = run(members(1, fleet), requests, router())
    took = [one.at - at for one, at in zip(outcomes, requests.at, strict=True)]
    waits = load * service / (2 * (1 - load))  # Pollaczek and Khinchine
    assert np.mean(took) == pytest.approx(service + waits, rel=0.05)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("effect", [4.0, 0.5])
def test_a_request_alone_takes_what_arithmetic_says(setting: Setting, effect: float) -> None:
    rng = np.random.default_rng(3)
    said = (effect + rng.standard_normal((1, 24))).astype(np.float32)
    requests = Requests(np.array([1.0]), [setting], said)
    [outcome] = run(members(1), requests, router())
    alone, work, begun = needs(setting, said[0], RECORDED.costs(SETTINGS), FLEET.limits.segment)
    assert outcome.what == ANSWERED
    assert outcome.at - 1.0 == pytest.approx(alone)
    # These costs grow with the batch alone, so company saves nothing.
    assert work == pytest.approx(alone)
    assert 1 <= outcome.chains <= begun


@pytest.mark.parametrize("name", list(ROUTERS))
def test_every_request_has_one_outcome_and_every_refusal_says_when_to_come_again(name: str) -> None:
    fleet = dataclasses.replace(FLEET, limits=EngineLimits(backlog=0.3))
    rate = 3 * 2 * capacity(fleet, seed=0, count=200).rate
    requests = poisson(fleet.mix, rate, 6.0, seed=2)
    replicas = members(2, fleet)
    outcomes = run(replicas, requests, router(name))
    assert len(outcomes) == len(requests.at)
    assert {one.what for one in outcomes} == {ANSWERED, REFUSED}
    for at, one in zip(requests.at, outcomes, strict=True):
        assert (one.retry_after is None) == (one.what == ANSWERED)
        assert one.retry_after is None or one.retry_after > 0
        assert one.at > at if one.what == ANSWERED else one.at == at
    assert [one.ongoing for one in replicas] == [0, 0]
    assert all(one.idle for one in replicas)


def test_a_seed_is_a_course() -> None:
    rows = [simulate(FLEET, 2, 20.0, "requests", 6.0, seed) for seed in (5, 5, 6)]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.slow
def test_four_replicas_answer_four_times_as_many() -> None:
    most = capacity(FLEET, seed=0, count=300).rate
    one, four = (simulate(FLEET, count, 2 * count * most, "requests", 8.0, 7) for count in (1, 4))
    assert one["busy"] == pytest.approx(1, abs=0.01)
    assert four["busy"] == pytest.approx(1, abs=0.02)
    assert four["goodput"] == pytest.approx(4 * one["goodput"], rel=0.1)
    assert one["refused"] > 0.2
    assert one["without_retry_after"] == one["failed"] == 0
    # Those who are admitted are the cheaper ones, so more are answered than of the whole mix.
    assert one["goodput"] > 0.95 * most


def test_time_that_is_worked_is_what_requests_need() -> None:
    found = capacity(FLEET, seed=0, count=300)
    row = simulate(FLEET, 1, found.rate / 2, "requests", 30.0, 8)
    assert row["refused"] == 0
    assert row["goodput"] == pytest.approx(found.rate / 2, rel=0.15)
    assert row["busy"] == pytest.approx(0.5, rel=0.15)


def test_routers_take_the_one_with_less() -> None:
    many = members(3)
    for one, ongoing in zip(many, (4, 1, 2), strict=True):
        one.ongoing = ongoing
    drawn = [router()(many) for _ in range(2)]
    assert many[0] not in drawn  # of any two, one has less
    assert router()([many[0]]) is many[0]
    turns = router("turn")
    assert [turns(many) for _ in range(4)] == [many[0], many[1], many[2], many[0]]
    many[1].admit(0, FIXED, np.zeros(24, np.float32))
    least = two_choices(random.Random(0), lambda one: one.backlog)
    assert all(least(many[:2]) is many[0] for _ in range(8))
