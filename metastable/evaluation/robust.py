"""Accuracy under attacks that know the defense, image by image, resumable.

For every defense: the natural images are judged, the ones answered rightly are attacked, and what the
attack made is rounded to 8 bits, as a file would hold it, and judged again by the defense as served (its
chains, its early deciding, the anomaly flag of the attacked image), with chain seeds that the attacker's have
nothing to do with.  Two figures come of it.
`robust` is what the served defense still answers rightly: a break must survive fresh noise.  `unbroken` is
Algorithm 1's (Hill 2021): images of which no candidate, at any step, was confirmed as a break by H_def
chains.  It is the lower one where breaks are narrow, and attacks without that confirmation have none.  For
the `score-aware` attacks a break is a wrong label without the flag.

Every image's outcome is one line of `outcomes.jsonl`.  Images are attacked in fixed groups, so that
a resumed run draws the same numbers.  Rows and images may be added to a folder later: what is there is kept.
A pool does the groups (metastable.evaluation.pool); only this process writes, a whole group at a time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from metastable import datasets
from metastable.attacks.catalogue import Plan
from metastable.bundle import Bundle
from metastable.errors import DataError
from metastable.evaluation.groups import Group, Judge, RobustConfig
from metastable.evaluation.outcomes import Outcome, read_outcomes
from metastable.evaluation.pool import Here, Pool
from metastable.evaluation.robust_rows import NATURAL, Row, summarize_row
from metastable.evaluation.same import same_attack, same_run
from metastable.settings import Setting


def measure(
    bundle: Bundle,
    test: datasets.ImageSet,
    rows: Sequence[Row],
    config: RobustConfig,
    out: Path,
    device: str = "cpu",
    pool: Pool | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing of the rows in folder `out`, on the first images of `test`, and sum them up.

    Args:
        device: of attacks and answers.
        pool: does the groups; None is this process.

    Raises DataError if there are fewer images than a row asks for, or none, or `out` holds a run of another
    configuration; what `attackable` raises.
    """
    if not rows or min(row.n for row in rows) < 1 or max(row.n for row in rows) > len(test):
        raise DataError(f"every row needs 1 to {len(test)} images: change --n, --rows or --skip")
    pool, names = pool or Here(), list(dict.fromkeys(row.setting for row in rows))
    judge = Judge(restricted(bundle, names), test, config, device, device)
    known = describing(judge, pool)
    plans = {row: known.plan(row.setting, row.attack, config.eps) for row in rows}
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        of_setting = dataclasses.replace(config, setting=said(bundle, bundle.settings[name]))
        same_run(out / f"{name}-config.json", of_setting)
    run = Outcomes(judge, config, out, pool)
    for row, made in plans.items():
        run.same(row.setting, row.attack, made)
    with tqdm(total=2 * sum(row.n for row in rows), desc="images", mininterval=2) as bar:
        for row in rows:
            bar.set_postfix_str(f"{row.setting}, {row.attack}")
            run.judge_natural(row.setting, range(row.n), bar.update)
            run.attack(row.setting, row.attack, range(row.n), bar.update)
    outcomes = read_outcomes(run.path)
    return [
        summarize_row(row, outcomes, bundle.settings[row.setting], made, config.eps, config.norm)
        for row, made in plans.items()
    ]


def restricted(bundle: Bundle, names: Sequence[str]) -> Bundle:
    """The bundle with the settings of these names alone: an engine is made for all that it has."""
    by_name = {name: bundle.settings[name] for name in names}
    return dataclasses.replace(bundle, settings=dataclasses.replace(bundle.settings, by_name=by_name))


def describing(judge: Judge, pool: Pool) -> Judge:
    """The one whose plans say what is done: `judge`, or one without its device where others have that."""
    return judge if pool.here else dataclasses.replace(judge, device="cpu", home="cpu")


def _untold(images: int) -> None:
    """For callers who show no progress."""


