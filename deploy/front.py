"""The door of one server, whatever answers behind it: opened, said to be ready, closed in order."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from deploy.run_folder import Failed, Refused
from metastable.images import ImageLimits
from metastable.serving.backends.base import Backend
from metastable.serving.door import server
from metastable.serving.door.access import Keys, needs_key
from metastable.serving.door.app import build
from metastable.serving.door.clients import Proxies
from metastable.serving.door.intake import Intake
from metastable.serving.door.models import Models
from metastable.serving.door.observing import Observer
from metastable.serving.door.stopping import Stop
from metastable.serving.metrics import Metrics
from metastable.serving.policy.keeper import Keeper

DRAIN_SECONDS = 30.0
LOOK = 0.05
PHOTOGRAPH: dict[str, Any] = {"max_bytes": 16_000_000, "max_pixels": 50_000_000}
"""Limits of an image: a phone's photographs."""


async def _at_once() -> None:
    """Ready from the beginning."""


@dataclass(frozen=True)
class Behind:
    """What stands behind a door.

    Attributes:
        limits: of an image.
        keeper: of the operator's policy, and `on_hangup` reads it again; None for no policy.
        life: around the backend's service, in the server's event loop; None for what needs none.
        until_ready: returns once a question would be answered; raises Failed if none will be.
        opening: a line to say when it begins, and `notes` lines when it is ready.
        trouble: what a reader of a failure should see.
    """

    backend: Backend | Models
    limits: ImageLimits
    keeper: Keeper | None = None
    on_hangup: Callable[[], None] | None = None
    life: AbstractAsyncContextManager[Any] | None = None
    until_ready: Callable[[], Awaitable[None]] = _at_once
    opening: str = ""
    notes: tuple[str, ...] = ()
    trouble: Callable[[], str] = str


@dataclass
class Front:
    """The door's part of one command; making it checks what can be checked before anything is loaded.

    Args:
        chosen: the command line of `deploy.serve`.
        sample: an image, for `--check` and the line that says how to ask.
        stop: it ends when this is asked for.
        observer: its log and its traces.

    Raises Refused, and SettingsError for a file of keys that cannot be used.
    """

    chosen: argparse.Namespace
    sample: Path
    stop: Stop
    observer: Observer
    begun: float = field(default_factory=time.monotonic)
    fine: bool = False
    _failure: Failed | None = None
    _listens: asyncio.Event = field(default_factory=asyncio.Event)
    _url: str = ""

    def __post_init__(self) -> None:
        chosen = self.chosen
        self.keys = None if chosen.keys is None else Keys.read(chosen.keys)
        if self.keys is None and needs_key(chosen.host):
            raise Refused(f"--host {chosen.host} lets other machines in: name a file of keys with --keys")
        self.proxies = Proxies(chosen.proxy or ())

    def serve(self, behind: Behind, metrics: Metrics) -> int:
        """Until a stop is asked for; the exit status."""
        body = behind.limits.max_bytes * 3 // 2  # in base64, and some room
        intake = Intake(
            body=body,
            bodies=max(Intake.bodies, 4 * body),
            image=behind.limits,
            threads=os.cpu_count() or 1,
        )
        metrics.serve(self.chosen.metrics_port, self.chosen.metrics_host)
        app = build(
            behind.backend,
            intake,
            self.stop,
            metrics,
            keeper=behind.keeper,
            drain_seconds=DRAIN_SECONDS,
            around=self._opening(behind),
        )
        status = server.run(
            app,
            stop=self.stop,
            host=self.chosen.host,
            port=self.chosen.port,
            keys=self.keys,
            proxies=self.proxies,
            origins=self.chosen.origin or (),
            observer=self.observer,
            on_ready=self._listening,
            on_hangup=behind.on_hangup,
            drain_seconds=DRAIN_SECONDS,
        )
        if self._failure is not None:
            print(f"error: {self._failure}\n{behind.trouble()}", file=sys.stderr, flush=True)
            return 1
        return status if self.fine or not self.chosen.check else 1

    def _listening(self, url: str) -> None:
        self._url = url
        self._listens.set()

    @contextlib.asynccontextmanager
    async def _opening(self, behind: Behind) -> AsyncIterator[None]:
        if behind.opening:
            print(behind.opening, flush=True)
        async with behind.life or contextlib.nullcontext():
            beginning, end = map(asyncio.create_task, (self._tell(behind), self._tell_the_end()))
            try:
                yield
            finally:
                beginning.cancel()
                if not self.stop.draining:  # it ends by itself: nobody asked for that
                    end.cancel()
                await asyncio.gather(beginning, end, return_exceptions=True)

    async def _tell(self, behind: Behind) -> None:
        """Say that it is ready, once it is; end the server if it never will be."""
        await self._listens.wait()
        try:
            await behind.until_ready()
        except Failed as failure:
            self._failure = failure
            return self.stop.ask(grace=False)
        url, sample = self._url, shlex.quote(str(self.sample))
        key = " -H 'Authorization: Bearer KEY'" if self.keys is not None else ""
        for line in (
            f"ready after {time.monotonic() - self.begun:.1f} s: {url}/classify",
            f"  try it:   curl -s{key} --data-binary @{sample} {url}/classify",
            f"  metrics:  http://{self.chosen.metrics_host}:{self.chosen.metrics_port}/metrics",
            *behind.notes,
            f"  stop:     Ctrl-C here, or kill {os.getpid()}",
        ):
            print(line, flush=True)
        if self.chosen.check:
            await asyncio.to_thread(self._check, url)
            self.stop.ask(grace=False)

    async def _tell_the_end(self) -> None:
        while not self.stop.draining:
            await asyncio.sleep(LOOK)
        print("stopping", flush=True)

    def _check(self, url: str) -> None:
        """One prediction by a client; where keys are asked for, only whether it is ready."""
        try:
            if self.keys is not None:
                answer = httpx.get(f"{url}/readyz", timeout=60, trust_env=False)
            else:
                data = self.sample.read_bytes()
                answer = httpx.post(f"{url}/classify", content=data, timeout=60, trust_env=False)
            self.fine = answer.status_code == 200
            print(f"check: {answer.status_code} {' '.join(answer.text.split())}", flush=True)
        except httpx.HTTPError as error:
            print(f"check: no answer: {type(error).__name__}", flush=True)
