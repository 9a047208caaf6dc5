"""A door that runs: uvicorn in a thread of this process, before an engine with a small bundle."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from prometheus_client import CollectorRegistry

from metastable.bundle import Bundle
from metastable.engine.engine import EngineLimits
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.serving.backends.local import Local
from metastable.serving.door.app import build
from metastable.serving.door.entry import Door
from metastable.serving.door.intake import Intake
from metastable.serving.metrics import Metrics

PATIENCE = 60.0


@dataclass
class Status:
    draining: bool = False


@dataclass
class Running:
    """Where it listens, and what the tests look into."""

    url: str
    port: int
    door: Door
    backend: Local
    registry: CollectorRegistry
    status: Status = field(default_factory=Status)

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
) -> Iterator[Running]:
    registry, status = CollectorRegistry(), Status()
    metrics = Metrics(registry, settings=bundle.settings.names)
    runner = TorchRunner(bundle.networks, bundle.classifier)
    backend = Local(bundle, runner, metrics, allow_seed=allow_seed, limits=limits, sizes=(1, 4, 16))
    app = build(backend, intake or Intake(), status, metrics)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, http="h11", log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            until = time.monotonic() + PATIENCE
            while not server.started and time.monotonic() < until:
                time.sleep(0.01)
            yield Running(f"http://127.0.0.1:{port}", port, app.state.door, backend, registry, status)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
