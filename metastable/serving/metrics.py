"""What is counted, for Prometheus; docs/monitoring.md has each metric.

    >>> metrics = Metrics(settings=("fast", "none"))
    >>> metrics.request("fast", "ok", 0.012)
    >>> metrics.serve(8083)

`metastable.serving.exposition` says how several processes share one address.  Counting costs a
fraction of a millisecond a request, some microseconds a segment, and nothing a chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from metastable.errors import MetastableError
from metastable.serving import exposition
from metastable.version import __version__

if TYPE_CHECKING:
    from metastable.anomaly import Threshold
    from metastable.engine.job import Segment

STAGES = ("queue", "decode", "anomaly", "purify", "classify")
OTHER = "other"  # stands for every label value that is not known: a client must not invent labels
SCORE_NORM, SHIFT = "score_norm", "prediction_shift"
STATISTICS = (SCORE_NORM, SHIFT)
"""Names of the two anomaly statistics of metastable.anomaly."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)
_CHAINS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_STEPS = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_SCORES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0, 50.0, 200.0, 1000.0)
_SHIFTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
_RANKS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # metastable.anomaly.MARKS, whose import takes seconds
_SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


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
        score: the anomaly score of the image as it came, and `shift` its prediction shift.
        ranks: {statistic: its `Threshold.rank`}, of those that are calibrated for the setting.
        flagged: the statistics that are above their thresholds.
        label_changed: whether the label is not that of the image as it came.
        early: the label was decided before all chains of the setting were spent.
        capped: all chains of the setting were spent without a decision.
        late: the deadline cut it short.
    """

    setting: str
    chains: int
    steps: float
    score: float
    shift: float
    ranks: dict[str, float]
    flagged: frozenset[str]
    label_changed: bool
    early: bool
    capped: bool
    late: bool


class Metrics:
    """Counts requests and verdicts.

    Args:
        settings: the names that may stand as a label `setting`.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        settings: Sequence[str] = (),
    ) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._settings = frozenset(settings)
        self._outcomes = frozenset(outcomes())
        self._define_requests()
        self._define_engine()
        self._define_anomaly()
        self._define_model()
        for setting in settings:  # there from the beginning, so that a rate sees the first one
            for outcome in self._outcomes:
                self._requests.labels(setting, outcome, "")
            for counter in (self._early, self._capped, self._late, self._changed):
                counter.labels(setting)
            for statistic in STATISTICS:
                self._flags.labels(setting, statistic)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"metastable_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"metastable_{name}", text, labels, registry=self.registry, buckets=buckets)

    def _sum(self, name: str, text: str) -> Gauge:
        """A gauge of which each process has a part."""
        return Gauge(f"metastable_{name}", text, registry=self.registry, multiprocess_mode="livesum")

    def _known_of(self, name: str, text: str, *labels: str) -> Gauge:
        """A gauge that is the same in every process that has it."""
        return Gauge(f"metastable_{name}", text, labels, registry=self.registry, multiprocess_mode="livemax")

    def _define_requests(self) -> None:
        self._requests = self._counter("requests_total", "Images answered", "setting", "outcome", "arm")
        self._seconds = self._histogram(
            "request_seconds", "From arrival to answer", _SECONDS, "setting", "arm"
        )
        self._stages = self._histogram("stage_seconds", "Time in one stage of a request", _SECONDS, "stage")
        self._chains = self._histogram("chains", "Markov chains spent on a verdict", _CHAINS, "setting")
        self._steps = self._histogram("steps", "Mean steps of a verdict's chains", _STEPS, "setting")
        self._early = self._counter(
            "decided_early_total", "Verdicts decided before all chains were spent", "setting"
        )
        self._capped = self._counter("capped_total", "Verdicts that spent all chains undecided", "setting")
        self._late = self._counter("late_total", "Verdicts cut short by their deadline", "setting")

    def _define_engine(self) -> None:
        self._batch = self._histogram("batch_size", "Requests held during a segment of work", _REQUESTS)
        self._fill = self._histogram(
            "batch_fill_ratio", "Chains of a segment's batch, of those that would fit", _SHARES
        )
        self._redrawn = self._counter(
            "redrawn_chains_total", "Chains drawn again because they were not numbers"
        )
        self._backlog = self._sum("backlog_seconds", "Expected work of the requests held")
        self._most_backlog = self._sum("backlog_limit_seconds", "Backlog above which requests are refused")
        self._under_way = self._sum("chains_under_way", "Chains between their first and last step")
        self._slots = self._sum("chain_slots", "Chains that can be under way")

    def _define_anomaly(self) -> None:
        self._score = self._histogram("anomaly_score", "Score norm of the image as it came", _SCORES)
        self._shift = self._histogram(
            "anomaly_shift", "Distance of the verdict from the bare classifier's", _SHIFTS, "setting"
        )
        self._rank = self._histogram(
            "anomaly_rank",
            "Share of the calibrated images whose statistic is smaller",
            _RANKS,
            "statistic",
        )
        self._flags = self._counter(
            "anomaly_flags_total", "Images flagged as anomalous", "setting", "statistic"
        )
        self._changed = self._counter(
            "label_changed_total", "Verdicts whose label is not that of the image as it came", "setting"
        )
        labels = ("version", "statistic", "setting")
        self._threshold = self._known_of(
            "anomaly_threshold", "Value above which an image is flagged", *labels
        )
        self._expected = self._known_of(
            "anomaly_expected_flag_ratio",
            "Share of honest images that the threshold was set to flag",
            *labels,
        )
        self._calibrated = self._known_of(
            "anomaly_calibrated_value",
            "Value below which this share of calibrated images was",
            *labels,
            "share",
        )

    def _define_model(self) -> None:
        self._model = self._known_of(
            "model_info", "The model that is served; always 1", "model", "version", "digest"
        )
        self._build = self._known_of(
            "build_info", "What serves it; always 1", "version", "bundle", "digest", "runner"
        )
        self._loads = self._counter("model_loads_total", "Times that a process has loaded the model")
        self._restarts = self._counter("restarts_total", "Times that TorchServe was started again")

    # --- what happens --------------------------------------------------------------------------

    def request(self, setting: str, outcome: str, seconds: float, arm: str = "") -> None:
        """One image was answered, with `ok` or with the code of an error.

        Args:
            arm: of the operator's policy that chose the setting; empty where none did.
        """
        setting = self._known(setting)
        known = outcome if outcome in self._outcomes else OTHER
        self._requests.labels(setting, known, arm).inc()
        self._seconds.labels(setting, arm).observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """A request spent `seconds` in one of STAGES."""
        self._stages.labels(name if name in STAGES else OTHER).observe(seconds)

    def segment(self, segment: Segment) -> None:
        """The engine ran a segment."""
        self._batch.observe(segment.jobs)
        self._fill.observe(segment.chains / segment.width)
        self._redrawn.inc(segment.redrawn)

    def verdict(self, counted: Counted) -> None:
        """One verdict was given."""
        setting = self._known(counted.setting)
        self._chains.labels(setting).observe(counted.chains)
        self._steps.labels(setting).observe(counted.steps)
        self._score.observe(counted.score)
        self._shift.labels(setting).observe(counted.shift)
        for statistic, rank in counted.ranks.items():
            self._rank.labels(statistic).observe(rank)
        for statistic in counted.flagged:
            self._flags.labels(setting, statistic).inc()
        for counter, so in (
            (self._changed, counted.label_changed),
            (self._early, counted.early),
            (self._capped, counted.capped),
            (self._late, counted.late),
        ):
            if so:
                counter.labels(setting).inc()

    def restarted(self) -> None:
        """TorchServe ended by itself, or was ended because it hung, and is started again."""
        self._restarts.inc()

    # --- how it stands -------------------------------------------------------------------------

    def model(self, name: str, version: str, digest: str, runner: str) -> None:
        """This process has loaded the model that is served."""
        self._model.labels(name, version, digest).set(1)
        self._build.labels(__version__, name, digest, runner).set(1)
        self._loads.inc()

    def calibrated(self, version: str, statistic: str, setting: str, found: Threshold) -> None:
        """What a version expects of a statistic; `setting` is empty where it is the same for all."""
        self._threshold.labels(version, statistic, setting).set(found.threshold)
        self._expected.labels(version, statistic, setting).set(found.false_positive_rate)
        for share, value in found.curve:
            self._calibrated.labels(version, statistic, setting, f"{share:g}").set(value)

    def capacity(self, backlog: float, chains: int) -> None:
        """One more engine: the seconds of work that may wait for each, and chains that can be under way."""
        self._most_backlog.set(backlog)
        self._slots.inc(chains)

    def engine(self, backlog: float, chains: int) -> None:
        """So many seconds of work and chains are left."""
        self._backlog.set(backlog)
        self._under_way.set(chains)

    def follow(self, backlog: Callable[[], float], chains: Callable[[], float]) -> None:
        """Ask for these two whenever they are read; of a process that shares its metrics with no other."""
        self._backlog.set_function(backlog)
        self._under_way.set_function(chains)

    # --- how it is read ------------------------------------------------------------------------

    def serve(self, port: int, host: str = "127.0.0.1") -> None:
        """Offer the metrics over HTTP; see `exposition.serve`."""
        exposition.serve(self.exposed(), port, host)

    def exposed(self) -> CollectorRegistry:
        """The registry to show: that of all processes in multi-process mode, else this one."""
        return exposition.of_all() if exposition.multiprocess() else self.registry

    def _known(self, setting: str) -> str:
        return setting if setting in self._settings else OTHER
