"""What a run found, as values: a report, its arms, and what two arms differ in.

`to_json` is the one way to JSON and `read_report` the one way back; docs/load-testing.md explains the fields.
Latencies are milliseconds, and None stands for a request without an answer.  Counts are of requests that were
measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from loadtest.agreement import accuracy_of
from loadtest.reading import read
from loadtest.schedule import Load

FORMAT = "metastable-load-test 1"


class Share(NamedTuple):
    """A proportion with its Wilson 95 % interval."""

    value: float
    low: float
    high: float


class Sample(NamedTuple):
    """A request as comparisons need it; `right` is None where it got no answer."""

    source: str
    row: int
    latency_ms: float | None
    right: bool | None


@dataclass(frozen=True)
class Latency:
    """A quantile of `n` latencies with bounds, which `needed` of them would have."""

    value: float | None
    low: float | None
    high: float | None
    needed: int
    n: int


@dataclass(frozen=True)
class Goodput:
    """Requests answered within the objective: their share, and how many a second."""

    objective_ms: float
    share: Share | None
    rate: float | None


@dataclass(frozen=True)
class Stage:
    """Time of a stage of the server's own timings, in ms."""

    mean: float
    p50: float


@dataclass(frozen=True)
class Identity:
    """What answered: more than one entry means that it changed under way."""

    model: list[str]
    digest: list[str]
    runner: list[str]
    setting: list[str]


@dataclass(frozen=True)
class Client:
    """How late the client was when it sent, and when it woke from 10 ms of sleep; its share of a core."""

    send_lag_p99_ms: float
    wake_lag_p99_ms: float
    busy: float


@dataclass(frozen=True)
class SourceFigures:
    """The images of one source; shares are of its answers, and None of none."""

    source: str
    attack: str
    n: int
    answered: int
    accuracy: Share | None
    unpurified: Share | None
    flagged: Share | None
    right_or_flagged: Share | None
    auroc: float | None
    chains: float | None
    steps: float | None
    decided: Share | None
    late: int
    latency_ms: dict[str, Latency]


@dataclass(frozen=True)
class Confusion:
    """counts[true label][label said], as large as the labels need; empty without answers."""

    natural: list[list[int]]
    attacked: list[list[int]]


@dataclass(frozen=True)
class Slow:
    """One of the slowest requests."""

    at: float
    image: str
    latency_ms: float | None
    outcome: str
    label: int
    said: int | None
    chains: int | None
    flagged: bool | None


@dataclass(frozen=True)
class ArmFigures:
    """All that a report says of one arm."""

    arm: str
    url: str
    identity: Identity
    n: int
    warmup: int
    answered: int
    outcomes: dict[str, int]
    seconds: float
    offered_rate: float | None
    achieved_rate: float | None
    latency_ms: dict[str, Latency]
    goodput: Goodput
    time_ms: dict[str, Stage]
    natural: Share | None
    robust: Share | None
    sources: list[SourceFigures]
    confusion: Confusion
    client: Client
    worst: list[Slow]
    samples: list[Sample]


@dataclass(frozen=True)
class LatencyContrast:
    """How much later the second is in a quantile; `noise` where zero is plausible."""

    value: float | None
    low: float | None
    high: float | None
    noise: bool


@dataclass(frozen=True)
class AccuracyContrast:
    """Accuracy of the first and the second on one source; `only_...` are images that one alone got right."""

    source: str
    n: tuple[int, int]
    accuracy: tuple[float | None, float | None]
    test: str
    p: float
    noise: bool
    only_first: int | None = None
    only_second: int | None = None


@dataclass(frozen=True)
class Contrast:
    """What differs from one arm, or run, to another."""

    latency_ms: dict[str, LatencyContrast]
    accuracy: list[AccuracyContrast]


@dataclass(frozen=True)
class FlagContrast:
    """Shares of one source's answers that were flagged, of the first and the second; p by Fisher's test."""

    source: str
    n: tuple[int, int]
    flagged: tuple[Share | None, Share | None]
    p: float
    noise: bool


@dataclass(frozen=True)
class Pair(Contrast):
    """Two arms of one run; `paired` where both met the same images."""

    first: str
    second: str
    paired: bool = True
    flagged: list[FlagContrast] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class ArmContrast(Contrast):
    """One arm of two runs, and what answered in each."""

    arm: str
    identity: tuple[Identity, Identity]


@dataclass(frozen=True)
class Comparison:
    """Two runs; `conditions` are those that differ, as they were in each."""

    same_images: bool
    conditions: dict[str, tuple[Any, Any]]
    arms: list[ArmContrast]


@dataclass(frozen=True)
class Point:
    """An arm in the picture of the frontier: what it costs, with bounds where they are known."""

    arm: str
    x: float | None
    low: float | None
    high: float | None
    sources: list[SourceFigures]


@dataclass(frozen=True)
class Report:
    """What report.json holds."""

    format: str
    verdict: str
    reasons: list[str]
    notes: list[str]
    started: str
    machine: str
    load: Load
    rounds: int
    seed: int
    objective_ms: float
    sets: list[dict[str, Any]]
    classes: list[str]
    settings: dict[str, str]
    arms: list[ArmFigures]
    pairs: list[Pair]

    @property
    def accuracy_is(self) -> str | None:
        """What its accuracies are on sets that nobody labelled; None where all sets have labels."""
        return accuracy_of(self.sets)


def to_json(one: Any) -> Any:
    """A value of this module, or a list or mapping of such, as `json.dumps` takes it."""
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return {field.name: to_json(getattr(one, field.name)) for field in dataclasses.fields(one)}
    if isinstance(one, Mapping):
        return {name: to_json(value) for name, value in one.items()}
    return [to_json(value) for value in one] if isinstance(one, list | tuple) else one


def read_report(found: object) -> Report:
    """The report that `to_json` made of one; raises DataError for what is none, with the field at fault."""
    report: Report = read(Report, found, "the report")
    return report
