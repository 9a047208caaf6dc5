"""Controls of the suite: what must come out if attack and judge are what they say.

* At radius 0 no attack may move an image, and what is lost is what fresh noise alone decides otherwise.
* Without a defense nothing may be left.
* On the same images the suite may leave no more than AutoAttack in its randomised version, which others
  wrote.

* What the attacks differentiate and what the server answers must be the same on average.  That both have the
  same setting and weights, and that no answer took more chains or steps than the setting has, is checked in
  every run of a suite as well (metastable.evaluation.suite).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from metastable import bundle as bundles
from metastable import datasets
from metastable.attacks.catalogue import SUITE
from metastable.attacks.target import Eot
from metastable.attacks.white_box import attackable, white_box
from metastable.bundle import Bundle
from metastable.console import beside
from metastable.engine.local import engine_on
from metastable.errors import DataError
from metastable.evaluation import cli, robust, suite
from metastable.evaluation.groups import RobustConfig, secret
from metastable.evaluation.outcomes import read_outcomes
from metastable.evaluation.portion import portion
from metastable.evaluation.robust_rows import Row, shown

CONTROL, CHAINS = "autoattack-rand", 256


def measure(
    bundle: Bundle,
    test: datasets.ImageSet,
    setting: str,
    undefended: str,
    config: RobustConfig,
    out: Path,
    suite_folder: Path,
    device: str = "cpu",
    members: Sequence[str] = SUITE,
) -> list[dict[str, Any]]:
    """The controls on all of `test`, each with what was wanted, found, and whether it passed.

    Args:
        setting, undefended: a defense of the bundle, and the classifier alone.
        suite_folder: where the suite's outcomes on `setting` are, or are to be.
    """
    short = dataclasses.replace(config, steps=2)  # nothing can be climbed in a ball of radius 0
    [still] = suite.measure(
        bundle, test, [setting], [0.0], short, out / "still", device=device, members=members
    )
    moved, attacked = _moved(out / "still" / "eps-0" / "outcomes.jsonl")
    redrawn = round((still["natural"][0] - still["worst_case"][0]) * still["n"])
    [bare] = suite.measure(
        bundle, test, [undefended], [config.eps], config, out / "bare", device=device, members=members
    )
    [ours] = suite.measure(
        bundle, test, [setting], [config.eps], config, suite_folder, device=device, members=members
    )
    [theirs] = robust.measure(
        bundle, test, [Row(setting, CONTROL, len(test))], config, out / "theirs", device
    )
    n = len(test)
    worst = agreement(bundle, test.take(4), setting)
    return [
        {
            "control": f"`{setting}` at radius 0",
            "wanted": "no attack moves an image",
            "found": f"{moved} of {attacked} moved; fresh noise alone decides {redrawn} of {n} otherwise",
            "passed": moved == 0 and attacked > 0,
        },
        {
            "control": f"`{undefended}` under the suite",
            "wanted": "0 % left",
            "found": f"{shown(bare['worst_case'])} left",
            "passed": bare["worst_case"][0] == 0,
        },
        {
            "control": f"`{setting}`: the suite beside {CONTROL}",
            "wanted": "the suite leaves no more",
            "found": f"{shown(ours['worst_case'])} beside {shown(theirs['robust'])} left, n = {n}; the suite "
            f"is judged once for each of its attacks, {CONTROL} once",
            "passed": ours["worst_case"][0] <= theirs["robust"][0],
        },
        {
            "control": "attack and judge",
            "wanted": "the same mean answers: |difference| below 5 standard errors",
            "found": f"{worst:.1f} standard errors at most, {CHAINS} chains each; digest "
            f"{bundle.digest[:12]}, K {ours['K']}, H {ours['H']}, sigma {ours['sigma']}",
            "passed": worst < 5,
        },
    ]


@torch.no_grad()
def agreement(bundle: Bundle, some: datasets.ImageSet, setting: str) -> float:
    """How far what the attacker differentiates is from what the server answers, in standard errors.

    The mean output of CHAINS chains of each, the largest over images and classes.  Another noise level,
    threshold, step or average shows here, whatever the configuration says.
    """
    images, chosen = datasets.to_float(some.images), bundle.settings[setting]
    box = white_box(attackable(bundle, images), setting)
    theirs = Eot(box, samples=CHAINS, gradient="bpda", seed=1, mirror=True)(images)
    always = dataclasses.replace(chosen, chains=CHAINS if chosen.random else 1, delta=None)
    flagged = torch.zeros(len(images), dtype=torch.bool)
    for detector in box.detectors:
        flagged |= detector.flags(images)
    seeds = [secret(0, "agreement", i) for i in range(len(images))]
    answers = engine_on("cpu", bundle).answer(images, seeds, always, flagged)
    outputs = torch.cat([answer.result.outputs for answer in answers])  # [N, CHAINS, classes]
    mean = outputs.mean(dim=1)
    ours = mean.clamp_min(1e-30).log() if chosen.average == "softmax" else mean
    if not chosen.random:
        return float((ours - theirs).abs().max() > 1e-4) * 100
    spread = outputs.std(dim=1) / CHAINS**0.5
    if chosen.average == "softmax":
        spread = spread / mean.clamp_min(1e-30)  # of a logarithm
    error = (2**0.5 * spread).clamp_min(1e-6)
    return float(((ours - theirs).abs() / error).max())


def _moved(path: Path) -> tuple[int, int]:
    """How many images the attacks moved at all, before they were rounded, and how many they were given."""
    made = [o for o in read_outcomes(path) if "distance" in o]
    return sum(o["distance"] > 0 for o in made), len(made)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A row for each control."""
    lines = ["| control | wanted | found | passed |", "|---" * 4 + "|"]
    lines += [
        f"| {row['control']} | {row['wanted']} | {row['found']} | {'yes' if row['passed'] else '**no**'} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def add(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "controls",
        parents=parents,
        help="what must come out of a suite if attack and judge are right",
        description=__doc__,
    )
    parser.add_argument("--setting", default="fast", help="the setting that is attacked")
    parser.add_argument("--undefended", default="none", help="the setting that defends nothing")
    parser.add_argument("--n", type=int, default=50, help="test images")
    cli.attack_arguments(parser)
    parser.add_argument("--device", default="cpu", help="of the attacks, such as cuda")
    cli.add_work(parser)
    parser.add_argument("--suite", type=Path, help="a suite's --work, to go on with (default: in --work)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> cli.Summary:
    """Run the controls and write a table beside --out."""
    cli.check_device(args.device)
    if args.suite is not None and not args.suite.is_dir():
        raise DataError(f"there is no folder {args.suite}: --suite names the --work of a suite that has run")
    loaded = bundles.load(args.bundle)
    cli.chosen_settings(f"{args.setting},{args.undefended}", loaded)
    test = cli.test_images(args, loaded)
    asked = ("skip", "norm", "eps", "step", "steps", "samples", "check", "batch", "seed")
    config = RobustConfig(**{name: getattr(args, name) for name in asked}, data=test.digest())
    rows = measure(
        loaded,
        portion(test, args.n, skip=args.skip),
        args.setting,
        args.undefended,
        config,
        args.work,
        args.suite or args.work / "suite",
        args.device,
    )
    text = cli.noted(args, markdown(rows))
    if page := beside(args.out, ".md"):
        page.write_text(text)
    print(text)
    return {"command": "controls", "rows": rows, "bundle": loaded.digest, "machine": cli.machine(args.device)}
