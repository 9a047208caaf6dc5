"""The suite: several attacks that know the defense, and the worst case of them by image.

An attack of the suite takes the images that are still answered rightly after those before it, because
what is lost stays lost; `joint`, which judges the flag as well, takes all that were not yet wrong and
unflagged.  What an attack made is rounded to 8 bits (in l_inf) and judged by the defense as served, once,
on fresh noise.  An image counts as lost if any attack's image is answered wrongly, or if it was answered
wrongly before.  An image that is lost at a smaller radius is lost at a larger one, because the smaller
ball lies within it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from metastable import datasets
from metastable.attacks.annealed import Annealed
from metastable.attacks.ascent import Misclassify, autograd_slope
from metastable.attacks.catalogue import SUITE, Plan
from metastable.attacks.square import Square
from metastable.attacks.target import Eot
from metastable.bundle import Bundle
from metastable.errors import DataError
from metastable.evaluation.groups import Judge, RobustConfig
from metastable.evaluation.outcomes import Outcome, unnoticed
from metastable.evaluation.pool import Here, Pool
from metastable.evaluation.robust import Outcomes, describing, restricted, said
from metastable.evaluation.same import same_run
from metastable.evaluation.stats import wilson
from metastable.networks.onnx_classifier import OnnxClassifier
from metastable.networks.onnx_gradient import Differentiable
from metastable.settings import Setting

FLAG_AWARE = "joint"


@dataclass(frozen=True)
class Standing:
    """Images after some attacks.

    Attributes:
        lost: answered wrongly, naturally or under one of the attacks.
        passed: answered wrongly and flagged by no statistic at least once, or answered wrongly without an
            attack: lost also where flagged images are refused.
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
    pool: Pool | None = None,
) -> list[dict[str, Any]]:
    """The suite on all of `test` for every setting and radius, in folder `out`, resumed by image.

    Args:
        radii: of the ball, in [0, 1] units; they are run from small to large.
        config: its eps is not used.
        device: of the attacks; answers come from the CPU.
        members: attacks, in their order.
        pool: does the groups of an attack; None is this process.

    Returns a summary (see `summarize`) for each setting and radius.  Raises DataError for no images, a bundle
    without a calibrated flag, or a folder with another configuration, and what
    `attackable` raises.
    """
    if not len(test) or not radii or not members:
        raise DataError("a suite needs at least one image, radius and attack")
    pool = pool or Here()
    judge = Judge(restricted(bundle, settings), test, config, device)
    known = describing(judge, pool)
    runs: list[tuple[str, float, dict[str, Plan], Outcomes]] = []
    for setting in settings:
        for eps in sorted(radii):
            here = dataclasses.replace(config, eps=eps, setting=said(bundle, bundle.settings[setting]))
            folder = out / f"eps-{255 * eps:g}"
            folder.mkdir(parents=True, exist_ok=True)
            outcomes = Outcomes(judge, here, folder, pool)
            plans = {name: known.plan(setting, name, eps) for name in members}
            same_run(folder / f"{setting}-config.json", here)
            for name, plan in plans.items():
                outcomes.same(setting, name, plan)
            check_same(plans, known.attacker, bundle, setting)
            runs.append((setting, eps, plans, outcomes))
    found, before = [], Standing()
    for setting, eps, plans, outcomes in runs:
        before = before if eps > min(radii) else Standing()
        run = _Suite(outcomes, setting, len(test), plans)
        if pool.here and not run.done:
            tqdm.write(f"{setting}, eps {255 * eps:g}/255: {estimate(plans, test, config, device)}")
        after, rows = run.attack(before)
        check_spent(outcomes.all_of(setting), bundle.settings[setting])
        found.append(summarize(outcomes, setting, bundle, len(test), eps, config.norm, rows, after))
        before = after
    return found


