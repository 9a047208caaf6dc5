"""Replicas behind a door: real engines, and a cluster that is played.

tests/deploy/test_clustered_ray.py has a real one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import pickle
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from metastable import settings
from metastable.bundle import Bundle
from metastable.engine.engine import EngineLimits
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import DeadlineExceeded, Draining, MetastableError, Overloaded, Unavailable
from metastable.images import DecodedImage
from metastable.serving.backends import parts
from metastable.serving.backends import replicas as module
from metastable.serving.backends.base import Question
from metastable.serving.backends.local import Local
from metastable.serving.backends.replica import Asked, Replica, Told
from metastable.serving.backends.replicas import Gone, Replicas
from metastable.serving.control import refusal
from metastable.serving.metrics import Metrics
from metastable.serving.options import RequestOptions

SETTINGS = """
default: fast
caps: {chains: 96, steps: 4}
settings:
  none: {dynamics: none}
  fast: {dynamics: langevin, network: score, chains: 3, steps: 2, tau: 0.01}
  many: {dynamics: langevin, network: score, chains: 70, steps: 2, tau: 0.05}
  early: {dynamics: langevin, network: score, chains: 90, steps: 2, tau: 0.05, delta: 0.01}
  flag: {dynamics: noise, chains: 70, steps: 1, sigma: 0.1, sigma_unflagged: 0.02}
"""
ids = itertools.count()
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def served(tiny: Bundle) -> Bundle:
    return tiny.with_settings(settings.parse(SETTINGS))


class Played:
    """Replicas in this process, asked in turn; all that is said goes through pickle, as between machines."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas, self.asked = list(replicas), list[Asked]()
        self.failing: list[BaseException | Told] = []  # in place of the next answers
        self._turn = itertools.cycle(range(len(self.replicas)))

    async def ask(self, asked: Asked) -> Told:
        self.asked.append(asked)
        if self.failing:
            instead = self.failing.pop(0)
            if isinstance(instead, Told):
                return instead
            raise instead
        sent: Asked = pickle.loads(pickle.dumps(asked))
        told: Told = pickle.loads(pickle.dumps(await self.replicas[next(self._turn)].ask(sent)))
        return told

    async def look(self) -> list[tuple[float, dict[str, Any]]]:
        return [(0.0, one.state()) for one in self.replicas]


def replica(bundle: Bundle, name: str, **limits: Any) -> Replica:
    runner = TorchRunner(bundle.networks, bundle.classifier)
    made = EngineLimits(**limits) if limits else None
    return Replica(name, bundle, runner, allow_seed=True, limits=made, sizes=(1, 4, 16))


@asynccontextmanager
async def running(bundle: Bundle, count: int = 2, **limits: Any) -> AsyncIterator[tuple[Replicas, Played]]:
    cluster = Played([replica(bundle, f"r{i}", **limits) for i in range(count)])
    metrics = Metrics(CollectorRegistry(), settings=bundle.settings.names)
    async with Replicas(cluster, bundle, metrics) as backend:
        while backend.count < count:
            await asyncio.sleep(0.01)
        yield backend, cluster
    for one in cluster.replicas:
        await one.close(0.0)


def question(
    setting: str, seed: int | None = 7, deadline: float | None = None, level: float = 0.25
) -> Question:
    pixels = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(round(100 * level)))
    image = DecodedImage(pixels, "PNG", (32, 32), False, ())
    return Question(f"q{next(ids)}", image, RequestOptions(setting, 3, None, seed), deadline)


async def of_one_engine(bundle: Bundle, asked: Question) -> dict[str, Any]:
    metrics = Metrics(CollectorRegistry(), settings=bundle.settings.names)
    runner = TorchRunner(bundle.networks, bundle.classifier)
    local = Local(bundle, runner, metrics, allow_seed=True, sizes=(1, 4, 16))
    try:
        return (await local.ask(asked, await local.admit(asked.options.setting))).body
    finally:
        await local.close(0.0)


