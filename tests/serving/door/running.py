"""A door that runs in a thread of this process, before an engine with a small bundle."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from metastable.bundle import Bundle
from metastable.engine.engine import EngineLimits
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.serving.backends.local import Local
from metastable.serving.door import server
from metastable.serving.door.app import build
from metastable.serving.door.entry import Door
from metastable.serving.door.intake import Intake
from metastable.serving.door.models import Models
from metastable.serving.door.stopping import Stop
from metastable.serving.metrics import Metrics
from metastable.serving.policy.keeper import Keeper

PATIENCE = 60.0


@dataclass
class Running:
    """Where it listens, and what the tests look into."""

    url: str
    door: Door
    backend: Any
    registry: CollectorRegistry
    stop: Stop
    thread: threading.Thread

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def count(self, name: str, **labels: str) -> float:
        """A number of the metrics; 0 where there is none yet."""
        return self.registry.get_sample_value(f"metastable_{name}", labels) or 0.0


@contextmanager
def running(
    bundle: Bundle,
    *,
    intake: Intake | None = None,
    allow_seed: bool = True,
    limits: EngineLimits | None = None,
    also: Sequence[Bundle] = (),
    keeper: Keeper | None = None,
    **given: Any,
) -> Iterator[Running]:
    """`also`: other versions.  `given`: what `server.run` is given beside the application."""
    metrics = Metrics(CollectorRegistry(), settings=bundle.settings.names)
    backends = [
        Local(
            one,
            TorchRunner(one.networks, one.classifier),
            metrics,
            allow_seed=allow_seed,
            limits=limits,
            sizes=(1, 4, 16),
        )
        for one in (bundle, *also)
    ]
    with before(*backends, metrics=metrics, intake=intake, keeper=keeper, **given) as found:
        yield found


@contextmanager
def before(
    *backends: Any,
    metrics: Metrics,
    intake: Intake | None = None,
    keeper: Keeper | None = None,
    around: AbstractAsyncContextManager[Any] | None = None,
    **given: Any,
) -> Iterator[Running]:
    """A door before any backends; `around` as of `build`, and `given` as of `running`."""
    stop = Stop()
    app = build(Models(backends), intake or Intake(), stop, metrics, keeper=keeper, around=around)
    urls: list[str] = []
    listens = threading.Event()

    def ready(url: str) -> None:
        urls.append(url)
        listens.set()

    arguments = {"stop": stop, "port": 0, "on_ready": ready, "grace_seconds": 0.1, **given}
    thread = threading.Thread(target=server.run, args=(app,), kwargs=arguments, daemon=True)
    thread.start()
    try:
        assert listens.wait(PATIENCE)
        yield Running(urls[0], app.state.door, backends[0], metrics.registry, stop, thread)
    finally:
        stop.ask(grace=False)
        thread.join(PATIENCE)
        assert not thread.is_alive()
