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
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from metastable import datasets
from metastable.anomaly import score_norms
from metastable.attacks.ball import Ball
from metastable.attacks.catalogue import Options, Plan, plan
from metastable.attacks.white_box import attackable, white_box
from metastable.bundle import Bundle
from metastable.engine.local import LocalEngine, engine_on
from metastable.errors import DataError
from metastable.evaluation.outcomes import Outcome, judge, read_outcomes
from metastable.evaluation.robust_rows import NATURAL, Row, summarize_row
from metastable.evaluation.same import same_attack, same_run
from metastable.networks.onnx_gradient import IMAGES
from metastable.settings import Setting


@dataclass(frozen=True)
class RobustConfig(Options):
    """What the outcomes of a setting depend on; kept beside them so that two runs cannot mix.

    Attributes:
        batch: images that are attacked together.
        bits: of what is judged; 32 judges an attack's floating-point images as they are, and so does l_2.
        data: digest of the data set.
        setting: what the setting says, and the digests of the networks that it uses; `measure` fills it in.
    """

    skip: int = 0
    batch: int = 4
    seed: int = 0
    bits: int = 8
    data: str = ""
    setting: str = ""


def measure(
    bundle: Bundle,
    test: datasets.ImageSet,
    rows: Sequence[Row],
    config: RobustConfig,
    out: Path,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Run what is missing of the rows in folder `out`, on the first images of `test`, and sum them up.

    Raises DataError if there are fewer images than a row asks for, or none, or `out` holds a run of another
    configuration; what `attackable` raises.
    """
    if not rows or min(row.n for row in rows) < 1 or max(row.n for row in rows) > len(test):
        raise DataError(f"every row needs 1 to {len(test)} images: change --n, --rows or --skip")
    if device != "cpu":
        bundle = moved(bundle, device)
    attacker = attackable(bundle, datasets.to_float(test.images[:IMAGES]), device)
    plans = {row: planned(attacker, row.setting, row.attack, config) for row in rows}
    out.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(row.setting for row in rows):
        of_setting = dataclasses.replace(config, setting=said(bundle, bundle.settings[name]))
        same_run(out / f"{name}-config.json", of_setting)
    run = Outcomes(bundle, test, config, out, device)
    for row, made in plans.items():
        run.same(row.setting, row.attack, made)
    with tqdm(total=2 * sum(row.n for row in rows), desc="images", mininterval=2) as bar:
        for row in rows:
            bar.set_postfix_str(f"{row.setting}, {row.attack}")
            for group in run.groups(range(row.n)):
                run.judge_natural(row.setting, group)
                bar.update(len(group))
            for group in run.groups(range(row.n)):
                run.attack(row.setting, row.attack, plans[row], group)
                bar.update(len(group))
    outcomes = read_outcomes(run.path)
    return [
        summarize_row(row, outcomes, bundle.settings[row.setting], made, config.eps, config.norm)
        for row, made in plans.items()
    ]


def planned(bundle: Bundle, setting: str, attack: str, config: RobustConfig) -> Plan:
    """The named attack on a setting of an `attackable` bundle, knowing all of it but its seeds."""
    return plan(attack, white_box(bundle, setting), config)


class Outcomes:
    """The outcomes so far in a folder, and what adds to them.

    Args:
        out: holds `outcomes.jsonl`, and `images/SETTING/ATTACK/INDEX.png`, what each attack made.
        device: of the attack.  Answers come from where the bundle is.
        engine: of the bundle's settings that are judged; made for all of them if there is none.
    """

    def __init__(
        self,
        bundle: Bundle,
        test: datasets.ImageSet,
        config: RobustConfig,
        out: Path,
        device: str,
        engine: LocalEngine | None = None,
    ) -> None:
        self.path, self._out, self._device = out / "outcomes.jsonl", out, device
        self._bundle, self._config, self._labels = bundle, config, test.labels
        self._images = datasets.to_float(test.images)
        network = bundle.calibration.network
        self._score = bundle.scores[network]
        self._home = next(bundle.networks[network].parameters()).device
        self._engine = engine or engine_on(self._home.type, bundle)
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

    def judge_natural(self, setting: str, group: list[int]) -> None:
        """Judge a group's natural images."""
        if left := [i for i in group if (setting, NATURAL, i) not in self._done]:
            self._write(setting, NATURAL, left, self._judged(setting, NATURAL, left, self._images[left]))

    def same(self, setting: str, name: str, made: Plan) -> None:
        """DataError unless outcomes of an attack that are there were made with the same parameters."""
        same_attack(self._out / f"{setting}-{name}-attack.txt", f"{made.mode} {made.attack!r}")

    def attack(self, setting: str, name: str, made: Plan, group: list[int]) -> None:
        """Attack a group's images that are answered rightly; the others are lost already."""
        left = [i for i in group if (setting, name, i) not in self._done]
        if not left:
            return
        natural = {i: self._done[setting, NATURAL, i] for i in group}
        lost = [i for i in left if natural[i]["predicted"] != natural[i]["label"]]
        place = {"setting", "attack", "index", "label"}
        unchanged = [{key: value for key, value in natural[i].items() if key not in place} for i in lost]
        self._write(setting, name, lost, [{**o, "broken": True, "seconds": 0.0} for o in unchanged])
        right = [i for i in group if natural[i]["predicted"] == natural[i]["label"]]
        if not set(right) & set(left):
            return
        started = time.perf_counter()
        seed = secret(self._config.seed, "attacker", setting, name, group[0]) % 2**32
        images, labels = self._images[right].to(self._device), self._labels[right].to(self._device)
        found = made.attack(made.target, images, labels, seed=seed)
        seconds = (time.perf_counter() - started) / len(right)
        made_of, ball = found.images.cpu(), Ball(self._config.norm, self._config.eps)
        far = ball.distance(made_of, self._images[right])
        if not bool((far <= ball.eps + 1e-5).all()):  # nor where it is no number
            raise DataError(f"{name} left its ball: its images are {far.max():.4g} from the natural ones")
        if self._config.bits == 8 and ball.norm == "linf":
            made_of = ball.eight_bit(made_of, self._images[right])
            self._keep(setting, name, [i for i in right if i in left], made_of[[i in left for i in right]])
        outcomes = self._judged(setting, name, right, made_of)
        for row, outcome in enumerate(outcomes):
            strength = float(found.strength[row])
            outcome |= {
                "broken": strength > 0,
                "strength": round(strength, 4) if math.isfinite(strength) else None,
                "distance": round(float(far[row]), 5),
                "seconds": round(seconds, 2),
            }
        pairs = [(i, o) for i, o in zip(right, outcomes, strict=True) if i in left]
        self._write(setting, name, [i for i, _ in pairs], [o for _, o in pairs])

    def _judged(self, setting: str, name: str, indices: list[int], images: Tensor) -> list[Outcome]:
        norms = score_norms(images.to(self._home), self._score).cpu()
        seeds = [secret(self._config.seed, "judge", setting, name, i) for i in indices]
        return judge(self._bundle, self._engine, images, norms, seeds, setting)

    def _keep(self, setting: str, name: str, indices: list[int], images: Tensor) -> None:
        folder = self._out / "images" / setting / name
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in zip(indices, images, strict=True):
            pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()
            picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
            picture.save(folder / f"{index}.png")

    def _write(self, setting: str, name: str, indices: list[int], outcomes: list[Outcome]) -> None:
        with self.path.open("a") as file:
            for index, outcome in zip(indices, outcomes, strict=True):
                label = int(self._labels[index])
                line = {"setting": setting, "attack": name, "index": index, "label": label, **outcome}
                file.write(json.dumps(line) + "\n")
                self._done[setting, name, index] = line


def moved(bundle: Bundle, device: str) -> Bundle:
    """A copy whose networks are on the device."""
    classifier, networks = copy.deepcopy((bundle.classifier, bundle.networks))
    for network in (classifier, *networks.values()):
        network.to(device)
    return dataclasses.replace(bundle, classifier=classifier, networks=networks)


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


def secret(*parts: object) -> int:
    """128 bits that no other parts give: the judge's seeds tell nothing of the attacker's, and repeat."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], "little")