class Outcomes:
    """The outcomes so far in a folder, and what adds to them.

    Args:
        judge: makes them.
        config: of this folder.
        out: holds `outcomes.jsonl`, and `images/SETTING/ATTACK/INDEX.png`, what each attack made.
        pool: does the groups.
    """

    def __init__(self, judge: Judge, config: RobustConfig, out: Path, pool: Pool) -> None:
        self.path, self._out = out / "outcomes.jsonl", out
        self._judge, self._config, self._pool = judge, config, pool
        self._labels = judge.test.labels
        self._done = {(o["setting"], o["attack"], o["index"]): o for o in read_outcomes(self.path)}

    def groups(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """The images, as many at a time as are attacked together."""
        size = self._config.batch
        return (list(indices[start : start + size]) for start in range(0, len(indices), size))

    def of(self, setting: str, attack: str, index: int) -> Outcome:
        """One that is there; KeyError where there is none."""
        return self._done[setting, attack, index]

    def has(self, setting: str, attack: str, index: int) -> bool:
        """Whether it is there."""
        return (setting, attack, index) in self._done

    def all_of(self, setting: str) -> list[Outcome]:
        """What is there of a setting."""
        return [outcome for (name, _, _), outcome in self._done.items() if name == setting]

    def same(self, setting: str, name: str, made: Plan) -> None:
        """DataError unless outcomes of an attack that are there were made with the same parameters."""
        same_attack(self._out / f"{setting}-{name}-attack.txt", f"{made.mode} {made.attack!r}")

    def judge_natural(
        self, setting: str, indices: Sequence[int], told: Callable[[int], object] = _untold
    ) -> None:
        """Judge natural images; `told` hears of how many are done."""
        self._do(self._unjudged(setting, indices, told), told)

    def attack(
        self, setting: str, name: str, indices: Sequence[int], told: Callable[[int], object] = _untold
    ) -> None:
        """Attack images, of those that are answered rightly; the others are lost already.

        Their natural images were judged.  `told` hears of how many are done.
        """
        self._do(self._unattacked(setting, name, indices, told), told)

    def _unjudged(
        self, setting: str, indices: Sequence[int], told: Callable[[int], object]
    ) -> Iterator[Group]:
        for group in self.groups(indices):
            if self._left(setting, NATURAL, group):
                yield Group(setting, NATURAL, self._config.eps, group[0], tuple(group))
            else:
                told(len(group))

    def _unattacked(
        self, setting: str, name: str, indices: Sequence[int], told: Callable[[int], object]
    ) -> Iterator[Group]:
        """Groups that have images to attack; what of them is lost already is written on the way."""
        place = {"setting", "attack", "index", "label"}
        for group in self.groups(indices):
            left = self._left(setting, name, group)
            natural = {i: self._done[setting, NATURAL, i] for i in group} if left else {}
            right = [i for i, o in natural.items() if o["predicted"] == o["label"]]
            lost = [i for i in left if i not in right]
            unchanged = [{k: v for k, v in natural[i].items() if k not in place} for i in lost]
            self._write(setting, name, lost, [{**o, "broken": True, "seconds": 0.0} for o in unchanged])
            if attacked := set(right) & set(left):
                yield Group(setting, name, self._config.eps, group[0], tuple(right))
            told(len(group) - (len(right) if attacked else 0))

    def _do(self, groups: Iterator[Group], told: Callable[[int], object]) -> None:
        """Write what groups come to as they are done: of a group that was done in part, what was missing."""
        for group, found in self._pool.map(self._judge, groups):
            left = self._left(group.setting, group.attack, group.images)
            rows = [row for row, i in enumerate(group.images) if i in left]
            if found.pixels is not None:
                self._keep(group.setting, group.attack, left, found.pixels[rows])
            self._write(group.setting, group.attack, left, [found.outcomes[row] for row in rows])
            told(len(group.images))

    def _left(self, setting: str, name: str, group: Sequence[int]) -> list[int]:
        return [i for i in group if (setting, name, i) not in self._done]

    def _keep(self, setting: str, name: str, indices: list[int], images: Tensor) -> None:
        folder = self._out / "images" / setting / name
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in zip(indices, images, strict=True):
            pixels = image.permute(1, 2, 0).numpy()
            picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
            picture.save(folder / f"{index}.png")

    def _write(self, setting: str, name: str, indices: list[int], outcomes: list[Outcome]) -> None:
        lines = [
            {"setting": setting, "attack": name, "index": index, "label": int(self._labels[index]), **outcome}
            for index, outcome in zip(indices, outcomes, strict=True)
        ]
        with self.path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._done |= {(setting, name, line["index"]): line for line in lines}


def said(bundle: Bundle, setting: Setting) -> str:
    """What a setting says beside its defaults, and the digests of the networks behind it.

    What else is in the bundle does not change an outcome, so that a bundle may grow between runs.
    """
    said = {"name": setting.name, "dynamics": setting.dynamics.name} | setting.fields()
    used = {"classifier", setting.network} - {""}
    if bundle.anomaly is not None:
        used.add(bundle.anomaly.network)
        said["threshold"] = bundle.anomaly.threshold
    if shift := bundle.shifts.get(setting.name):
        said["shift_threshold"] = shift.threshold
    return repr(said | {part: bundle.parts[part] for part in sorted(used)})