def near(one: Any, other: Any) -> bool:
    """The same but for the last digits: sums of other batches differ in them."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    return bool(one == pytest.approx(other, rel=1e-4, abs=2e-5)) if isinstance(one, float) else one == other


@pytest.mark.parametrize("setting", ["none", "fast", "many", "early"])
async def test_the_verdict_is_that_of_one_engine(served: Bundle, setting: str) -> None:
    async with running(served, 3) as (backend, cluster):
        for level in (0.1, 0.6):
            asked = question(setting, level=level)
            judged = await backend.ask(asked, await backend.admit(setting))
            assert near(judged.body, await of_one_engine(served, asked))
            assert judged.counted is None
            assert {"anomaly", "queue", "purify", "classify"} <= set(judged.seconds)
    made = [one.part for one in cluster.asked]
    assert all(part is None for part in made) == (setting in ("none", "fast"))


async def test_many_chains_are_shared_and_each_is_made_once(served: Bundle) -> None:
    async with running(served, 3) as (backend, cluster):
        await backend.ask(question("many"), await backend.admit("many"))
    made = [number for one in cluster.asked if one.part for number in range(one.part.first, one.part.end)]
    assert sorted(made) == list(range(70))
    assert len(cluster.asked) == 3


async def test_what_is_decided_early_is_not_shared(served: Bundle) -> None:
    async with running(served) as (backend, cluster):
        judged = await backend.ask(question("early"), await backend.admit("early"))
        seeds = {one.options.seed for one in cluster.asked}
        assert seeds == {7}
        first = cluster.asked[0].part
        assert first is not None
        assert (first.first, first.decides) == (0, True)
        assert (len(cluster.asked) > 1) == (judged.body["chains"] > parts.FIRST or not judged.body["decided"])


async def test_one_replica_judges_the_flag_for_all(served: Bundle) -> None:
    async with running(served, 3) as (backend, cluster):
        for level in (0.1, 0.6):
            cluster.asked.clear()
            asked = question("flag", level=level)
            judged = await backend.ask(asked, await backend.admit("flag"))
            assert near(judged.body, await of_one_engine(served, asked))
            first, *others = (one.part for one in cluster.asked)
            assert first is not None
            assert first.raw is None
            assert others
            assert all(part is not None and part.raw is not None for part in others)


async def test_a_part_that_comes_too_late_leaves_the_answer_of_the_others(served: Bundle) -> None:
    async with running(served, 3) as (backend, cluster):
        late = Told(refused=refusal(DeadlineExceeded("too late")))
        cluster.failing = [late]
        judged = await backend.ask(question("many"), await backend.admit("many"))
        assert 40 < judged.body["chains"] < 70
        assert judged.body["late"]
        cluster.failing = [late] * 3
        with pytest.raises(DeadlineExceeded):
            await backend.ask(question("many"), await backend.admit("many"))


async def test_a_part_that_is_refused_waits_for_room(served: Bundle) -> None:
    async with running(served, 3) as (backend, cluster):
        asked = question("many")
        cluster.failing = [Told(refused=refusal(Overloaded("full", retry_after=0.05)))] * 4
        judged = await backend.ask(asked, await backend.admit("many"))
        assert near(judged.body, await of_one_engine(served, asked))
        cluster.failing = [Told(refused=refusal(Overloaded("full", retry_after=0.01)))] * 99
        with pytest.raises(Overloaded):
            await backend.ask(asked, await backend.admit("many"))


async def test_who_waits_for_replicas_that_are_all_gone_is_told(
    served: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALE", module.LOOK)
    async with running(served) as (backend, cluster):

        async def forever(asked: Asked) -> Told:
            await asyncio.sleep(3600)
            raise AssertionError

        async def gone() -> list[tuple[float, dict[str, Any]]]:
            return []

        monkeypatch.setattr(cluster, "ask", forever)
        asking = asyncio.create_task(backend.ask(question("fast"), await backend.admit("fast")))
        await asyncio.sleep(0)
        monkeypatch.setattr(cluster, "look", gone)
        with pytest.raises(Unavailable) as refused:
            await asking
        assert refused.value.retry_after


async def test_what_the_cluster_gives_up_is_asked_again(served: Bundle) -> None:
    async with running(served) as (backend, cluster):
        cluster.failing = [asyncio.CancelledError()]
        judged = await backend.ask(question("fast"), await backend.admit("fast"))
        assert judged.body["chains"] == 3


async def test_a_board_that_has_just_begun_is_not_believed(
    served: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(served) as (backend, cluster):
        look = cluster.look

        async def empty() -> list[tuple[float, dict[str, Any]]]:
            return []

        monkeypatch.setattr(cluster, "look", empty)
        await asyncio.sleep(3 * module.LOOK)
        assert backend.ready
        monkeypatch.setattr(cluster, "look", look)
        await asyncio.sleep(2 * module.LOOK)
        assert backend.count == 2


async def test_parts_of_a_secret_seed_have_one_seed(served: Bundle) -> None:
    async with running(served) as (backend, cluster):
        await backend.ask(question("many", seed=None), await backend.admit("many"))
        await backend.ask(question("many", seed=None), await backend.admit("many"))
    first, second = cluster.asked[:2], cluster.asked[2:]
    assert len({one.options.seed for one in first}) == len({one.options.seed for one in second}) == 1
    assert first[0].options.seed != second[0].options.seed


async def test_a_replica_that_dies_is_asked_no_more_and_another_is(served: Bundle) -> None:
    async with running(served) as (backend, cluster):
        cluster.failing = [Gone("killed")]
        judged = await backend.ask(question("fast"), await backend.admit("fast"))
        assert judged.body["chains"] == 3
        cluster.failing, cluster.asked = [Gone("killed")] * 9, []
        with pytest.raises(Unavailable) as refused:
            await backend.ask(question("fast"), await backend.admit("fast"))
        assert refused.value.retry_after
        assert len(cluster.asked) == module.TRIES


async def test_what_one_refuses_another_may_take(served: Bundle) -> None:
    async with running(served, 2, few=1, jobs=1) as (backend, cluster):
        kept = cluster.replicas[0]._local._driver.admit(served.settings["fast"])
        judged = await backend.ask(question("fast"), await backend.admit("fast"))
        assert judged.body["chains"] == 3
        assert len(cluster.asked) == 2
        other = cluster.replicas[1]._local._driver.admit(served.settings["fast"])
        await asyncio.sleep(2 * module.LOOK)
        with pytest.raises(Overloaded) as refused:
            backend.check_room("fast")
        assert refused.value.retry_after is not None
        with pytest.raises(Overloaded):
            await backend.admit("fast")
        kept.release()
        other.release()
        await asyncio.sleep(2 * module.LOOK)
        backend.check_room("fast")


async def test_a_deadline_goes_with_the_question(served: Bundle) -> None:
    async with running(served, 1) as (backend, _):
        with pytest.raises(DeadlineExceeded):
            await backend.ask(question("fast", deadline=time.monotonic() - 1), await backend.admit("fast"))
        with pytest.raises(DeadlineExceeded):
            await backend.ask(question("many", deadline=time.monotonic() + 1e-4), await backend.admit("many"))


async def test_who_leaves_gives_the_chains_back(served: Bundle) -> None:
    slow = served.with_settings(
        settings.parse(SETTINGS.replace("chains: 70, steps: 2", "chains: 96, steps: 4"))
    )
    async with running(slow, 2) as (backend, cluster):
        task = asyncio.create_task(backend.ask(question("many"), await backend.admit("many")))
        while not cluster.asked:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ends = time.monotonic() + 20
        while any(one._local.chains or one.backlog for one in cluster.replicas):
            assert time.monotonic() < ends
            await asyncio.sleep(0.02)


async def test_closing_lets_what_is_under_way_end(served: Bundle) -> None:
    async with running(served) as (backend, _):
        task = asyncio.create_task(backend.ask(question("fast"), await backend.admit("fast")))
        await asyncio.sleep(0)
        await backend.close(20.0)
        assert (await task).body["chains"] == 3
        with pytest.raises(Draining):
            backend.check_room("fast")


async def test_no_replica_is_said_so(served: Bundle) -> None:
    backend = Replicas(Played([replica(served, "r")]), served, Metrics(CollectorRegistry()))
    assert not backend.ready
    with pytest.raises(Unavailable):
        backend.check_room("fast")


async def test_replicas_of_another_bundle_are_not_asked(served: Bundle, tiny: Bundle) -> None:
    cluster = Played([replica(served, "r")])
    other = dataclasses.replace(served, digest="0" * 64)
    async with Replicas(cluster, other, Metrics(CollectorRegistry())) as backend:
        await asyncio.sleep(3 * module.LOOK)
        assert not backend.ready
    await cluster.replicas[0].close(0.0)


async def test_a_replica_of_another_bundle_refuses(served: Bundle) -> None:
    one = replica(served, "r")
    told = await one.ask(Asked.of(question("fast"), "0" * 64))
    assert told.refused is not None
    assert told.refused["code"] == "unavailable"
    await one.close(0.0)


async def test_a_board_that_is_away_for_a_moment_costs_nothing(
    served: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(served) as (backend, cluster):

        async def away() -> list[tuple[float, dict[str, Any]]]:
            raise ConnectionError

        monkeypatch.setattr(cluster, "look", away)
        await asyncio.sleep(3 * module.LOOK)
        assert backend.ready
        monkeypatch.setattr(module, "STALE", 2 * module.LOOK)
        await asyncio.sleep(3 * module.LOOK)
        assert not backend.ready


async def test_what_is_stale_is_gone(served: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(served) as (backend, cluster):
        aged = [(module.STALE + 1, state) for _, state in await cluster.look()]

        async def look() -> list[tuple[float, dict[str, Any]]]:
            return aged

        monkeypatch.setattr(cluster, "look", look)
        await asyncio.sleep(3 * module.LOOK)
        assert not backend.ready


async def test_a_fault_inside_tells_no_secret(served: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(served, 1) as (backend, cluster):

        async def broken(*_: Any) -> None:
            raise ValueError("the seed is 12345")

        monkeypatch.setattr(cluster.replicas[0]._local, "ask", broken)
        with pytest.raises(MetastableError) as fault:
            await backend.ask(question("fast"), await backend.admit("fast"))
        assert "12345" not in str(fault.value)


async def test_verdicts_are_counted_once(served: Bundle) -> None:
    cluster = Played([replica(served, f"r{i}") for i in range(2)])
    registry = CollectorRegistry()
    metrics = Metrics(registry, settings=served.settings.names)
    async with Replicas(cluster, served, metrics) as backend:
        while backend.count < 2:
            await asyncio.sleep(0.01)
        for setting in ("fast", "many"):
            await backend.ask(question(setting), await backend.admit(setting))
            uncounted = dataclasses.replace(question(setting), counted=False)
            await backend.ask(uncounted, await backend.admit(setting))
    for setting in ("fast", "many"):
        assert registry.get_sample_value("metastable_chains_count", {"setting": setting}) == 1
    for one in cluster.replicas:
        await one.close(0.0)


async def test_one_replica_may_get_all_parts(served: Bundle) -> None:
    async with running(served, 2) as (backend, cluster):
        cluster._turn = itertools.repeat(0)  # type: ignore[assignment]
        asked = question("many")
        judged = await backend.ask(asked, await backend.admit("many"))
        assert near(judged.body, await of_one_engine(served, asked))
        cluster.failing = [Gone("killed")]
        again = await backend.ask(asked, await backend.admit("many"))
        assert near(again.body, judged.body)
