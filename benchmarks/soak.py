"""A server for hours: honest and rude clients, and parts of it that are killed or frozen.

Every honest request must end in an answer, its own one: images differ, and what the bare classifier says of
each was asked before.  Once every `pause` seconds something happens, and a client that asks all the time
tells how long nobody got a verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import server
from benchmarks.happenings import HAPPENINGS, Stage
from benchmarks.rude import MANNERS

PATIENCE = 120.0
"""Seconds after which a request counts as hanging: more than any of them may take."""
HANGS, CLOSED, GARBAGE = "hangs", "closed", "no JSON"
REFUSED = ("429", "503")
"""Answers that an honest request may get besides a verdict; 504 too, where it has a deadline."""
PROBE, LOOK = 0.2, 10.0
"""Seconds between two requests of the client that asks all the time, and between two looks at the memory."""


@dataclass(frozen=True)
class SoakConfig:
    """
    Attributes:
        engine: what answers behind the door.
        minutes: of the campaign.
        pause: seconds between two things that happen.
        clients: that ask honestly, each one request after the other; a quarter as many are rude.
        settings: what honest clients ask for, besides `none`.
    """

    engine: str
    minutes: float
    pause: float = 60.0
    clients: int = 8
    settings: tuple[str, ...] = ("fast",)


@dataclass
class Course:
    """What was seen, with times in seconds since the campaign began; `over` ends it."""

    begun: float = field(default_factory=time.monotonic)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    ended: float = 0.0
    outcomes: list[tuple[float, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    rude: Counter[str] = field(default_factory=Counter)
    verdicts: list[float] = field(default_factory=list)  # of the client that asks all the time
    happened: list[tuple[float, str]] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    @property
    def now(self) -> float:
        return time.monotonic() - self.begun


def measure(
    bundle: Path, images: Sequence[bytes], work: Path, config: SoakConfig, picture: Path | None
) -> dict[str, Any]:
    """The figures; `picture`: where the course is drawn.

    Raises MetastableError where the server does not start.
    """
    with server.started(bundle, work / config.engine, {}, config.engine) as (url, launcher):
        door = psutil.Process(launcher.pid)
        course = asyncio.run(_campaign(url, images, door, config))
        family = door.children(recursive=True)
    _, alive = psutil.wait_procs(family, timeout=10)
    if picture is not None:
        draw(picture, course)
    return figures(course, config) | {"exit_status": launcher.returncode, "left_running": len(alive)}


def figures(course: Course, config: SoakConfig) -> dict[str, Any]:
    """What a course comes to: `gaps_s` are, for each happening, the longest times without a verdict."""
    gaps: dict[str, list[float]] = {}
    ends = [at for at, _ in course.happened[1:]] + [course.ended]
    for (at, name), end in zip(course.happened, ends, strict=True):
        gaps.setdefault(name, []).append(round(longest_gap(course.verdicts, at, end), 1))
    sizes = [size for _, size in course.memory]
    return {
        "engine": config.engine,
        "minutes": config.minutes,
        "requests": len(course.outcomes),
        "outcomes": dict(Counter(outcome for _, outcome in course.outcomes)),
        "verdicts": dict(course.answered),
        "wrong": len(course.wrong),
        "examples": course.wrong[:5],
        "rude": dict(course.rude),
        "gaps_s": gaps,
        "memory_mb": {"begin": sizes[0], "most": max(sizes), "end": sizes[-1]} if sizes else {},
    }


def longest_gap(verdicts: Sequence[float], begin: float, end: float) -> float:
    """Seconds of the longest time between `begin` and `end` in which there was no verdict."""
    times = [begin, *(at for at in verdicts if begin < at < end), end]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


async def _campaign(url: str, images: Sequence[bytes], door: psutil.Process, config: SoakConfig) -> Course:
    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as known:
        labels = [
            (await known.post(url, content=image, headers={"X-Metastable-Setting": "none"})).json()["class"]
            for image in images
        ]
    course = Course()
    await asyncio.gather(
        *(_honest(number, url, images, labels, course, config) for number in range(config.clients)),
        *(_rude(number, url, images[0], course) for number in range(max(1, config.clients // 4))),
        _probe(url, images[0], course),
        _watch(door, course),
        _happen(Stage(url, images[0], door), course, config),
    )
    return course


async def _honest(
    number: int,
    url: str,
    images: Sequence[bytes],
    labels: Sequence[str],
    course: Course,
    config: SoakConfig,
) -> None:
    rng = random.Random(number)
    async with _client(number) as client:
        while not course.over.is_set():
            which, setting = rng.randrange(len(images)), rng.choice(("none", *config.settings))
            headers = {"X-Metastable-Setting": setting}
            if rng.random() < 0.1:
                headers["X-Metastable-Deadline-Ms"] = str(rng.choice((1, 50, 1000)))
            outcome, body = await _ask(client, url, images[which], headers)
            course.outcomes.append((course.now, outcome))
            if outcome == "200" and setting == "none" and body["class"] != labels[which]:
                course.wrong.append(f"{body['class']} instead of {labels[which]}")
            elif outcome == "200" and body["setting"] != setting:
                course.wrong.append(f"{body['setting']} instead of {setting}")
            elif outcome not in ("200", *REFUSED) and not (outcome == "504" and len(headers) > 1):
                course.wrong.append(outcome)
            course.answered[setting] += outcome == "200"
            if outcome != "200":
                await asyncio.sleep(0.5)


async def _rude(number: int, url: str, image: bytes, course: Course) -> None:
    rng = random.Random(1000 + number)
    while not course.over.is_set():
        manner = rng.choice(MANNERS)
        course.rude[manner.__name__] += 1
        try:
            await manner(url, image)
        except TimeoutError:
            course.wrong.append(f"{manner.__name__} {HANGS}")
        except OSError:
            pass  # reset, as it deserves
        await asyncio.sleep(rng.random())


async def _probe(url: str, image: bytes, course: Course) -> None:
    """Ask for a cheap verdict all the time."""
    async with _client(100) as client:
        while not course.over.is_set():
            asked = course.now
            outcome, _ = await _ask(client, url, image, {"X-Metastable-Setting": "none"})
            if outcome == "200":
                course.verdicts.append(course.now)
            await asyncio.sleep(max(0.0, PROBE - (course.now - asked)))


async def _happen(stage: Stage, course: Course, config: SoakConfig) -> None:
    """One after the other, each with `pause` seconds, or as many as it takes; then it is over."""
    able = [one for one in HAPPENINGS if config.engine in one.engines]
    numbers = range(max(1, round(60 * config.minutes / config.pause)))
    try:
        for number in tqdm(numbers, desc="soak", unit="happening"):
            one = able[number % len(able)]
            course.happened.append((began := course.now, one.name))
            await one.does(stage)
            await asyncio.sleep(max(0.0, config.pause - (course.now - began)))
    finally:
        course.ended = course.now
        course.over.set()


async def _watch(door: psutil.Process, course: Course) -> None:
    while not course.over.is_set():
        size = 0
        for one in [door, *door.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                size += one.memory_info().rss
        course.memory.append((course.now, round(size / 1e6, 1)))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(course.over.wait(), LOOK)


async def _ask(
    client: httpx.AsyncClient, url: str, image: bytes, headers: dict[str, str]
) -> tuple[str, dict[str, Any]]:
    """Its status and body; HANGS or CLOSED without an answer."""
    try:
        answer = await client.post(url, content=image, headers=headers)
        return str(answer.status_code), answer.json()
    except httpx.TimeoutException:
        return HANGS, {}
    except httpx.HTTPError:
        return CLOSED, {}
    except json.JSONDecodeError:
        return GARBAGE, {}


def _client(number: int) -> httpx.AsyncClient:
    """From a loopback address of its own: the door bounds what one of them may have under way."""
    transport = httpx.AsyncHTTPTransport(local_address=f"127.0.1.{number + 2}")
    return httpx.AsyncClient(timeout=PATIENCE, trust_env=False, transport=transport)


def draw(path: Path, course: Course) -> None:
    """Verdicts and other answers in each 5 seconds, what happened, and the memory."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for label, so in (("verdicts", True), ("refused or late", False)):
        counts = Counter(int(at / 5) for at, outcome in course.outcomes if (outcome == "200") is so)
        spans = range(max(counts, default=0) + 1)
        axes.plot([5 * i / 60 for i in spans], [counts[i] / 5 for i in spans], label=label, linewidth=0.8)
    for at, _ in course.happened:
        axes.axvline(at / 60, color="gray", linewidth=0.4)
    axes.set(xlabel="minutes; a line where something happened", ylabel="answers a second")
    axes.legend(loc="upper left")
    beside = axes.twinx()
    beside.plot([at / 60 for at, _ in course.memory], [size for _, size in course.memory], "k", linewidth=0.8)
    beside.set(ylabel="memory of the server, MB", ylim=(0, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
