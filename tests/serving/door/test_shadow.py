"""The shadow: asked while nobody else asks, interrupted by whoever does, and told of nobody."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from metastable.bundle import Bundle
from metastable.errors import Overloaded
from metastable.images import Fit, decode
from metastable.serving.backends.base import Judged, Question, Room, Served
from metastable.serving.door import shadow_report
from metastable.serving.door.models import Models
from metastable.serving.door.shadow import TRIES, Answered, Shadows
from metastable.serving.options import RequestOptions
from metastable.serving.policy.counts import Counts
from metastable.serving.policy.keeper import Keeper
from metastable.serving.policy.values import Shadow
from tests.serving.door.conftest import png
from tests.serving.door.running import PATIENCE, Running, running

SHADOW = Shadow("slow", 1.0, waiting=3)
SERVED = Served("m", "1", "d", (3, 4, 4), Fit(), ("x", "y"), ("fast", "slow"), "fast", True, "torch")


class Kept:
    """Room that counts."""

    def __init__(self, backend: Fake) -> None:
        self.backend = backend

    async def __aenter__(self) -> Kept:
        self.backend.rooms += 1
        return self

    async def __aexit__(self, *error: object) -> None:
        self.backend.rooms -= 1


class Fake:
    """A backend that answers when it is told to, and refuses while there is work."""

    served = SERVED
    ready = True

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.opened = asyncio.Event()
        self.rooms = 0
        self.backlog = 0.0
        self.fails = False
        self.label = 1

    def check_room(self, setting: str) -> None:
        if self.rooms:
            raise Overloaded("full", 2.0)

    async def admit(self, setting: str) -> Room:
        self.check_room(setting)
        return Kept(self)

    async def ask(self, question: Question, room: Room) -> Judged:
        self.asked.append(question)
        await self.opened.wait()
        if self.fails:
            raise Overloaded("too much")
        return judged(label=self.label, chains=9, seconds=0.5)

    async def close(self, drain: float) -> None:
        pass


def judged(*, label: int, chains: int, seconds: float, flagged: bool = False) -> Judged:
    anomaly = {"flagged": flagged, "shift": {"flagged": None}}
    body = {"label": label, "chains": chains, "anomaly": anomaly}
    return Judged(body, {"queue": 7.0, "purify": seconds, "classify": seconds})


def answered(backend: Fake, number: int = 0, setting: str = "fast") -> Answered:
    file = io.BytesIO()
    np.save(file, np.zeros((4, 4, 3), np.uint8))
    options = RequestOptions(setting, 1, 50, 7)
    image = decode(file.getvalue(), size=4)
    question = Question(f"q{number}", image, options, 1.0)
    return Answered(backend, question, judged(label=0, chains=2, seconds=0.25, flagged=True))


class World:
    """Shadows before a fake backend."""

    def __init__(self, draw: Callable[[], float] = lambda: 0.0) -> None:
        self.backend, self.registry = Fake(), CollectorRegistry()
        self.shadows = Shadows(Models([self.backend]), Counts(self.registry), draw)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"metastable_shadow_{name}", labels) or 0.0

    def ended(self, outcome: str) -> float:
        return self.count("total", setting="slow", outcome=outcome)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.002)


def test_an_image_is_compared_and_what_differs_is_counted(tmp_path: Path) -> None:
    async def go() -> None:
        world = World()
        world.backend.opened.set()
        shadow = dataclasses.replace(SHADOW, report=tmp_path / "shadow.json")
        world.shadows.offer(shadow, [answered(world.backend)])
        await until(lambda: world.ended("compared") == 1)
        world.backend.label = 0
        world.shadows.offer(shadow, [answered(world.backend)])
        await until(lambda: world.ended("compared") == 2)
        pair = {"setting": "fast", "shadow": "slow"}
        assert world.count("label_differences_total", **pair) == 1
        assert world.count("flag_differences_total", **pair) == 2
        assert world.count("chains_total", **pair, of="answer") == 4
        assert world.count("chains_total", **pair, of="shadow") == 18
        assert world.count("seconds_total", **pair, of="answer") == 1.0
        assert world.count("seconds_total", **pair, of="shadow") == 2.0
        [question, _] = world.backend.asked
        assert (question.options.setting, question.options.seed, question.counted) == ("slow", None, False)
        assert question.deadline is not None
        assert question.deadline > time.monotonic()
        assert world.backend.rooms == 0
        await world.shadows.close()
        said = json.loads((tmp_path / "shadow.json").read_text())
        sums = {
            "compared": 2,
            "label_differs": 1,
            "flag_differs": 2,
            "chains": [4, 18],
            "seconds": [1.0, 2.0],
        }
        assert said == {"sampled": {"compared": 2}, "pairs": [pair | sums]}

    asyncio.run(go())


def test_a_share_is_sampled_and_its_own_setting_never() -> None:
    async def go() -> None:
        draws = iter([0.2, 0.3, 0.1, 0.9])
        world = World(lambda: next(draws))
        world.backend.opened.set()
        shadow = dataclasses.replace(SHADOW, share=0.25)
        images = [answered(world.backend, i) for i in range(4)]
        world.shadows.offer(shadow, [*images, answered(world.backend, setting="slow")])
        await until(lambda: world.ended("compared") == 2)
        await world.shadows.close()
        assert len(world.backend.asked) == 2

    asyncio.run(go())


def test_what_finds_no_place_is_dropped_and_counted() -> None:
    async def go() -> None:
        world = World()
        world.backend.backlog = 1.0  # others' work: nothing starts
        world.shadows.offer(SHADOW, [answered(world.backend, i) for i in range(5)])
        assert world.ended("full") == 2
        await asyncio.sleep(0.1)
        assert world.backend.asked == []
        world.backend.backlog = 0.0
        world.backend.opened.set()
        await until(lambda: world.ended("compared") == 3)
        await world.shadows.close()

    asyncio.run(go())


def test_an_image_that_comes_interrupts_it_and_it_starts_again() -> None:
    async def go() -> None:
        world = World()
        world.shadows.offer(SHADOW, [answered(world.backend)])
        await until(lambda: world.backend.rooms == 1)
        with world.shadows.held():
            async with await world.shadows.admit(world.backend, "fast"):
                await asyncio.sleep(0.1)
                assert world.backend.rooms == 1  # that of the client alone
                assert len(world.backend.asked) == 1
        world.backend.opened.set()
        await until(lambda: world.ended("compared") == 1)
        assert len(world.backend.asked) == 2
        await world.shadows.close()

    asyncio.run(go())


def test_one_that_is_interrupted_again_and_again_is_dropped() -> None:
    async def go() -> None:
        world = World()
        world.shadows.offer(SHADOW, [answered(world.backend)])
        for _ in range(TRIES):
            await until(lambda: world.backend.rooms == 1)
            with world.shadows.held():
                await until(lambda: world.backend.rooms == 0)
        await until(lambda: world.ended("interrupted") == 1)
        await world.shadows.close()
        assert world.ended("interrupted") == 1

    asyncio.run(go())


def test_it_takes_nobodys_room_and_a_full_server_still_refuses() -> None:
    async def go() -> None:
        world = World()
        world.shadows.offer(SHADOW, [answered(world.backend)])
        await until(lambda: world.backend.rooms == 1)
        await world.shadows.check_room(world.backend, "fast")  # the shadow had it
        await world.shadows.close()
        async with await world.backend.admit("fast"):
            with pytest.raises(Overloaded):
                await world.shadows.check_room(world.backend, "fast")

    asyncio.run(go())


def test_a_shadow_that_fails_is_counted_and_the_next_one_runs() -> None:
    async def go() -> None:
        world = World()
        world.backend.opened.set()
        world.backend.fails = True
        world.shadows.offer(SHADOW, [answered(world.backend)])
        await until(lambda: world.ended("failed") == 1)
        world.backend.fails = False
        world.shadows.offer(SHADOW, [answered(world.backend)])
        await until(lambda: world.ended("compared") == 1)
        await world.shadows.close()

    asyncio.run(go())


def test_the_end_gives_up_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        world = World()
        world.shadows.offer(SHADOW, [answered(world.backend, i) for i in range(3)])
        await until(lambda: world.backend.rooms == 1)
        await world.shadows.close()
        assert world.backend.rooms == 0
        assert world.ended("interrupted") == 2
        world.shadows.offer(SHADOW, [answered(world.backend)])
        assert len(world.backend.asked) == 1

    asyncio.run(go())


def test_a_report_that_cannot_be_written_costs_no_more_than_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = shadow_report.Report()
    asyncio.run(found.write_at(tmp_path / "no folder" / "shadow.json"))
    assert "report cannot be written" in caplog.text


def post(served: Running, **given: Any) -> httpx.Response:
    return httpx.post(served.url + "/classify", timeout=PATIENCE, trust_env=False, **given)


def same(answer: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    return {name: value for name, value in body.items() if name not in ("request_id", "timings_ms")}


@pytest.mark.slow
def test_answers_of_a_door_are_the_same_with_a_shadow(tiny: Bundle, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "shadow: {setting: langevin, share: 1, waiting: 100, report: s.json}"
    )
    seed = {"seed": "3"}
    with running(tiny) as served:
        plain = [same(post(served, content=png(i), params=seed)) for i in range(4)]
    with running(tiny, keeper=Keeper(tmp_path / "policy.yaml")) as served:
        found = [same(post(served, content=png(i), params=seed)) for i in range(4)]
        assert post(served, content=b"no image").status_code == 415

        def compared() -> float:
            return served.count("shadow_total", setting="langevin", outcome="compared")

        ends = time.monotonic() + PATIENCE
        while compared() < 4 and time.monotonic() < ends:
            time.sleep(0.05)
        assert compared() == 4
        pair = {"setting": "fast", "shadow": "langevin"}
        assert served.count("shadow_chains_total", **pair, of="answer") == 12
        assert served.count("shadow_chains_total", **pair, of="shadow") == 8
        # Verdicts that nobody was told are not among those that were.
        assert served.count("chains_count", setting="langevin") == 0
        assert served.count("chains_count", setting="fast") == 4
    assert found == plain
    assert json.loads((tmp_path / "s.json").read_text())["sampled"] == {"compared": 4}
