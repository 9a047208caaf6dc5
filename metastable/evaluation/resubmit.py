"""Resubmission: an attacker sends the same image again, and fresh noise may decide otherwise.

Of the attacked images that a suite's judge answered rightly, this asks the served defense `tries` more
times, each with new seeds.  The share that is answered wrongly at least once is what an attacker gains by
persistence; a judge who looks once does not see it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from metastable import console
from metastable.anomaly import score_norms
from metastable.attacks.catalogue import SUITE
from metastable.bundle import Bundle
from metastable.engine.local import engine_on
from metastable.errors import DataError
from metastable.evaluation import cli
from metastable.evaluation.groups import secret
from metastable.evaluation.outcomes import Outcome, judge, read_outcomes
from metastable.evaluation.robust import said
from metastable.evaluation.robust_rows import shown
from metastable.evaluation.stats import wilson

ANY = "any"


def measure(
    bundle: Bundle, settings: Sequence[str], folder: Path, *, tries: int, seed: int, batch: int = 16
) -> list[dict[str, Any]]:
    """For every setting and attack of a suite's folder, how often its images are wrong in `tries` more tries.

    `once` is the share [value, low, high] (Wilson 95 %) wrong at least once, `each` the mean share of tries,
    `wrong` the number of wrong tries of every image; the last row of a setting is by image, over all of its
    attacks.  Raises DataError where the folder holds no suite of 8-bit images in l_inf, or one of another
    defense.
    """
    score = bundle.scores[bundle.calibration.network]
    outcomes = read_outcomes(folder / "outcomes.jsonl")
    for setting in settings:
        _check(bundle, setting, folder)
    engine = engine_on("cpu", bundle)
    found: list[dict[str, Any]] = []
    for setting in settings:
        once_of: dict[int, bool] = {}
        for attack in SUITE:
            right = [
                o
                for o in outcomes
                if (o["setting"], o["attack"]) == (setting, attack)
                and o["predicted"] == o["label"]
                and "strength" in o  # what was lost before the attack has none
            ]
            if not right:
                continue
            images = _images(folder, right)
            norms, wrong = score_norms(images, score), np.zeros(len(right), int)
            for turn in tqdm(range(tries), f"{setting}, {attack}", mininterval=2, leave=False):
                for start in range(0, len(right), batch):
                    rows = range(start, min(start + batch, len(right)))
                    seeds = [secret(seed, "again", setting, attack, right[i]["index"], turn) for i in rows]
                    part = slice(start, start + batch)
                    answers = judge(bundle, engine, images[part], norms[part], seeds, setting)
                    for i, answer in zip(rows, answers, strict=True):
                        wrong[i] += answer["predicted"] != right[i]["label"]
            for outcome, times in zip(right, wrong.tolist(), strict=True):
                once_of[outcome["index"]] = once_of.get(outcome["index"], False) or times > 0
            row = _row(setting, attack, tries, wrong > 0)
            found.append(row | {"each": round(float(wrong.mean()) / tries, 4), "wrong": wrong.tolist()})
        if once_of:
            found.append(_row(setting, ANY, tries, np.array(list(once_of.values()))))
    if not found:
        raise DataError(
            f"{folder} holds no attacked image of {', '.join(settings)} that was answered rightly"
        )
    return found


def _row(setting: str, attack: str, tries: int, once: np.ndarray) -> dict[str, Any]:
    count, n = int(once.sum()), len(once)
    share = [round(v, 4) for v in (count / n, *wilson(count, n))]
    return {"setting": setting, "attack": attack, "n": n, "tries": tries, "once": share}


def _check(bundle: Bundle, setting: str, folder: Path) -> None:
    """DataError unless the folder's outcomes are of this setting and these networks, and its images kept."""
    path = folder / f"{setting}-config.json"
    if not path.exists():
        raise DataError(f"{folder} holds no suite of {setting}: name the folder of one radius, .../eps-8")
    config = json.loads(path.read_text())
    if config["setting"] != said(bundle, bundle.settings[setting]):
        raise DataError(f"{path} is of another bundle or setting than {setting} of {bundle.name}")
    if (config["norm"], config["bits"]) != ("linf", 8):
        raise DataError("only suites of 8-bit images in l_inf keep what they judged, and can be sent again")


def _images(folder: Path, outcomes: Sequence[Outcome]) -> Tensor:
    """What an attack made, [N, C, H, W] in [0, 1]."""
    found = []
    for o in outcomes:
        path = folder / "images" / o["setting"] / o["attack"] / f"{o['index']}.png"
        if not path.exists():
            raise DataError(f"{path} is missing: run the suite again in an empty --work folder")
        pixels = np.array(Image.open(path))
        found.append(torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1))
    return torch.stack(found).float() / 255


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A row for each setting and attack."""
    lines = [
        "| setting | attack | attacked images answered rightly | wrong at least once | wrong in a try |",
        "|---" * 5 + "|",
    ]
    for row in rows:
        lines.append(
            f"| `{row['setting']}` | {row['attack']} | {row['n']} | {shown(row['once'])} in {row['tries']} | "
            f"{_each(row)} |"
        )
    return "\n".join(lines) + "\n"


def _each(row: dict[str, Any]) -> str:
    return f"{100 * row['each']:.1f} %" if "each" in row else "–"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """How many images were wrong in how many tries."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["setting"] for row in rows))
    tries = rows[0]["tries"]
    for place, name in enumerate(names):
        wrong = np.concatenate([row["wrong"] for row in rows if row["setting"] == name and "wrong" in row])
        counts = np.bincount(wrong, minlength=tries + 1) / len(wrong)
        width = 0.8 / len(names)
        at = np.arange(tries + 1) + width * (place - (len(names) - 1) / 2)
        axes.bar(at, counts, width, label=f"{name} ({len(wrong)} attacked images)")
    axes.set(
        xlabel=f"wrong answers in {tries} tries", ylabel="share of attacked images once answered rightly"
    )
    axes.legend()
    figure.savefig(path, dpi=110)


def add(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "resubmit", parents=parents, help="what sending an attacked image again gains", description=__doc__
    )
    parser.add_argument("--work", type=Path, required=True, help="a suite's folder of one radius: .../eps-8")
    parser.add_argument("--tries", type=int, default=10, help="times that an image is sent again")
    parser.add_argument("--seed", type=console.seed, default=0, help="of the answers")
    cli.no_data(parser, "where --work has the images")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> cli.Summary:
    """Ask again, and write a table and a picture beside --out."""
    if args.tries < 1:
        raise DataError("--tries must be 1 or more")
    loaded = cli.load_bundle(args)
    names = cli.chosen_settings(args.settings, loaded)
    rows = measure(loaded, names, args.work, tries=args.tries, seed=args.seed)
    cli.publish(args.out, markdown(rows), lambda path: draw(rows, path))
    return {"command": "resubmit", "rows": rows, "bundle": loaded.digest, "machine": cli.machine()}
