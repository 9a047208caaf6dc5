"""What the workers count, for Prometheus.

    >>> metrics = Metrics(settings=("fast", "none"))
    >>> metrics.request("fast", "ok", 0.012)
    >>> metrics.serve(8083)

Several workers share one port: with PROMETHEUS_MULTIPROC_DIR in the environment each writes its
numbers to files in that folder, and whichever worker got the port sums the files of all. The
variable must be there before prometheus_client is first imported, and whoever starts the server
empties the folder, because the files of earlier workers would be counted again
(`deploy.run_folder` does). The counters of a worker that died meanwhile are rightly kept; its
gauges say nothing that a live worker does not say too.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from metastable.errors import MetastableError

logger = logging.getLogger(__name__)

STAGES = ("queue", "decode", "anomaly", "purify", "classify")
OTHER = "other"  # stands for every label value that is not known: a client must not invent labels

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)
_CHAINS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_STEPS = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_SCORES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0, 50.0, 200.0, 1000.0)
_RETRY_SECONDS = 5.0


def outcomes() -> tuple[str, ...]:
    """`ok` and the codes of all errors that the library knows."""
    return ("ok", *sorted(set(_codes(MetastableError))))


def _codes(kind: type[MetastableError]) -> Iterator[str]:
    yield kind.code
    for narrower in kind.__subclasses__():
        yield from _codes(narrower)


@dataclass(frozen=True)
class Counted:
    """What one verdict cost and said.

    Attributes:
        chains: that the answer is from, `steps` the mean number of updates of each.
        score: the anomaly score of the image as it came.
        label_changed: whether the label is not that of the image as it came.
        capped: all chains of the setting were spent without a decision.
        late: the deadline cut it short.
        redrawn: chains that were drawn again because they were not numbers.
    """

    setting: str
    chains: int
    steps: float
    score: float
    flagged: bool
    label_changed: bool
    capped: bool
    late: bool
    redrawn: int


class Metrics:
    """Counts requests and verdicts. `settings` are the names that may stand as a label."""

    def __init__(self, registry: CollectorRegistry | None = None, *, settings: Sequence[str] = ()) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._settings = frozenset(settings)
        self._outcomes = frozenset(outcomes())
        self._define()

    def _define(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"metastable_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"metastable_{name}", text, labels, registry=self.registry, buckets=buckets)

        self._requests = counter("requests_total", "Requests answered", "setting", "outcome")
        self._seconds = histogram("request_seconds", "From arrival to answer", _SECONDS, "setting")
        self._stages = histogram("stage_seconds", "Time in one stage of a request", _SECONDS, "stage")
        self._batch = histogram("batch_size", "Requests held during a segment of work", _REQUESTS)
        self._capped = counter("capped_total", "Verdicts that spent all chains undecided", "setting")
        self._late = counter("late_total", "Verdicts cut short by their deadline", "setting")
        self._redrawn = counter("redrawn_chains_total", "Chains drawn again because they were not numbers")
        self._backlog = self._gauge("backlog_seconds", "Expected work of the requests held")
        self._slots = self._gauge("chains_under_way", "Chains between their first and last step")
        self._chains = histogram("chains", "Markov chains spent on a verdict", _CHAINS, "setting")
        self._steps = histogram("steps", "Langevin steps of each chain", _STEPS, "setting")
        self._score = histogram("anomaly_score", "Score norm of the image as it came", _SCORES)
        self._flags = counter("anomaly_flags_total", "Images flagged as anomalous", "setting")
        self._changed = counter(
            "label_changed_total", "Verdicts whose label is not that of the image as it came", "setting"
        )
        self._model = Gauge(
            "metastable_model_info",
            "The model that is served; always 1",
            ("model", "version", "digest"),
            registry=self.registry,
            multiprocess_mode="max",
        )

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"metastable_{name}", text, registry=self.registry, multiprocess_mode="livesum")

    def request(self, setting: str, outcome: str, seconds: float) -> None:
        """One request was answered, with `ok` or with the code of an error."""
        setting = self._known(setting)
        known = outcome if outcome in self._outcomes else OTHER
        self._requests.labels(setting, known).inc()
        self._seconds.labels(setting).observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """A request, or a batch of them, spent `seconds` in one of STAGES."""
        self._stages.labels(name if name in STAGES else OTHER).observe(seconds)

    def engine(self, requests: int, backlog: float, chains: int) -> None:
        """A segment ran with this many requests held; seconds of work and chains are left."""
        self.batch(requests)
        self._backlog.set(backlog)
        self._slots.set(chains)

    def batch(self, requests: int) -> None:
        """So many requests are held."""
        self._batch.observe(requests)

    def follow(self, backlog: Callable[[], float], chains: Callable[[], float]) -> None:
        """Ask for these two whenever they are read; of a process that shares its metrics with no other."""
        self._backlog.set_function(backlog)
        self._slots.set_function(chains)

    def verdict(self, counted: Counted) -> None:
        """One verdict was given.  Adding 0 makes a series exist, so that a rate can be taken before."""
        setting = self._known(counted.setting)
        self._chains.labels(setting).observe(counted.chains)
        self._steps.labels(setting).observe(counted.steps)
        self._score.observe(counted.score)
        self._flags.labels(setting).inc(int(counted.flagged))
        self._changed.labels(setting).inc(int(counted.label_changed))
        self._capped.labels(setting).inc(int(counted.capped))
        self._late.labels(setting).inc(int(counted.late))
        self._redrawn.inc(counted.redrawn)

    def model(self, name: str, version: str, digest: str) -> None:
        """Name the model that is served."""
        self._model.labels(name, version, digest).set(1)

    def serve(self, port: int, host: str = "127.0.0.1") -> None:
        """Offer the metrics over HTTP, from whichever worker of this machine gets the port.

        Never raises and never waits: a worker without metrics still answers requests.
        """
        registry = self.exposed()
        if _listen(port, host, registry):
            return
        logger.info("port %d is not free: metrics are not served from this process", port)
        if _multiprocess():
            # Stand by: when the worker that has the port dies, one of the others takes over.
            threading.Thread(target=_stand_by, args=(port, host, registry), daemon=True).start()

    def exposed(self) -> CollectorRegistry:
        """The registry to show: that of all workers in multi-process mode, else this one."""
        if not _multiprocess():
            return self.registry
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
        return everyone

    def _known(self, setting: str) -> str:
        return setting if setting in self._settings else OTHER


def _multiprocess() -> bool:
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


def _listen(port: int, host: str, registry: CollectorRegistry) -> bool:
    try:
        start_http_server(port, host, registry)
    except (OSError, OverflowError):  # taken, not allowed, or no port at all
        return False
    return True


def _stand_by(port: int, host: str, registry: CollectorRegistry) -> None:
    while True:
        time.sleep(_RETRY_SECONDS)
        if _listen(port, host, registry):
            return
