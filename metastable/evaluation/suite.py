"""The suite: several attacks that know the defense, and the worst case of them by image.

An attack of the suite takes the images that are still answered rightly after those before it, because
what is lost stays lost; `joint`, which judges the flag as well, takes all that were not yet wrong and
unflagged.  What an attack made is rounded to 8 bits and judged by the defense as served, once, on fresh
noise.  An image counts as lost if any attack's image is answered wrongly, or if it was answered wrongly
before.  An image that is lost at a smaller radius is lost at a larger one, because the smaller ball lies
within it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from metastable import datasets
from metastable.attacks.annealed import Annealed
from metastable.attacks.ascent import Misclassify, autograd_slope
from metastable.attacks.catalogue import SUITE, Plan
from metastable.attacks.target import Eot
from metastable.bundle import Bundle
from metastable.errors import DataError
from metastable.evaluation.outcomes import same_run
from metastable.evaluation.robust import Outcomes, RobustConfig, moved, planned, said
from metastable.evaluation.stats import wilson
from metastable.settings import Setting

FLAG_AWARE = "joint"


@dataclass(frozen=True)
class Standing:
    """Images after some attacks.

    Attributes:
        lost: answered wrongly, naturally or under one of the attacks.
        passed: answered wrongly and not flagged, at least once: lost also where flagged images are refused.
    """

    lost: frozenset[int] = frozenset()
    passed: frozenset[int] = frozenset()


def measure(
    bundle: Bundle,
    test: datasets.ImageSet,
    settings: Sequence[str],
    radii: Sequence[float],
    config: RobustConfig,
    out: Path,
    *,
    device: str = "cpu",
    members: Sequence[str] = SUITE,
) -> list[dict[str, Any]]:
    """The suite on all of `test` for every setting and radius, in folder `out`, resumed by image.

    Args:
        radii: of the ball, in [0, 1] units; they are run from small to large.
        config: its eps is not used.
        members: attacks, in their order.

    Returns a summary (see `summarize`) for each setting and radius.  Raises DataError for no images, a bundle
    without a calibrated flag, or a folder with another configuration.
    """
    if not len(test) or not radii or not members:
        raise DataError("a suite needs at least one image, radius and attack")
    attacker = bundle if device == "cpu" else moved(bundle, device)
    found = []
    for setting in settings:
        before = Standing()
        for eps in sorted(radii):
            here = dataclasses.replace(config, eps=eps, setting=said(bundle, bundle.settings[setting]))
            folder = out / f"eps-{255 * eps:g}"
            folder.mkdir(parents=True, exist_ok=True)
            same_run(folder / f"{setting}-config.json", here)
            plans = {name: planned(attacker, setting, name, here) for name in members}
            outcomes = Outcomes(bundle, test, here, folder, device)
            run = _Suite(outcomes, setting, len(test), plans)
            check_same(plans, attacker, bundle, setting)
            tqdm.write(f"{setting}, eps {255 * eps:g}/255: {estimate(plans, test, here, device)}")
            after, rows = run.attack(before)
            check_spent(outcomes.all_of(setting), bundle.settings[setting])
            found.append(summarize(outcomes, setting, bundle, len(test), eps, rows, after))
            before = after
    return found


class _Suite:
    """One setting and one radius."""

    def __init__(self, outcomes: Outcomes, setting: str, n: int, plans: dict[str, Plan]) -> None:
        self._outcomes, self._setting, self._n, self._plans = outcomes, setting, n, plans

    def attack(self, before: Standing) -> tuple[Standing, list[dict[str, Any]]]:
        """The standing after all attacks, and a row for each."""
        for group in self._outcomes.groups(range(self._n)):
            self._outcomes.judge_natural(self._setting, group)
        now, rows = self._after("natural", range(self._n), before), []
        wrong = {i for i in range(self._n) if _wrong(self._outcomes.of(self._setting, "natural", i))}
        for name, plan in self._plans.items():
            done_for = now.passed | wrong if name == FLAG_AWARE else now.lost
            todo = [i for i in range(self._n) if i not in done_for]
            bar = tqdm(total=len(todo), desc=f"{self._setting}, {name}", mininterval=2)
            for group in self._outcomes.groups(todo):
                self._outcomes.attack(self._setting, name, plan, group)
                bar.update(len(group))
            bar.close()
            before_it, now = now, self._after(name, todo, now)
            made = [self._outcomes.of(self._setting, name, i) for i in todo]
            rows.append(
                {
                    "attack": name,
                    "gradient": plan.mode,
                    "eot": plan.samples,
                    "attacked": len(todo),
                    "broken": sum(map(_wrong, made)),
                    "broken_unflagged": sum(_wrong(o) and not o["flagged"] for o in made),
                    "flagged": sum(o["flagged"] for o in made),
                    "newly_lost": len(now.lost - before_it.lost),
                    "left": self._n - len(now.lost),
                    "seconds": round(sum(o["seconds"] for o in made), 1),
                    "parameters": repr(plan.attack),
                }
            )
        return now, rows

    def _after(self, name: str, indices: Sequence[int], before: Standing) -> Standing:
        made = {i: self._outcomes.of(self._setting, name, i) for i in indices}
        lost = {i for i, outcome in made.items() if _wrong(outcome)}
        return Standing(before.lost | lost, before.passed | {i for i in lost if not made[i]["flagged"]})


def _wrong(outcome: dict[str, Any]) -> bool:
    return bool(outcome["predicted"] != outcome["label"])


def summarize(
    outcomes: Outcomes,
    setting: str,
    bundle: Bundle,
    n: int,
    eps: float,
    rows: list[dict[str, Any]],
    after: Standing,
) -> dict[str, Any]:
    """What a suite says: shares are [value, low, high], Wilson 95 %, over all n images.

    `worst_case` is the share that no attack broke; `worst_case_or_flagged` the share that no attack broke
    without being flagged.
    """
    natural = [outcomes.of(setting, "natural", i) for i in range(n)]
    chosen = bundle.settings[setting]
    return {
        "setting": setting,
        "eps": eps,
        "n": n,
        "natural": _share(sum(not _wrong(o) for o in natural), n),
        "worst_case": _share(n - len(after.lost), n),
        "worst_case_or_flagged": _share(n - len(after.passed), n),
        "flagged_natural": _share(sum(o["flagged"] for o in natural), n),
        "attacks": rows,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "K": chosen.steps,
        "H": chosen.chains if chosen.purifies else 1,
        "sigma": [chosen.sigma, chosen.sigma_unflagged],
        "delta": chosen.delta,
        "digest": bundle.digest,
    }


def check_same(plans: dict[str, Plan], attacker: Bundle, judge: Bundle, setting: str) -> None:
    """DataError unless the attacks go against what the judge answers with: setting and weights."""
    for name, plan in plans.items():
        if isinstance(plan.target, Eot) and plan.target.defense.setting != judge.settings[setting]:
            raise DataError(f"{name} attacks another setting than {setting} as it is judged")
    for part, network in {"classifier": judge.classifier, **judge.networks}.items():
        theirs = attacker.classifier if part == "classifier" else attacker.networks[part]
        if isinstance(network, nn.Module) and isinstance(theirs, nn.Module):
            pairs = zip(network.state_dict().values(), theirs.state_dict().values(), strict=True)
            if not all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs):
                raise DataError(f"the attacks know another {part} than the judge uses")


def check_spent(outcomes: Sequence[dict[str, Any]], setting: Setting) -> None:
    """DataError if an answer took more chains than H, or steps than K: it came from another defense."""
    most = setting.chains if setting.purifies else 1
    if any(o["chains"] > most or o["steps"] > setting.steps for o in outcomes):
        raise DataError(f"an answer of {setting.name} took more than {most} chains of {setting.steps} steps")


def _share(count: int, n: int) -> list[float]:
    return [round(v, 4) for v in (count / n, *wilson(count, n))]


def estimate(plans: dict[str, Plan], test: datasets.ImageSet, config: RobustConfig, device: str) -> str:
    """How long the annealed attacks of a setting and radius can take, from one gradient of a few images."""
    annealed = [(plan.attack, plan.target) for plan in plans.values() if isinstance(plan.attack, Annealed)]
    if not annealed:
        return "none of these attacks is annealed, so there is no estimate"
    some = test.take(min(config.batch, 4))
    images, labels = datasets.to_float(some.images).to(device), some.labels.to(device)
    attack, target = annealed[0]
    attacked, _ = attack.on(target, config.seed)
    started = time.perf_counter()
    _, gradient = autograd_slope(attacked, images, labels, Misclassify())
    gradient.cpu()  # waits for a GPU
    each = (time.perf_counter() - started) / len(images)
    turns = sum(attack.restarts * (attack.steps + 1) for attack, _ in annealed)
    return (
        f"a gradient takes {each:.2f} s an image: annealed attacks on {len(test)} images take "
        f"{len(test) * turns * each / 60:.0f} minutes at most, and lost images leave early"
    )
