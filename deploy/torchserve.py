"""TorchServe as the door's backend: started, watched, started again.

    async with Supervised(run, archive, java_home, torchserve_metrics_port=8082) as one:
        await one.until_ready(180)     # or Failed says why not
        one.backend                    # which says how it stands from here on
        await one.backend.close(10)    # finish what is under way, within 10 seconds

Its inference address is a unix socket in the run folder, which nobody but the owner may enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from deploy.process import ServerGroup
from deploy.run_folder import Failed, RunFolder
from deploy.starting import FAILED_LOADS, start
from metastable.serving.backends.torchserve import TorchServe

log = logging.getLogger(__name__)

TEMPLATE = Path(__file__).resolve().parent.parent / "config.properties"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before TorchServe is started again; each pause is twice the last one."""
STEADY = 60.0
"""Seconds of readiness after which the pauses begin anew."""
LOOK = 0.2
PROGRESS = 5.0
"""Seconds between two lines that say that it is still being waited for."""


def _say(text: str) -> None:
    print(text, flush=True)


class Supervised:
    """See the module.  Entering starts; leaving stops everything.

    Args:
        run: the folder, taken; who made it closes it.
        archive: an absolute path.
        torchserve_metrics_port: of TorchServe's own metrics.
        most_bytes: of a request to TorchServe.
        patience: seconds without readiness after which TorchServe is ended and started again: it stops
            trying to load a model after a while.
        say: that it is waited for, in one line; that it is started again is logged.
        at_once: whether a stop is to wait no longer.
        launch: starts a group; it has the arguments of `start`.
        restarted: called whenever it is started again.
    """

    def __init__(
        self,
        run: RunFolder,
        archive: Path,
        java_home: Path,
        *,
        torchserve_metrics_port: int,
        most_bytes: int = 2_100_000,
        patience: float = 180.0,
        say: Callable[[str], None] = _say,
        at_once: Callable[[], bool] = lambda: False,
        launch: Callable[[RunFolder, Path, Path, Path], ServerGroup] = start,
        restarted: Callable[[], None] = lambda: None,
    ) -> None:
        self._run, self._archive, self._java_home = run, archive, java_home
        self._metrics_port, self._most_bytes = torchserve_metrics_port, most_bytes
        self._patience = patience
        self._say, self._at_once, self._launch, self._restarted = say, at_once, launch, restarted
        self._socket, self._control = run.scratch / "inference.sock", run.scratch / "control"
        self.backend = TorchServe(self._socket, self._control, keys=run.keys)
        self.starts = 0
        self.left: list[int] = []
        """Processes that could not be killed."""
        self._keeper: asyncio.Task[None] | None = None
        self._clearing: asyncio.Task[list[int]] | None = None

    async def __aenter__(self) -> Supervised:
        self._control.mkdir(mode=0o700, exist_ok=True)
        self._run.write_config(TEMPLATE, self._archive, self._socket, self._metrics_port, self._most_bytes)
        self._keeper = asyncio.create_task(self._keep())
        await self.backend.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.backend.close(0.0)
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if self._clearing is not None:  # it may have been under way already, and is not to be cut short
            self.left = await self._clearing

    async def until_ready(self, timeout: float) -> None:
        """Return when it predicts; Failed if it ended, cannot load the model, or takes longer."""
        begun, told = time.monotonic(), 0.0
        while not self.backend.ready:
            waited = time.monotonic() - begun
            if self._keeper is not None and self._keeper.done():
                await self._keeper
            if self.starts > 1:
                raise Failed("the server ended by itself while starting")
            if (died := self._run.failed_loads()) >= FAILED_LOADS:
                raise Failed(f"the model cannot be loaded: its worker died {died} times")
            if waited >= timeout:
                raise Failed(f"no prediction within {timeout:g} s: see --ready-timeout")
            if waited >= told + PROGRESS:
                told = waited
                self._say(f"waiting for the first prediction: {waited:.0f} s")
            await asyncio.sleep(LOOK / 2)

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            why, steady = await self._one_life()
            pause = FIRST_PAUSE if steady else pause
            log.warning("TorchServe %s: starting it again in %g s", why, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            self._restarted()

    async def _one_life(self) -> tuple[str, bool]:
        """Start it, and clear it away when it fails; what `_until_it_fails` says."""
        for old in (self._socket, *self._control.glob("*")):  # of one that was killed
            old.unlink(missing_ok=True)
        self.starts += 1
        try:
            group = self._launch(self._run, self._archive, self._java_home, self._control)
        except OSError as error:
            return f"cannot be started ({error.strerror})", False
        try:
            return await self._until_it_fails(group)
        finally:
            self._clearing = asyncio.create_task(asyncio.to_thread(group.stop, self._at_once))
            self.left = await asyncio.shield(self._clearing)

    async def _until_it_fails(self, group: ServerGroup) -> tuple[str, bool]:
        """What went wrong, and whether it had been ready for STEADY seconds."""
        unready = time.monotonic()
        ready: float | None = None
        while group.running():
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            if self.backend.ready:
                unready, ready = now, now if ready is None else ready
            elif now - unready > self._patience:
                return f"made no prediction for {self._patience:g} s", False
        return "ended by itself", ready is not None and time.monotonic() - ready > STEADY
