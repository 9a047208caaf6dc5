"""The application on Ray Serve: replicas of our engine on any number of machines.

    metastable serve --engine ray --replicas 2          # deploy.clustered: our door before it
    serve run deploy.ray_serve:application bundle=cifar10 replicas=1:8    # the door as its ingress

A replica has one engine on its own thread, so requests join chains that are under way; `@serve.batch` would
answer whole batches.  The board is where replicas say how they stand, and where doors look.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ray import serve
from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deploy import archive, engines
from metastable import bundle as bundles
from metastable.bundle import Bundle, shipped
from metastable.engine import assembly
from metastable.engine.engine import EngineLimits
from metastable.engine.runners import artifacts
from metastable.engine.runners.artifacts import Artifacts
from metastable.errors import BundleError, Overloaded
from metastable.serving.backends.replica import Asked, Replica, Told
from metastable.serving.backends.replicas import Gone, Replicas
from metastable.version import __version__

NAME = "metastable"
TELL = 0.1
"""Seconds between two times that a replica says how it stands."""
FORGET = 30.0
"""Seconds without a word after which the board forgets a replica."""
WAITING = 256
"""Questions of one door that may wait for a replica to have a place."""
TARGET = 1.0
"""Seconds of work that wait for each replica, on average, at which there are enough of them."""
DRAIN = 30.0
"""Seconds that a replica has to finish what it has."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is deployed.

    Attributes:
        source: a shipped bundle's name, or a bundle's folder or an archive that is there on every machine.
        digest: of its bundle where it was planned; a machine that has another one under its name refuses.
        runner: what runs the networks; threads: of it.
        cpus, gpus: shares of a machine that a replica takes; resources: others that Ray knows by name.
        least, most: replicas; where they differ the backlog decides how many (`by_backlog`).
    """

    source: str
    digest: str
    runner: str = "auto"
    threads: int = 1
    allow_seed: bool = False
    cpus: float = 1.0
    gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    least: int = 1
    most: int = 1

    @property
    def version(self) -> str:
        """Another one for every other plan, and for another version of this project."""
        said = json.dumps([__version__, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Bundle, Artifacts]]:
        """The bundle, and what was exported of it; BundleError where this machine has another bundle."""
        with opened(self.source) as (found, exported):
            if found.digest != self.digest:
                raise BundleError(
                    f"{self.source} is another bundle on this machine (digest {found.digest[:12]}, planned "
                    f"{self.digest[:12]}): copy the same one to every machine"
                )
            yield found, exported


@contextlib.contextmanager
def opened(source: str) -> Iterator[tuple[Bundle, Artifacts]]:
    """The bundle of a `Plan.source`, and what was exported of it; the files may go after that.

    Raises BundleError for what is none.
    """
    if not source.endswith(".mar"):
        yield bundles.load(shipped.folder(source)), {}
        return
    with archive.unpacked(Path(source)) as folder:
        yield bundles.load(archive.bundle_folder(folder)), artifacts.read(folder / bundles.ARTIFACTS_FOLDER)


class Board:
    """What replicas last said of themselves.  Nothing is lost with it: they say it again.

    Args:
        version: of the plan it belongs to.
    """

    def __init__(self, version: str) -> None:
        self._version = version
        self._said: dict[str, tuple[float, dict[str, Any]]] = {}

    async def put(self, state: dict[str, Any]) -> None:
        self._said[state["name"]] = (time.monotonic(), state)

    async def version(self) -> str:
        """See `Plan.version`: by it a second door knows whether what is deployed is what it wants."""
        return self._version

    async def gone(self, name: str) -> None:
        """A replica ends."""
        self._said.pop(name, None)

    async def look(self) -> list[tuple[float, dict[str, Any]]]:
        """Each state, and how many seconds ago it was said."""
        now = time.monotonic()
        self._said = {name: one for name, one in self._said.items() if now - one[0] < FORGET}
        return [(now - at, state) for at, state in self._said.values()]


class Engine:
    """One replica; the class that Ray Serve makes actors of."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it, on the loop that `ask` runs on
        self, plan: Plan, board: DeploymentHandle[Any]
    ) -> None:
        torch.set_num_threads(plan.threads)
        with plan.opened() as (loaded, exported):
            runner = assembly.runner_for(loaded, plan.runner, artifacts=exported, threads=plan.threads)
        name = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(name, loaded, runner, allow_seed=plan.allow_seed)
        self._board = board
        self._telling = asyncio.create_task(self._tell())

    async def ask(self, asked: Asked) -> Told:
        """See `Replica.ask`."""
        return await self._replica.ask(asked)

    async def check_health(self) -> None:
        """Ray Serve asks this now and then, and replaces a replica that raises."""
        if not self._replica.alive or self._telling.done():
            raise RuntimeError("the engine's thread, or what tells of it, has ended")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For `by_backlog`."""
        return {"backlog": self._replica.backlog}

    async def __del__(self) -> None:
        """Ray Serve calls this once the last question is answered, or DRAIN seconds after the first no."""
        self._telling.cancel()
        with contextlib.suppress(Exception):
            await self._board.gone.remote(self._replica.name)
        await self._replica.close(0.0)

    async def _tell(self) -> None:
        while True:
            try:
                await self._board.put.remote(self._replica.state())
            except Exception as error:  # it is being started again, perhaps elsewhere
                log.warning("the board cannot be reached: %s", type(error).__name__)
            await asyncio.sleep(TELL)


def by_backlog(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """As many replicas as leave TARGET seconds of work to each; Ray Serve adds bounds and delays.

    With nothing reported yet it stays as it is.
    """
    said = (context.aggregated_metrics or {}).get("backlog", {})
    if not said:
        return context.target_num_replicas, {}
    return max(1, math.ceil(sum(said.values()) / TARGET)), {}


def replicas(plan: Plan) -> tuple[Any, Any]:
    """The deployments of engine and board, bound to each other."""
    board = serve.deployment(
        Board,
        name="Board",
        max_ongoing_requests=1_000,
        ray_actor_options={"num_cpus": 0},
    ).bind(plan.version)
    size: dict[str, Any] = {"num_replicas": plan.least}
    if plan.most > plan.least:
        size = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=plan.least,
                max_replicas=plan.most,
                metrics_interval_s=1.0,
                look_back_period_s=3.0,
                upscale_delay_s=3.0,
                downscale_delay_s=120.0,
                policy=AutoscalingPolicy(policy_function=by_backlog),
            )
        }
    engine = serve.deployment(
        Engine,
        name="Engine",
        # The engine admits by seconds of work.  The default of 5 would starve it: what waits outside joins
        # no chains.
        max_ongoing_requests=EngineLimits.jobs,
        max_queued_requests=WAITING,
        graceful_shutdown_timeout_s=DRAIN,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus, "resources": plan.resources},
        **size,
    )
    return engine.bind(plan, board), board


class Handles:
    """The application's deployments as a `Cluster` of replicas."""

    def __init__(self, engine: DeploymentHandle[Any], board: DeploymentHandle[Any]) -> None:
        self._engine, self._board = engine, board

    async def ask(self, asked: Asked) -> Told:
        response = self._engine.ask.remote(asked)
        try:
            told: Told = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError:
            raise Overloaded("too many requests wait for a replica: try again soon") from None
        except (RayActorError, TaskCancelledError, DeploymentUnavailableError) as error:
            raise Gone(type(error).__name__) from None
        return told

    async def look(self) -> Sequence[tuple[float, dict[str, Any]]]:
        found: list[tuple[float, dict[str, Any]]] = await self._board.look.remote()
        return found


