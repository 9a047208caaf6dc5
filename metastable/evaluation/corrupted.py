"""Accuracy under common corruptions (metastable.corruptions), image by image, resumable.

A folder of CIFAR-10-C's layout is judged (ADP, Table 4 and 11); `generate-corruptions` makes one.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from metastable import console, corruptions, datasets
from metastable.anomaly import score_norms
from metastable.bundle import Bundle
from metastable.console import beside
from metastable.engine.local import LocalEngine
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.evaluation import cli
from metastable.evaluation.outcomes import Outcome, judge, read_outcomes
from metastable.evaluation.portion import portion
from metastable.evaluation.same import same_run
from metastable.evaluation.stats import wilson

BATCH = 16


@dataclass(frozen=True)
class CorruptedConfig:
    """What the outcomes depend on; kept beside them so that two runs cannot mix.

    Attributes:
        n: images of each kind and severity, those of metastable.datasets.ImageSet.take.
        made: how the images were made (metastable.corruptions.source).
    """

    settings: tuple[str, ...]
    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    n: int
    seed: int = 0
    bundle: str = ""
    made: str = ""


def measure(bundle: Bundle, folder: Path, config: CorruptedConfig, out: Path) -> list[dict[str, Any]]:
    """Run what is missing in folder `out`; rows setting x kind x severity with Wilson intervals."""
    score = bundle.scores[bundle.calibration.network]
    portion(corruptions.load(folder, config.kinds[0], config.severities[0]), config.n)  # or it says so now
    out.mkdir(parents=True, exist_ok=True)
    same_run(out / "corruptions-config.json", config)
    path = out / "outcomes.jsonl"
    done = {(o["setting"], o["kind"], o["severity"], o["index"]) for o in read_outcomes(path)}
    engine = LocalEngine(TorchRunner(bundle.networks, bundle.classifier), bundle.settings, bundle.shape)
    cells = [(kind, severity) for kind in config.kinds for severity in config.severities]
    for kind, severity in tqdm(cells, desc="kinds and severities", mininterval=2):
        these = corruptions.load(folder, kind, severity).take(config.n)
        images = datasets.to_float(these.images)
        for name in config.settings:
            left = [i for i in range(len(these)) if (name, kind, severity, i) not in done]
            for start in range(0, len(left), BATCH):
                pick = left[start : start + BATCH]
                seeds = [_seed(config.seed, kind, severity, i) for i in pick]
                norms = score_norms(images[pick], score)
                found = judge(bundle, engine, images[pick], norms, seeds, name)
                with path.open("a") as file:
                    for index, outcome in zip(pick, found, strict=True):
                        cell = {"setting": name, "kind": kind, "severity": severity, "index": index}
                        label = int(these.labels[index])
                        file.write(json.dumps({**cell, "label": label, **outcome}) + "\n")
    return summarize(read_outcomes(path), config)


def summarize(outcomes: list[Outcome], config: CorruptedConfig) -> list[dict[str, Any]]:
    """Rows setting x kind x severity."""
    rows = []
    for name in config.settings:
        for kind in config.kinds:
            for severity in config.severities:
                cell = (name, kind, severity)
                these = [o for o in outcomes if (o["setting"], o["kind"], o["severity"]) == cell]
                right = sum(o["predicted"] == o["label"] for o in these)
                low, high = wilson(right, len(these))
                flagged = sum(o["flagged"] for o in these) / len(these)
                row = {"setting": name, "kind": kind, "severity": severity, "n": len(these)}
                shares = [round(value, 4) for value in (right / len(these), low, high)]
                rows.append({**row, "accuracy": shares, "flag_rate": round(flagged, 4)})
    return rows


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{setting: {kind: mean accuracy over its severities, ..., "mean": over all}}."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == name]
        kinds = dict.fromkeys(row["kind"] for row in mine)
        each = {k: float(np.mean([row["accuracy"][0] for row in mine if row["kind"] == k])) for k in kinds}
        each["mean"] = float(np.mean([*each.values()]))
        found[name] = {kind: round(value, 4) for kind, value in each.items()}
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    """Kinds by settings: the mean accuracy over severities, in per cent."""
    table = means(rows)
    kinds = [*next(iter(table.values()))]
    lines = ["| kind | " + " | ".join(f"`{name}`" for name in table) + " |", "|---" * (len(table) + 1) + "|"]
    lines += [
        f"| {kind} | " + " | ".join(f"{100 * table[s][kind]:.1f}" for s in table) + " |" for kind in kinds
    ]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy by severity, a panel a kind and a line a setting, with intervals."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    columns = min(5, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.5, 2.1 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, kind in zip(panels, kinds, strict=False):
        for name in dict.fromkeys(row["setting"] for row in rows):
            mine = [row for row in rows if (row["setting"], row["kind"]) == (name, kind)]
            values = np.array([row["accuracy"] for row in mine])
            error = np.abs(values[:, 1:] - values[:, :1]).T
            axes.errorbar(
                [r["severity"] for r in mine], values[:, 0], yerr=error, marker="o", ms=3, label=name
            )
        axes.set_title(kind, fontsize=9)
        axes.set_ylim(0, 1)
    figure.supxlabel("severity")
    figure.supylabel("accuracy (Wilson 95 %)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncol=4, fontsize=8)
    figure.savefig(path, dpi=110)


def add(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add both commands; `parents` as of `cli.common` and `cli.chosen`."""
    first = commands.add_parser(
        "corruptions",
        parents=parents,
        help="accuracy under common corruptions, of CIFAR-10-C's files or generated ones",
        description=__doc__,
    )
    first.add_argument("--corruptions", type=Path, required=True, help="folder of CIFAR-10-C's layout")
    first.add_argument(
        "--kinds", default=",".join(corruptions.NAMES), help="kinds of corruptions, separated by commas"
    )
    first.add_argument(
        "--severities", type=cli.whole_numbers, default="1,2,3,4,5", help="from 1 to 5, separated by commas"
    )
    first.add_argument("--n", type=int, default=200, help="images of each kind and severity")
    first.add_argument("--seed", type=console.seed, default=0, help="of the answers")
    cli.add_work(first)
    cli.no_data(first, "where --corruptions has the images")
    first.set_defaults(run=run)
    second = commands.add_parser(
        "generate-corruptions",
        parents=parents[:1],
        help="make a folder of corrupted test images, by a package",
    )
    second.add_argument("--corruptions", type=Path, required=True, help="folder to write")
    second.add_argument("--n", type=int, default=200, help="test images")
    second.add_argument("--seed", type=console.seed, default=0, help="of the corruptions")
    second.set_defaults(run=run_generate)


