"""Work done by the machines of a Ray cluster (metastable.evaluation.pool).

An item is a task.  A worker process gets the work once, keeps it, and does one item after the other with a
fixed number of threads, because that number changes a network's last bits; so do PyTorch's version and the
kind of processor.  A task whose worker dies is done again by another, up to `RETRIES` times.

Bundle and images go through Ray: other machines need the same version of this package and of PyTorch, and no
files.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from metastable.errors import DataError, MetastableError, MissingPackage
from metastable.evaluation.pool import Item, Result
from metastable.version import __version__

RETRIES = 10
"""More than Ray's own 3: machines that are lent cheaply go often."""
AHEAD = 2
"""Tasks that are handed in and not done, for each that the cluster can do at a time.

They are all that is done in vain where nobody waits any more.  Ray 2.60 can cancel a task, but one that ends
just then brings down the process that asked (ray-project/ray#54785).
"""
LOCAL = "local"


@contextlib.contextmanager
def connected(address: str, *, threads: int = 1, gpus: float = 0.0, **start: Any) -> Iterator[RayPool]:
    """The cluster at an address, until this ends.

    Args:
        address: `auto`, host:port of the head, or LOCAL for one that is started here and stopped at the end.
        threads: PyTorch's in a task, and the CPUs that it takes.
        gpus: that a task takes.
        start: what else `ray.init` is given.

    Raises:
        MissingPackage: without the package ray.
        DataError: no cluster lets this process in at the address, or no machine of it has what a task takes.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingPackage("--ray needs the package ray: pip install 'metastable[ray]'") from None
    # A cluster that is started here serves no pages, and reports to nobody unless it is asked to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    started = {"include_dashboard": False} if address == LOCAL else {}
    quiet = {"log_to_driver": False, "logging_level": "WARNING"}
    try:
        if host_port := re.fullmatch(r"([^/]+):(\d+)", address):
            # Ray itself would knock for minutes.
            socket.create_connection((host_port[1].strip("[]"), int(host_port[2])), timeout=10).close()
        ray.init(address, **started, **quiet, **start)
    except Exception as error:  # Ray raises bare ones too
        raise DataError(f"no Ray cluster lets in at {address}: {' '.join(str(error).split())}") from None
    try:
        yield RayPool(ray, threads, gpus)
    finally:
        ray.shutdown()


class RayPool:
    """See `metastable.evaluation.pool.Pool`; results come in the order in which they are done.

    Args:
        ray: the package, connected to a cluster.
        threads, gpus: see `connected`.
    """

    here = False

    def __init__(self, ray: Any, threads: int, gpus: float) -> None:
        self._wanted = {"CPU": float(threads), "GPU": gpus}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(one.get(what, 0.0) >= n for what, n in self._wanted.items()) for one in machines):
            raise DataError(f"no machine of the Ray cluster has {threads} CPUs and {gpus:g} GPUs for a task")
        cpus = sum(one.get("CPU", 0.0) for one in machines)
        self.about = f", on a Ray cluster of {len(machines)} machines and {cpus:g} CPUs, {threads} a task"
        self._ray = ray
        self._task = ray.remote(_done).options(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)
        self._terms = _Terms(threads, __version__, torch.__version__)
        self._placed: tuple[object, str, list[Any]] | None = None

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """See `Pool`.  Raises MetastableError for an item whose workers died again and again."""
        if self._placed is None or self._placed[0] is not work:
            # In a list, because Ray would fetch the work itself anew for every task.
            self._placed = work, uuid.uuid4().hex, [self._ray.put(work)]
        _, key, placed = self._placed
        left = iter(items)
        waiting: dict[Any, Item] = {}
        while True:
            for item in itertools.islice(left, max(0, self._room() - len(waiting))):
                waiting[self._task.remote(key, placed, self._terms, item)] = item
            if not waiting:
                return
            for done in self._ray.wait(list(waiting))[0]:
                result = self._result(done)
                yield waiting.pop(done), result

    def _room(self) -> int:
        """Tasks that may be handed in and not done; machines come and go."""
        known = self._ray.cluster_resources()
        return max(1, int(AHEAD * min(known.get(what, 0.0) / n for what, n in self._wanted.items() if n)))

    def _result(self, done: Any) -> Any:
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None  # as if it had been raised here
        except self._ray.exceptions.RayError as error:
            raise MetastableError(f"Ray lost a task {RETRIES + 1} times: {error}") from None


@dataclass(frozen=True)
class _Terms:
    """What a worker must agree on with the process that asks, to come to the same bits."""

    threads: int
    version: str
    torch: str


_kept: dict[str, Callable[[Any], Any]] = {}
"""The work that this worker process did last, by its key."""


def _done(key: str, placed: list[Any], terms: _Terms, item: Any) -> Any:
    """The task: what the work says of an item.  DataError where this machine has other versions."""
    if (mine := (__version__, torch.__version__)) != (terms.version, terms.torch):
        raise DataError(
            f"a machine of the Ray cluster has metastable and PyTorch {mine}, this one "
            f"{(terms.version, terms.torch)}: install the same"
        )
    torch.set_num_threads(terms.threads)
    if key not in _kept:
        import ray

        _kept.clear()
        _kept[key] = ray.get(placed[0])
    return _kept[key](item)
