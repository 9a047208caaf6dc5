"""Controls of the suite: what must come out if attack and judge are what they say.

* At radius 0 nothing may change: every image that is judged is the natural one, to the bit, and what is
  lost is what fresh noise alone decides otherwise.
* Without a defense nothing may be left.
* On the same images the suite may leave no more than AutoAttack in its randomised version, which others
  wrote.

That attack and judge have the same setting and weights, and that no answer took more chains or steps than the
setting has, is checked in every run of a suite (metastable.evaluation.suite).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metastable import bundle as bundles
from metastable import datasets
from metastable.bundle import Bundle
from metastable.evaluation import cli, robust, suite
from metastable.evaluation.robust import RobustConfig
from metastable.evaluation.robust_rows import Row, shown

CONTROL = "autoattack-rand"


def measure(
    bundle: Bundle,
    test: datasets.ImageSet,
    setting: str,
    undefended: str,
    config: RobustConfig,
    out: Path,
    suite_folder: Path,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """The controls on all of `test`, each with what was wanted, found, and whether it passed.

    Args:
        setting, undefended: a defense of the bundle, and the classifier alone.
        suite_folder: where the suite's outcomes on `setting` are, or are to be.
    """
    short = dataclasses.replace(config, steps=2)  # nothing can be climbed in a ball of radius 0
    [still] = suite.measure(bundle, test, [setting], [0.0], short, out / "still", device=device)
    moved = _moved(out / "still" / "eps-0" / "images" / setting, test)
    redrawn = round((still["natural"][0] - still["worst_case"][0]) * still["n"])
    [bare] = suite.measure(bundle, test, [undefended], [config.eps], config, out / "bare", device=device)
    [ours] = suite.measure(bundle, test, [setting], [config.eps], config, suite_folder, device=device)
    [theirs] = robust.measure(
        bundle, test, [Row(setting, CONTROL, len(test))], config, out / "theirs", device
    )
    n = len(test)
    return [
        {
            "control": f"`{setting}` at radius 0",
            "wanted": "no image changed",
            "found": f"{moved} changed; fresh noise alone decides {redrawn} of {n} otherwise",
            "passed": moved == 0,
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
            "found": f"{shown(ours['worst_case'])} beside {shown(theirs['robust'])} left, n = {n}",
            "passed": ours["worst_case"][0] <= theirs["robust"][0],
        },
        {
            "control": "attack and judge",
            "wanted": "the same setting, weights, K and H",
            "found": f"digest {bundle.digest[:12]}, K {ours['K']}, H {ours['H']}, sigma {ours['sigma']}",
            "passed": True,  # a difference would have ended the suite
        },
    ]


def _moved(folder: Path, test: datasets.ImageSet) -> int:
    """How many of the images that attacks made differ from the natural ones."""
    natural = test.images.permute(0, 2, 3, 1).squeeze(3).numpy()  # grey pictures have no channel
    made = sorted(folder.glob("*/*.png"))
    return sum(not np.array_equal(np.asarray(Image.open(path)), natural[int(path.stem)]) for path in made)


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
    parser = commands.add_parser("controls", parents=parents, description=__doc__)
    parser.add_argument("--setting", default="fast")
    parser.add_argument("--undefended", default="none")
    parser.add_argument("--n", type=int, default=50)
    cli.attack_arguments(parser)
    parser.add_argument("--device", default="cpu", help="of the attacks, such as cuda")
    parser.add_argument("--work", type=Path, required=True, help="folder of the outcomes; resumed")
    parser.add_argument("--suite", type=Path, help="a suite's --work, to go on with (default: in --work)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> cli.Summary:
    """Run the controls and write a table beside --out."""
    loaded = bundles.load(args.bundle)
    cli.chosen_settings(f"{args.setting},{args.undefended}", loaded)
    test = cli.test_images(args, loaded)
    asked = ("skip", "norm", "eps", "step", "steps", "samples", "check", "batch", "seed")
    config = RobustConfig(**{name: getattr(args, name) for name in asked}, data=test.digest())
    rows = measure(
        loaded,
        test.take(args.n, skip=args.skip),
        args.setting,
        args.undefended,
        config,
        args.work,
        args.suite or args.work / "suite",
        args.device,
    )
    text = markdown(rows)
    if page := cli.beside(args.out, ".md"):
        page.write_text(text)
    print(text)
    return {"command": "controls", "rows": rows, "bundle": loaded.digest, "machine": cli.machine(args.device)}