def run(args: argparse.Namespace) -> cli.Summary:
    """Judge the settings on the folder."""
    loaded = cli.load_bundle(args)
    kinds = tuple(args.kinds.split(","))
    severities = tuple(args.severities)
    sizes = [len(corruptions.load(args.corruptions, k, s)) for k in kinds for s in severities]
    made = json.dumps(corruptions.source(args.corruptions))
    config = CorruptedConfig(
        settings=cli.chosen_settings(args.settings, loaded),
        kinds=kinds,
        severities=severities,
        n=min(args.n, *sizes),
        seed=args.seed,
        bundle=f"{loaded.digest} {loaded.settings.digest()}",
        made=made,
    )
    rows = measure(loaded, args.corruptions, config, args.work)
    if (page := beside(args.out, ".md")) and (picture := beside(args.out, ".png")):
        page.write_text(markdown(rows))
        draw(rows, picture)
    print(markdown(rows))
    done = {"rows": rows, "means": means(rows), "config": asdict(config), "machine": cli.machine()}
    return {"command": "corruptions", **done}


def run_generate(args: argparse.Namespace) -> cli.Summary:
    """Write the folder, of the test images that every table begins with."""
    test = portion(cli.images(args, "test"), args.n)
    corruptions.generate(test, args.corruptions, args.seed)
    return {"command": "generate-corruptions", "n": len(test), **corruptions.source(args.corruptions)}


def _seed(seed: int, kind: str, severity: int, index: int) -> int:
    """Fixed chain seeds, so that a run repeats (a server's are secret instead)."""
    words = np.random.SeedSequence([seed, corruptions.NAMES.index(kind), severity, index])
    return int.from_bytes(words.generate_state(4).tobytes(), "little")