class _Suite:
    """One setting and one radius."""

    def __init__(self, outcomes: Outcomes, setting: str, n: int, plans: dict[str, Plan]) -> None:
        self._outcomes, self._setting, self._n, self._plans = outcomes, setting, n, plans

    @property
    def done(self) -> bool:
        """Whether nothing can be left to do, because every attack has seen all images."""
        names = ("natural", *self._plans)
        return all(self._outcomes.has(self._setting, name, i) for name in names for i in range(self._n))

    def attack(self, before: Standing) -> tuple[Standing, list[dict[str, Any]]]:
        """The standing after all attacks, and a row for each."""
        self._outcomes.judge_natural(self._setting, range(self._n))
        wrong = {i for i in range(self._n) if _wrong(self._outcomes.of(self._setting, "natural", i))}
        now, rows = Standing(before.lost | wrong, before.passed | wrong), []
        for name, plan in self._plans.items():
            done_for = now.passed if name == FLAG_AWARE else now.lost
            todo = [i for i in range(self._n) if i not in done_for]
            with tqdm(total=len(todo), desc=f"{self._setting}, {name}", mininterval=2) as bar:
                self._outcomes.attack(self._setting, name, todo, bar.update)
            before_it, now = now, self._after(name, todo, now)
            made = [self._outcomes.of(self._setting, name, i) for i in todo]
            rows.append(
                {
                    "attack": name,
                    "gradient": plan.mode,
                    "eot": plan.samples,
                    "attacked": len(todo),
                    "broken": sum(map(_wrong, made)),
                    "broken_unflagged": sum(_wrong(o) and unnoticed(o) for o in made),
                    "flagged": sum(o["flagged"] for o in made),
                    "shifted": _shifted(made),
                    "noticed": sum(not unnoticed(o) for o in made),
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
        return Standing(before.lost | lost, before.passed | {i for i in lost if unnoticed(made[i])})


def _wrong(outcome: dict[str, Any]) -> bool:
    return bool(outcome["predicted"] != outcome["label"])


def summarize(
    outcomes: Outcomes,
    setting: str,
    bundle: Bundle,
    n: int,
    eps: float,
    norm: str,
    rows: list[dict[str, Any]],
    after: Standing,
) -> dict[str, Any]:
    """What a suite says: shares are [value, low, high], Wilson 95 %, over all n images.

    `worst_case` is the share that no attack broke; `right_or_flagged` the share that no attack broke without
    being flagged by the score norm or the prediction shift, None where no attack was after the flag.  Wrong
    without an attack is lost in both.  A flag that refuses everything would score well there: read it beside
    `flagged_natural` (the score norm's), `shifted_natural` (the prediction shift's) and `noticed_natural`
    (either's).
    """
    natural = [outcomes.of(setting, "natural", i) for i in range(n)]
    chosen = bundle.settings[setting]
    said = chosen.fields()
    return {
        "setting": setting,
        "eps": eps,
        "norm": norm,
        "n": n,
        "natural": _share(sum(not _wrong(o) for o in natural), n),
        "worst_case": _share(n - len(after.lost), n),
        "right_or_flagged": _share(n - len(after.passed), n) if _evaded(rows) else None,
        "flagged_natural": _share(sum(o["flagged"] for o in natural), n),
        "shifted_natural": None if (count := _shifted(natural)) is None else _share(count, n),
        "noticed_natural": _share(sum(not unnoticed(o) for o in natural), n),
        "attacks": rows,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "K": chosen.steps,
        "H": chosen.most_chains,
        "sigma": [said.get("sigma", 0.0), said.get("sigma_unflagged")],
        "delta": chosen.delta,
        "digest": bundle.digest,
    }


def _shifted(outcomes: Sequence[Outcome]) -> int | None:
    """How many the prediction shift flags; None where it has no threshold."""
    known = [o["shifted"] for o in outcomes if o.get("shifted") is not None]
    return sum(known) if known else None


def _evaded(rows: list[dict[str, Any]]) -> bool:
    return any(row["attack"] == FLAG_AWARE for row in rows)


def check_same(plans: dict[str, Plan], attacker: Bundle, judge: Bundle, setting: str) -> None:
    """DataError unless the attacks go against what the judge answers with: setting and weights."""
    for name, plan in plans.items():
        if isinstance(plan.target, Eot) and plan.target.defense.setting != judge.settings[setting]:
            raise DataError(f"{name} attacks another setting than {setting} as it is judged")
    for part, network in {"classifier": judge.classifier, **judge.networks}.items():
        theirs = attacker.classifier if part == "classifier" else attacker.networks[part]
        if isinstance(network, OnnxClassifier):
            if not (isinstance(theirs, Differentiable) and theirs.source.model == network.model):
                raise DataError("the attacks know another classifier than the judge uses")
        elif isinstance(network, nn.Module) and isinstance(theirs, nn.Module):
            pairs = zip(network.state_dict().values(), theirs.state_dict().values(), strict=True)
            if not all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs):
                raise DataError(f"the attacks know another {part} than the judge uses")


def check_spent(outcomes: Sequence[dict[str, Any]], setting: Setting) -> None:
    """DataError if an answer took more chains than H, or steps than K: it came from another defense."""
    most = setting.most_chains
    if any(o["chains"] > most or o["steps"] > setting.steps for o in outcomes):
        raise DataError(f"an answer of {setting.name} took more than {most} chains of {setting.steps} steps")


def _share(count: int, n: int) -> list[float]:
    return [round(v, 4) for v in (count / n, *wilson(count, n))]


def estimate(plans: dict[str, Plan], test: datasets.ImageSet, config: RobustConfig, device: str) -> str:
    """How long a setting and radius can take, from one gradient and one query of a few images."""
    some = test.take(min(config.batch, 2))
    images, labels = datasets.to_float(some.images).to(device), some.labels.to(device)
    seconds = 0.0
    for plan in plans.values():
        attack = plan.attack
        if isinstance(attack, Annealed):
            attacked, _ = attack.on(plan.target, config.seed)
            turns = attack.restarts * (attack.steps + 1)
            seconds += turns * _timed(lambda: autograd_slope(attacked, images, labels, Misclassify())[1])  # noqa: B023
        elif isinstance(attack, Square) and isinstance(plan.target, Eot):
            queried = dataclasses.replace(plan.target, samples=attack.samples)
            with torch.no_grad():
                seconds += 1.5 * attack.steps * _timed(lambda: queried(images))  # noqa: B023
    minutes = seconds / len(images) * len(test) / 60
    return f"at most {minutes:.0f} minutes for {len(test)} images; lost images leave early"


def _timed(work: Callable[[], Tensor]) -> float:
    """Seconds of the second time; reading a number waits for a GPU."""
    work().sum().item()
    started = time.perf_counter()
    work().sum().item()
    return time.perf_counter() - started
