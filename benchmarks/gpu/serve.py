"""Item 5: the server's work on a GPU, without a server: images a second and their latency by setting.

    metastable bench gpu serve --out runs/gpu/serve.json

`handlers.service` is driven in this process as TorchServe drives it.  First a closed loop holds a fixed
number of requests and so finds the capacity; its inverse is the cost of a decided answer.  Then images
arrive at random (Poisson) at shares of that capacity; latency counts from an image's arrival.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.gpu import common
from handlers.requests import Request, Response
from handlers.service import Service
from metastable import bundle, console
from metastable.engine.engine import EngineLimits
from metastable.engine.runners.cuda_networks import CudaPrecision
from metastable.engine.runners.cuda_runner import SLOTS, CudaRunner
from metastable.serving.metrics import Metrics
from metastable.training.run import device_of

LOADS = (0.3, 0.6, 0.9)


class Front:
    """Requests under way, and what became of those that ended."""

    def __init__(self, service: Service, bodies: Sequence[bytes], setting: str) -> None:
        self._service = service
        self._headers = {"X-Metastable-Setting": setting}
        self._bodies, self._numbers = itertools.cycle(bodies), itertools.count()
        self._held: dict[str, tuple[Request, float]] = {}
        self.milliseconds: list[float] = []
        self.chains: list[int] = []
        self.refused = 0

    @property
    def held(self) -> int:
        return len(self._held)

    def add(self, arrived: float) -> None:
        id = str(next(self._numbers))
        self._held[id] = Request(id, self._headers, {"body": next(self._bodies)}), arrived

    def step(self) -> None:
        """A segment of the server's work."""
        held = list(self._held.values())
        responses = self._service.step([request for request, _ in held])
        now = time.perf_counter()
        for (request, arrived), response in zip(held, responses, strict=True):
            if response is not None:
                del self._held[request.id]
                self._note(response, 1e3 * (now - arrived))

    def _note(self, response: Response, milliseconds: float) -> None:
        if response.status != 200:
            self.refused += 1
            return
        self.milliseconds.append(milliseconds)
        self.chains.append(json.loads(response.body)["chains"])


def closed(front: Front, width: int, seconds: float) -> float:
    """Answers a second with `width` requests always under way, for `seconds` or until there is an answer."""
    started = time.perf_counter()
    while time.perf_counter() < started + seconds or not (front.milliseconds or front.refused):
        while front.held < width:
            front.add(time.perf_counter())
        front.step()
    done = len(front.milliseconds)
    spent = time.perf_counter() - started
    while front.held:
        front.step()
    return done / spent


def opened(front: Front, rate: float, seconds: float, seed: int) -> float:
    """Answers a second when images arrive at random, `rate` a second, for `seconds`."""
    started = time.perf_counter()
    coming = _arrivals(rate, seconds, seed)
    following = next(coming, None)
    while following is not None or front.held:
        now = time.perf_counter() - started
        while following is not None and following <= now:
            front.add(started + following)
            following = next(coming, None)
        if front.held:
            front.step()
        elif following is not None:
            time.sleep(max(0.0, following - now))
    return len(front.milliseconds) / (time.perf_counter() - started)


def _arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    rng, at = np.random.default_rng(seed), 0.0
    while (at := at + rng.exponential(1 / rate)) < seconds:
        yield at


def row(front: Front, setting: str, load: str, rate: float) -> dict[str, Any]:
    """What a phase came to; without an answer there are no quantiles."""
    found: dict[str, Any] = {"setting": setting, "load": load, "images_per_s": round(rate, 2)}
    if front.milliseconds:
        p50, p99 = np.quantile(front.milliseconds, (0.5, 0.99))
        found |= {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}
        found["chains"] = round(float(np.mean(front.chains)), 1)
    return found | {"answers": len(front.milliseconds), "refused": front.refused}


def measure(
    service: Service,
    bodies: Sequence[bytes],
    settings: Sequence[str],
    width: int,
    seconds: float,
    keep: Callable[[list[dict[str, Any]]], object],
) -> list[dict[str, Any]]:
    """Rows of every setting: closed, then at each load.  `keep` gets all that there are after every one."""
    rows: list[dict[str, Any]] = []
    for setting in settings:
        closed(Front(service, bodies, setting), width, seconds)  # graphs of all sizes are recorded
        front = Front(service, bodies, setting)
        capacity = closed(front, width, seconds)
        full = row(front, setting, "closed", capacity)
        rows.append(full | {"ms_an_answer": round(1e3 / capacity, 3)} if capacity else full)
        keep(rows)
        for load in LOADS if capacity else ():
            front = Front(service, bodies, setting)
            rate = opened(front, load * capacity, seconds, seed=len(rows))
            rows.append(row(front, setting, f"{load:.0%}", rate))
            keep(rows)
    return rows


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this script."""
    common.add_arguments(parser, __doc__)
    parser.add_argument("--settings", default="fast,balanced,accurate", help="names, separated by commas")
    parser.add_argument("--images", type=Path, default=Path("samples"), help="folder of PNG images")
    parser.add_argument("--width", type=int, default=64, help="requests under way in the closed loop")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a phase")
    parser.add_argument(
        "--precision", default="tf32", choices=get_args(CudaPrecision), help="of the convolutions"
    )
    parser.add_argument("--fuse", action="store_true", help="let torch.compile join kernels")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The whole script; its exit status."""
    loaded = bundle.load(args.bundle)
    runner = CudaRunner(
        loaded.networks,
        loaded.classifier,
        device=str(device_of(args.device)),
        precision=args.precision,
        fuse=args.fuse,
    )
    service = Service(
        loaded,
        Metrics(CollectorRegistry(), settings=loaded.settings.names),
        runner,
        engine_limits=EngineLimits(slots=SLOTS),
        sizes=(1, 4) if args.tiny else None,
    )
    bodies = [path.read_bytes() for path in sorted(args.images.glob("*.png"))]
    width, seconds = (4, 0.15) if args.tiny else (args.width, args.seconds)

    def result(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "command": "gpu serve",
            "rows": rows,
            "runner": runner.name,
            "recordings": runner.recordings,
        }

    rows = measure(
        service,
        bodies,
        args.settings.split(","),
        width,
        seconds,
        lambda rows: common.save(args, result(rows)),
    )
    columns = ("setting", "load", "images_per_s", "p50_ms", "p99_ms", "chains", "ms_an_answer", "refused")
    common.finish(args, result(rows), columns)
    return 0


def main() -> None:
    console.main(fill, "python -m benchmarks.gpu.serve")


if __name__ == "__main__":
    main()