@serve.ingress()
class Door:
    """The door as an ingress of Ray Serve, for clusters whose proxies take the requests.

    What our own shell does before the application is the proxy's business here: deadlines for slow senders,
    connections of one client, keys.
    """

    def __init__(self, plan: Plan, engine: DeploymentHandle[Any], board: DeploymentHandle[Any]) -> None:
        self._plan, self._handles = plan, Handles(engine, board)

    def __serve_build_asgi_app__(self) -> Any:
        from metastable.serving.door.app import build
        from metastable.serving.door.intake import Intake
        from metastable.serving.door.stopping import Stop
        from metastable.serving.metrics import Metrics

        with self._plan.opened() as (loaded, _):
            pass
        metrics = Metrics(settings=loaded.settings.names)
        backend = Replicas(self._handles, loaded, metrics)
        return build(backend, Intake(), Stop(), metrics, around=backend)


def application(given: Mapping[str, object]) -> Any:
    """What `serve run`, `serve deploy` and a RayService import.

    Args:
        given: `bundle` (a `Plan.source`), and perhaps `runner`, `threads`,
            `cpus` and `gpus` of a replica, `replicas` (a number, or the least and the most with a colon
            between), `doors`.

    Raises BundleError for a bundle that is none, and ValueError for an argument that is none.
    """
    arguments = {name: str(value) for name, value in given.items()}  # of a YAML file some are numbers
    known = {"bundle", "runner", "threads", "cpus", "gpus", "replicas", "doors"}
    if unknown := sorted(set(arguments) - known):
        raise ValueError(f"there are no arguments {unknown}: choose from {sorted(known)}")
    source = arguments.get("bundle", "cifar10")
    with opened(source) as (loaded, _):
        pass
    least, most = engines.counts(arguments.get("replicas", "1"))
    plan = Plan(
        source,
        loaded.digest,
        runner=arguments.get("runner", "auto"),
        threads=int(arguments.get("threads", "1")),
        cpus=float(arguments.get("cpus", "1")),
        gpus=float(arguments.get("gpus", "0")),
        least=least,
        most=most,
    )
    engine, board = replicas(plan)
    door = serve.deployment(
        Door,
        name="Door",
        num_replicas=int(arguments.get("doors", "1")),
        max_ongoing_requests=1_000,
        graceful_shutdown_timeout_s=DRAIN,
        ray_actor_options={"num_cpus": 0.5},
    )
    return door.bind(plan, engine, board)
