"""What happens to a server in a soak: parts that are killed or frozen, crowds, idle connections."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import psutil  # type: ignore[import-untyped]

FROZEN, QUIET = 5.0, 10.0
"""Seconds for which a part stands still, and idle connections stay."""
IDLE, CROWD = 1000, 200


@dataclass(frozen=True)
class Stage:
    """Where it happens: the address of predictions, an image, and the door's process."""

    url: str
    image: bytes
    door: psutil.Process

    @property
    def jvm(self) -> psutil.Process | None:
        return next((one for one in self.door.children(recursive=True) if one.name() == "java"), None)

    @property
    def worker(self) -> psutil.Process | None:
        jvm = self.jvm
        return None if jvm is None else next(iter(jvm.children()), None)


async def nothing(stage: Stage) -> None:
    """For comparison."""


async def worker_killed(stage: Stage) -> None:
    _signal(stage.worker, signal.SIGKILL)


async def torchserve_killed(stage: Stage) -> None:
    _signal(stage.jvm, signal.SIGKILL)


async def worker_frozen(stage: Stage) -> None:
    await _freeze(stage.worker)


async def torchserve_frozen(stage: Stage) -> None:
    await _freeze(stage.jvm)


async def door_frozen(stage: Stage) -> None:
    await _freeze(stage.door)


async def log_level_changed(stage: Stage) -> None:
    _signal(stage.door, signal.SIGUSR1)
    await asyncio.sleep(1)
    _signal(stage.door, signal.SIGUSR2)


async def idle_connections(stage: Stage) -> None:
    """A thousand that say nothing for a while."""
    at, writers = urlsplit(stage.url), []
    for number in range(IDLE):
        with contextlib.suppress(OSError):
            local = (f"127.0.2.{number % 200 + 2}", 0)
            _, writer = await asyncio.open_connection(at.hostname, at.port, local_addr=local)
            writers.append(writer)
    await asyncio.sleep(QUIET)
    for writer in writers:
        writer.close()


async def crowd(stage: Stage) -> None:
    """Two hundred requests at once, from ten addresses, half of them given up after a second."""

    async def one(number: int) -> None:
        transport = httpx.AsyncHTTPTransport(local_address=f"127.0.3.{number % 10 + 2}")
        async with httpx.AsyncClient(trust_env=False, transport=transport) as client:
            with contextlib.suppress(httpx.HTTPError):
                patience = 1.0 if number % 2 else 30.0
                await client.post(stage.url, content=stage.image, timeout=patience)

    await asyncio.gather(*(one(number) for number in range(CROWD)))


class Happening(NamedTuple):
    """Attributes: `engines`, where there is such a part."""

    does: Callable[[Stage], Awaitable[None]]
    engines: tuple[str, ...] = ("local", "torchserve")

    @property
    def name(self) -> str:
        return self.does.__name__


HAPPENINGS = (
    Happening(nothing),
    Happening(worker_killed, ("torchserve",)),
    Happening(torchserve_killed, ("torchserve",)),
    Happening(worker_frozen, ("torchserve",)),
    Happening(torchserve_frozen, ("torchserve",)),
    Happening(door_frozen),
    Happening(log_level_changed),
    Happening(idle_connections),
    Happening(crowd),
)


def _signal(process: psutil.Process | None, number: int) -> None:
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


async def _freeze(process: psutil.Process | None) -> None:
    _signal(process, signal.SIGSTOP)
    try:
        await asyncio.sleep(FROZEN)
    finally:
        _signal(process, signal.SIGCONT)
