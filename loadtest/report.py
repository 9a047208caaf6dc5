"""The report of a run: one value for programs, and one self-contained HTML file for people."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from loadtest import gallery, pairs, plots, records, served, validity
from loadtest.agreement import accuracy_of, word
from loadtest.arms import Arm, Block
from loadtest.figures import FORMAT, ArmFigures, Latency, Pair, Point, Report, to_json
from loadtest.items import Item, Source
from loadtest.records import Record
from loadtest.schedule import Load
from loadtest.summary import arm_summary
from metastable.bundle import Bundle

TEMPLATE = "report.html.j2"


@dataclasses.dataclass(frozen=True)
class LoadRun:
    """A run as it was asked for and as it happened.

    Attributes:
        objective_ms: latency that a good answer may take.
        machine: where client, and on loopback the server, ran; started: UTC, ISO 8601.
        bundle: the bundle that the server is thought to run; it draws the gallery.
        unpaired: names of arms that did not meet the images of the others.
    """

    arms: Sequence[Arm]
    sources: Sequence[Source]
    items: Sequence[Item]
    load: Load
    rounds: int
    warmup: int
    seed: int
    objective_ms: float
    machine: str
    started: str
    blocks: Sequence[Block]
    bundle: Bundle | None = None
    unpaired: frozenset[str] = frozenset()

    @property
    def records(self) -> list[Record]:
        attacks = {source.name: source.attack for source in self.sources}
        return records.of_blocks(self.blocks, self.items, attacks)


def summarise(run: LoadRun) -> Report:
    """The report of a run whose arms are taken apart already."""
    summaries = []
    for arm in run.arms:
        blocks = [block for block in run.blocks if block.arm == arm.name]
        these = [record for record in run.records if record.arm == arm.name]
        summaries.append(arm_summary(arm, blocks, these, run.objective_ms))
    reasons = validity.reasons(run.arms, summaries)
    first = summaries[0]
    sets = [{"name": source.name, "n": len(source.items), **source.about} for source in run.sources]
    return Report(
        format=FORMAT,
        verdict="INVALID" if reasons else "VALID",
        reasons=reasons,
        notes=[*_agreement(sets), *_notes(run, summaries)],
        started=run.started,
        machine=run.machine,
        load=run.load,
        rounds=run.rounds,
        seed=run.seed,
        objective_ms=run.objective_ms,
        sets=sets,
        classes=list(next((source.classes for source in run.sources if source.classes), ())),
        settings=_settings(run, summaries),
        arms=summaries,
        pairs=[_pair(run, first, second) for second in summaries[1:]],
    )


def taken_apart(run: LoadRun) -> LoadRun:
    """The run with the server's arms in place of those that the server split."""
    arms: list[Arm] = []
    blocks: list[Block] = []
    unpaired: set[str] = set()
    for arm in run.arms:
        parts = served.parts(arm, [block for block in run.blocks if block.arm == arm.name])
        unpaired |= {part.name for part, _ in parts if part.name != arm.name}
        arms += [part for part, _ in parts]
        blocks += [block for _, these in parts for block in these]
    return dataclasses.replace(run, arms=arms, blocks=blocks, unpaired=frozenset(unpaired))


def _pair(run: LoadRun, first: ArmFigures, second: ArmFigures) -> Pair:
    paired = not run.unpaired & {first.arm, second.arm}
    found = pairs.compare(first.samples, second.samples, paired=paired)
    both = [[r for r in run.records if r.arm == one.arm and r.measured] for one in (first, second)]
    return Pair(found.latency_ms, found.accuracy, first.arm, second.arm, paired, pairs.flags(*both))


def _settings(run: LoadRun, summaries: Sequence[ArmFigures]) -> dict[str, str]:
    """What the settings that answered say, where the server runs the bundle at hand."""
    if run.bundle is None or not _same_bundle(run.bundle, summaries):
        return {}
    named = {name for summary in summaries for name in summary.identity.setting}
    return {name: repr(run.bundle.settings[name]) for name in sorted(named)}


def _same_bundle(bundle: Bundle, summaries: Sequence[ArmFigures]) -> bool:
    digests = {digest for summary in summaries for digest in summary.identity.digest}
    return digests == {bundle.digest}


