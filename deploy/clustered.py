"""The door before replicas on a cluster of Ray: any number of machines.

    metastable serve --engine ray --replicas 2                        # a cluster of this machine alone
    metastable serve --engine ray --ray 10.0.0.1:6379 --replicas 1:8  # one that is there

The door is this process, with all that our own shell does.  Several doors may stand before one application.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from deploy import observing, policies, ray_cluster, ray_serve
from deploy.front import PHOTOGRAPH, Behind, Front
from deploy.run_folder import Failed
from metastable.bundle import Bundle
from metastable.serving import judging
from metastable.serving.backends.replicas import Replicas
from metastable.serving.configuration import Configuration
from metastable.serving.door.stopping import Stop
from metastable.serving.metrics import Metrics

LOOK = 0.1
ASK = 1.0
"""Seconds between two questions how the start goes."""


def serve(chosen: argparse.Namespace, sample: Path, stop: Stop) -> int:
    """The whole life of one server; the exit status.

    Args:
        sample, stop: as of `Front`.

    Raises Refused, and MetastableError for a bundle or a configuration that cannot be served.
    """
    with observing.opened(chosen) as observer:
        return _serve(Front(chosen, sample, stop, observer), chosen)


def _serve(front: Front, chosen: argparse.Namespace) -> int:
    loaded, plan = planned(chosen)
    limits = {name: getattr(chosen, name) for name in ("max_bytes", "max_pixels")}
    given = PHOTOGRAPH | {name: value for name, value in limits.items() if value is not None}
    metrics = Metrics(settings=loaded.settings.names)
    life = Deployed(plan, loaded, metrics, chosen.ray)
    known = judging.served_of(loaded, allow_seed=plan.allow_seed, runner="")  # the replicas say more
    keeper = policies.keeper_for(chosen.policy, {loaded.version: known}, proxies=bool(chosen.proxy))
    behind = Behind(
        life.backend,
        Configuration.of(given).image_limits,
        keeper=keeper,
        on_hangup=policies.on_hangup(chosen.policy, keeper),
        life=life,
        until_ready=life.until_ready,
        opening=f"starting {plan.least} replica{'s' if plan.least > 1 else ''} on "
        + (f"the cluster at {chosen.ray}" if chosen.ray else "a cluster of this machine"),
        notes=policies.notes(chosen.policy),
        trouble=lambda: "ray's logs have more: /tmp/ray/session_latest/logs/serve",
    )
    status = front.serve(behind, metrics)
    print("stopped", flush=True)
    return status


def planned(chosen: argparse.Namespace) -> tuple[Bundle, ray_serve.Plan]:
    """The bundle and what is deployed of it."""
    given = str(chosen.archive) if chosen.bundle is None else chosen.bundle
    there = Path(given)
    source = str(there.resolve()) if there.exists() else given  # a shipped one is there by name
    with ray_serve.opened(source) as (loaded, _):
        pass
    cpus = chosen.replica_cpus
    return loaded, ray_serve.Plan(
        source,
        loaded.digest,
        runner=chosen.runner or "auto",
        threads=chosen.threads or max(1, int(cpus)),
        allow_seed=bool(chosen.allow_seeds),
        cpus=cpus,
        gpus=chosen.replica_gpus,
        least=chosen.replicas[0],
        most=chosen.replicas[1],
    )


class Deployed:
    """The application for the life of this server: around its backend's service, in its event loop.

    Args:
        address: of a cluster that is there; None starts one on this machine, and ends it.
    """

    def __init__(
        self, plan: ray_serve.Plan, loaded: Bundle, metrics: Metrics, address: str | None = None
    ) -> None:
        self._plan, self._address = plan, address
        self._handles = _Later()
        self.backend = Replicas(self._handles, loaded, metrics)
        metrics.follow(lambda: self.backend.backlog, lambda: self.backend.chains)
        self._starting: asyncio.Task[None] | None = None
        self._connected = False

    async def __aenter__(self) -> Deployed:
        self._starting = asyncio.create_task(asyncio.to_thread(self._start))
        await self.backend.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.backend.close(0.0)
        assert self._starting is not None
        await asyncio.gather(self._starting, return_exceptions=True)
        await asyncio.to_thread(self._stop)

    async def until_ready(self) -> None:
        """Return once a replica answers; Failed where none can."""
        assert self._starting is not None
        asked, said = time.monotonic(), ""
        while not self.backend.ready:
            if self._starting.done() and (error := self._starting.exception()) is not None:
                raise Failed(f"the replicas cannot be started: {error}")
            if self._starting.done() and time.monotonic() - asked > ASK:
                failed, message = await asyncio.to_thread(ray_cluster.trouble)
                if failed:
                    raise Failed(f"the replicas cannot be started: {message}")
                if message and message != said:  # there is no room for them, perhaps
                    print(f"  {message}", flush=True)
                asked, said = time.monotonic(), message or said
            await asyncio.sleep(LOOK)

    def _start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cpus = None if self._address else math.ceil(self._plan.most * self._plan.cpus)
        ray_cluster.connect(self._address, cpus)
        self._connected = True
        if self._address is None:
            ray_cluster.check_gpus(self._plan)
        self._handles.there = ray_cluster.deploy(self._plan)

    def _stop(self) -> None:
        """End a cluster of our own; of another one nothing is taken away: other doors may use it."""
        if not self._connected:
            return
        if self._address is None:
            try:
                ray_cluster.remove()
            except Exception as error:  # it has gone before us
                print(f"the application was not taken away: {type(error).__name__}", file=sys.stderr)
        ray_cluster.disconnect()


class _Later:
    """A `Cluster` that is there once it has been deployed."""

    there: ray_serve.Handles | None = None

    async def ask(self, asked: Any) -> Any:
        assert self.there is not None, "nobody is let in before a replica has said how it stands"
        return await self.there.ask(asked)

    async def look(self) -> Any:
        return [] if self.there is None else await self.there.look()
