"""Conditions on a report for CI, and two reports beside each other."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest import pairs
from loadtest.figures import FORMAT, ArmContrast, ArmFigures, Comparison, Report, read_report
from loadtest.summary import QUANTILES
from metastable.errors import DataError

METRICS = (*QUANTILES, "goodput", "natural", "robust", "flagged", "unanswered")
CONDITIONS = ("load", "machine", "objective_ms", "verdict")
"""What two runs should have had in common."""
_CONDITION = re.compile(
    r"(?:(?P<arm>[A-Za-z0-9_.-]+)\.)?(?P<metric>[a-z0-9]+)(?P<sign>[<>])(?P<limit>[0-9.eE+-]+)"
)


@dataclass(frozen=True)
class Condition:
    """`[ARM.]METRIC<NUMBER` or `>`: what must not be.  Without an arm it is asked of every one."""

    arm: str | None
    metric: str
    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.arm + '.' if self.arm else ''}{self.metric}{self.sign}{self.limit!r}"

    def failures(self, report: Report) -> list[str]:
        """One sentence for every arm that the condition holds of, or whose figure is not known.

        Raises DataError if the report has no such arm.
        """
        arms = [arm for arm in report.arms if self.arm in (None, arm.arm)]
        if not arms:
            raise DataError(f"{self}: the report has the arms {', '.join(a.arm for a in report.arms)}")
        found = []
        for arm in arms:
            value = metric(arm, self.metric)
            if value is None:
                found.append(f"{arm.arm}: {self.metric} is not known")
            elif value > self.limit if self.sign == ">" else value < self.limit:
                found.append(f"{arm.arm}: {self.metric} is {value:g}, {self.sign} {self.limit:g}")
        return found


def parse_condition(text: str) -> Condition:
    """`p99>500`, `fast.robust<0.4`: ms for p50 p90 p95 p99, shares for the others of METRICS.

    Raises DataError for anything else.
    """
    match = _CONDITION.fullmatch(text)
    try:
        limit = float(match["limit"]) if match else math.nan
    except ValueError:
        limit = math.nan
    if match is None or match["metric"] not in METRICS or not math.isfinite(limit):
        raise DataError(f"{text!r} is no condition like p99>500 or fast.robust<0.4, with one of {METRICS}")
    return Condition(match["arm"], match["metric"], match["sign"], limit)


def metric(arm: ArmFigures, name: str) -> float | None:
    """A figure of an arm's summary; None where it was not measured, or rests on unanswered requests."""
    if name in QUANTILES:
        return arm.latency_ms[name].value
    if name == "unanswered":
        return 1 - arm.answered / arm.n if arm.n else None
    if name == "flagged":
        return max((r.flagged.value for r in arm.sources if r.attack == "clean" and r.flagged), default=None)
    share = {"goodput": arm.goodput.share, "natural": arm.natural, "robust": arm.robust}[name]
    return share.value if share else None


def load(path: Path) -> Report:
    """A report.json; raises DataError if it is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise DataError(f"{path} is no report of `metastable loadtest run`")
    try:
        return read_report(report)
    except DataError as error:
        raise DataError(f"{path} is no whole report: {error}") from None


def reports(first: Report, second: Report) -> Comparison:
    """What changed from the first report to the second, arm by arm.

    Accuracy is compared image by image if the sets have the same digests.  Raises DataError if no
    arm is in both.
    """
    arms = {arm.arm: arm for arm in first.arms}
    both = [(arms[arm.arm], arm) for arm in second.arms if arm.arm in arms]
    if not both:
        there = ", ".join(arm.arm for arm in second.arms)
        raise DataError(f"no arm is in both reports: {', '.join(sorted(arms))} and {there}")
    digests = [{s["file"]: s.get("digest") for s in report.sets} for report in (first, second)]
    paired = digests[0] == digests[1] and None not in digests[0].values()
    compared = [(name, getattr(first, name), getattr(second, name)) for name in CONDITIONS]
    return Comparison(
        same_images=paired,
        conditions={name: (before, after) for name, before, after in compared if before != after},
        arms=[_arm(a, b, paired) for a, b in both],
    )


def _arm(first: ArmFigures, second: ArmFigures, paired: bool) -> ArmContrast:
    found = pairs.compare(first.samples, second.samples, paired=paired)
    return ArmContrast(found.latency_ms, found.accuracy, second.arm, (first.identity, second.identity))


def sentences(arms: Sequence[ArmContrast]) -> list[str]:
    """What a comparison says, a line each."""
    lines = []
    for arm in arms:
        for name, one in arm.latency_ms.items():
            told = "not known" if one.value is None else f"{one.value:+.1f} ms"
            interval = "" if one.low is None else f" [{one.low:+.1f}, {one.high:+.1f}]"
            lines.append(f"{arm.arm:<16}{name:<22}{told}{interval}  {_judged(one.noise)}")
        for row in arm.accuracy:
            before, after = ("-" if v is None else f"{100 * v:.1f} %" for v in row.accuracy)
            what = f"accuracy {row.source}"
            lines.append(
                f"{arm.arm:<16}{what:<22}{before} -> {after}  p {row.p:.3g} ({row.test})  "
                f"{_judged(row.noise)}"
            )
    return lines


def _judged(noise: bool) -> str:
    return "may be noise" if noise else "CHANGED"