def _agreement(sets: Sequence[Mapping[str, object]]) -> list[str]:
    what = accuracy_of(sets)
    return [f"what is called accuracy is {what}"] if what else []


def _notes(run: LoadRun, summaries: Sequence[ArmFigures]) -> list[str]:
    """What a reader should know and that makes no run INVALID."""
    found = []
    for summary in summaries:
        few = [name for name, one in summary.latency_ms.items() if one.n < one.needed]
        if few:
            needed = max(one.needed for one in summary.latency_ms.values())
            found.append(
                f"{summary.arm}: {summary.n} requests are too few to bound {', '.join(few)}; "
                f"{needed} bound all quantiles"
            )
        if summary.n < len(run.items) and summary.arm not in run.unpaired:
            found.append(f"{summary.arm}: time ended after {summary.n} of {len(run.items)} images")
    digests = {digest for summary in summaries for digest in summary.identity.digest}
    for source in run.sources:
        against = source.about.get("bundle")
        if source.attack != "clean" and digests and {against} != digests:
            found.append(f"set {source.name} was made against another bundle than the one that answered")
    if run.bundle is None or not _same_bundle(run.bundle, summaries):
        found.append("no gallery: --bundle is not, or not alone, what answered")
    return found


def pictures(run: LoadRun, report: Report) -> dict[str, bytes]:
    """PNG files by name."""
    names, these = [arm.name for arm in run.arms], run.records
    drawn = {
        "latency": plots.png(plots.latency(these, names, run.objective_ms)),
        "timeline": plots.png(plots.timeline(these, names)),
        "frontier": plots.png(
            plots.frontier(_points(report), "median latency, ms", word(report.accuracy_is))
        ),
    }
    answering = next((arm.arm for arm in report.arms if arm.answered), names[0])
    if roc := plots.roc(these, answering):
        drawn["roc"] = plots.png(roc)
    misses = gallery.choose(these)
    if misses and run.bundle is not None and _same_bundle(run.bundle, report.arms):
        drawn["misses"] = plots.png(gallery.draw(misses, run.items, run.bundle))
    return drawn


def _points(report: Report) -> list[Point]:
    return [
        Point(arm.arm, p50.value, p50.low, p50.high, arm.sources)
        for arm in report.arms
        for p50 in [arm.latency_ms["p50"]]
    ]


def html(report: Report, drawn: Mapping[str, bytes]) -> str:
    """The page: no script, nothing from a network; everything that a server said is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "ms": milliseconds}
    encoded = {name: base64.b64encode(data).decode() for name, data in drawn.items()}
    return environment.get_template(TEMPLATE).render(
        report=report, pictures=encoded, accuracy=word(report.accuracy_is)
    )


def percent(value: Sequence[float] | float | None) -> str:
    """`91.0 % [85.1, 94.8]` of [value, low, high], `91.0 %` of a number, a dash of None."""
    if value is None:
        return "–"
    if isinstance(value, Sequence):
        return f"{100 * value[0]:.1f} % [{100 * value[1]:.1f}, {100 * value[2]:.1f}]"
    return f"{100 * value:.1f} %"


def milliseconds(one: Latency) -> str:
    """A quantile with its bounds; ∞ for a request without an answer, a dash for no request at all."""
    if not one.n:
        return "–"
    low, high = ("?" if end is None else f"{end:.0f}" for end in (one.low, one.high))
    value = one.value if one.value is not None else math.inf
    return f"{value:.0f} [{low}, {high}]".replace("inf", "∞")


def write(folder: Path, run: LoadRun) -> Report:
    """report.json, requests.jsonl, report.html and the pictures, into `folder`; gives the report."""
    folder.mkdir(parents=True, exist_ok=True)
    run = taken_apart(run)
    report = summarise(run)
    drawn = pictures(run, report)
    (folder / "report.json").write_text(json.dumps(to_json(report)) + "\n")
    records.write(folder / "requests.jsonl", run.records)
    (folder / "report.html").write_text(html(report, drawn), encoding="utf-8")
    for name, data in drawn.items():
        (folder / f"{name}.png").write_bytes(data)
    return report
