"""From the records of one arm to its figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from loadtest import statistics
from loadtest.arms import Arm, Block
from loadtest.figures import (
    ArmFigures,
    Client,
    Confusion,
    Goodput,
    Identity,
    Latency,
    Sample,
    Share,
    Slow,
    SourceFigures,
    Stage,
)
from loadtest.records import Record
from metastable.evaluation.stats import auroc, wilson

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
WORST = 10  # slowest requests that the report lists


def arm_summary(
    arm: Arm, blocks: Sequence[Block], records: Sequence[Record], objective_ms: float
) -> ArmFigures:
    """All that the report says of one arm.

    Args:
        blocks, records: of this arm alone, warm-up included.
        objective_ms: latency that a good answer may take.
    """
    measured = [record for record in records if record.measured]
    natural = [record for record in measured if not record.attacked]
    sources = list(dict.fromkeys(record.source for record in measured))
    rows = [_source(source, measured, natural) for source in sources]
    attacked = [row.accuracy for row in rows if row.attack != "clean" and row.accuracy]
    answered = [record for record in measured if record.answered]
    good = sum(record.waited_ms <= objective_ms for record in measured)
    seconds = sum(_window(block) for block in blocks)
    return ArmFigures(
        arm=arm.name,
        url=arm.target.url,
        identity=_identity(answered),
        n=len(measured),
        warmup=len(records) - len(measured),
        answered=len(answered),
        outcomes=dict(Counter(record.outcome for record in measured).most_common()),
        seconds=round(seconds, 2),
        offered_rate=_offered(blocks),
        achieved_rate=round(len(answered) / seconds, 3) if seconds else None,
        latency_ms=latency(measured),
        goodput=Goodput(
            objective_ms,
            share([record.waited_ms <= objective_ms for record in measured]),
            round(good / seconds, 3) if seconds else None,
        ),
        time_ms=_time_split(answered),
        natural=share([record.right for record in natural if record.answered]),
        robust=min(attacked, default=None),
        sources=rows,
        confusion=Confusion(
            _confusion(natural), _confusion([record for record in measured if record.attacked])
        ),
        client=_client(blocks, measured),
        worst=[_slow(r) for r in sorted(measured, key=lambda r: -r.waited_ms)[:WORST]],
        samples=[
            Sample(r.source, r.row, finite(r.waited_ms), r.right if r.answered else None) for r in measured
        ],
    )


def latency(records: Iterable[Record]) -> dict[str, Latency]:
    """Quantiles in ms with bounds; a value of None is a request without an answer."""
    waited = [record.waited_ms for record in records]
    found = {name: statistics.quantile(waited, q) for name, q in QUANTILES.items()}
    return {
        name: Latency(finite(one.value), finite(one.low), finite(one.high), one.needed, len(waited))
        for name, one in found.items()
    }


def share(values: Sequence[bool]) -> Share | None:
    """A proportion with its interval; None of nothing."""
    if not values:
        return None
    low, high = wilson(sum(values), len(values))
    return Share(*(round(v, 4) for v in (sum(values) / len(values), low, high)))


def finite(value: float | None) -> float | None:
    """The number for JSON, which has no infinity."""
    return round(value, 3) if value is not None and math.isfinite(value) else None


def _source(source: str, measured: Sequence[Record], natural: Sequence[Record]) -> SourceFigures:
    these = [record for record in measured if record.source == source]
    verdicts = [record.verdict for record in these if record.verdict]
    clean = [record.verdict.score for record in natural if record.verdict]
    scores = [verdict.score for verdict in verdicts]
    separable = these[0].attacked and clean and scores
    return SourceFigures(
        source=source,
        attack=these[0].attack,
        n=len(these),
        answered=len(verdicts),
        accuracy=share([record.right for record in these if record.verdict]),
        unpurified=share([r.verdict.bare == r.label for r in these if r.verdict]),
        flagged=share([verdict.flagged for verdict in verdicts]),
        right_or_flagged=share([r.right or r.verdict.flagged for r in these if r.verdict]),
        auroc=round(auroc(clean, scores), 4) if separable else None,
        chains=_mean([verdict.chains for verdict in verdicts]),
        steps=_mean([verdict.steps for verdict in verdicts]),
        decided=share([verdict.decided for verdict in verdicts]),
        late=sum(verdict.late for verdict in verdicts),
        latency_ms=latency(these),
    )


def _identity(answered: Sequence[Record]) -> Identity:
    verdicts = [record.verdict for record in answered if record.verdict]
    return Identity(
        model=sorted({f"{v.model} {v.version} {v.digest}" for v in verdicts}),
        digest=sorted({v.digest for v in verdicts}),
        runner=sorted({v.runner for v in verdicts}),
        setting=sorted({v.setting for v in verdicts}),
    )


def _window(block: Block) -> float:
    """Seconds from the first measured request's due time to the last outcome."""
    measured = [e for e in block.played.exchanges if e.number >= block.warmup]
    return max(e.done for e in measured) - min(e.due for e in measured) if measured else 0.0


def _offered(blocks: Sequence[Block]) -> float | None:
    """Requests a second that were due, over all blocks; None where two in a block are not enough."""
    spans, gaps = 0.0, 0
    for block in blocks:
        due = [e.due for e in block.played.exchanges if e.number >= block.warmup]
        if len(due) > 1:
            spans, gaps = spans + max(due) - min(due), gaps + len(due) - 1
    return round(gaps / spans, 3) if spans else None


def _time_split(answered: Sequence[Record]) -> dict[str, Stage]:
    """Mean and median ms by stage of the server's own timings, and `outside` for what they do not hold."""
    stages: dict[str, list[float]] = {}
    for record in answered:
        assert record.verdict is not None
        timings = record.verdict.timings_ms
        parts = {name: value for name, value in timings.items() if name != "total"}
        if "total" in timings:
            # Other requests' segments lie between this one's own.
            parts["waiting between segments"] = max(0.0, timings["total"] - sum(parts.values()))
            parts["outside the worker"] = max(0.0, record.latency_ms - timings["total"])
        for name, value in parts.items():
            stages.setdefault(name, []).append(value)
    return {
        name: Stage(round(float(np.mean(values)), 2), round(float(np.median(values)), 2))
        for name, values in stages.items()
    }


def _confusion(records: Sequence[Record]) -> list[list[int]]:
    pairs = Counter((r.label, r.verdict.label) for r in records if r.verdict)
    size = 1 + max((max(pair) for pair in pairs), default=-1)
    if size > 1000:  # a picture of more classes says nothing
        return []
    return [[pairs[true, said] for said in range(size)] for true in range(size)]


def _client(blocks: Sequence[Block], measured: Sequence[Record]) -> Client:
    beats = [1e3 * beat for block in blocks for beat in block.played.beats]
    lags = [record.lag_ms for record in measured]
    return Client(
        finite(statistics.quantile(lags, 0.99).value) or 0.0,
        finite(statistics.quantile(beats, 0.99).value) or 0.0,
        round(max((block.played.busy for block in blocks), default=0.0), 3),
    )


def _slow(record: Record) -> Slow:
    verdict = record.verdict
    return Slow(
        at=record.at,
        image=f"{record.source} {record.row}",
        latency_ms=finite(record.waited_ms),
        outcome=record.outcome,
        label=record.label,
        said=verdict.label if verdict else None,
        chains=verdict.chains if verdict else None,
        flagged=verdict.flagged if verdict else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 2) if values else None
