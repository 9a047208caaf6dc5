"""Item 6: how fast hardening trains, a hardened pipeline, and what it holds against.

    metastable bench gpu harden --data DIR --out DIR --minutes M [-- flags of the trainer]
    metastable bench gpu harden speed --data DIR --out DIR
    metastable bench gpu harden train --data DIR --out DIR --minutes M [-- flags of the trainer]

`speed` measures updates a second of candidates; one that fails or takes too long has its error for a row,
and the others go on.  `train` trains for the minutes that are left, with the small files that outlive the
machine in DIR: weights in float16, log, picture, metrics; the run itself lies in --run, and the same command
goes on with it.  Then natural accuracy and accuracy under PGD-20 with EOT 8 of up to 1 000 images of the test
split, if it is there, and a table last.  Results are rows of DIR/result.json, written as they come; it says
that it is not finished where the training was paused.

DIR of --data holds cifar-10-batches-bin/, with any of its data_batch files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import queue
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import common
from metastable import console, datasets
from metastable.errors import DataError
from metastable.networks import channels_last
from metastable.training import harden, harden_parts
from metastable.training.fields import add_fields
from metastable.training.harden_attack import judge
from metastable.training.harden_config import HardenConfig
from metastable.training.harden_data import Batches
from metastable.training.harden_parts import of_files, pipeline_of
from metastable.training.harden_step import DeviceEma, Update, optimizer_of
from metastable.training.run import Paused, device_of, sitting

WAYS = {
    "eager": {"graph": False, "compile": False},
    "graph": {"graph": True, "compile": False},
    "compile": {"graph": True, "compile": True},
}
COMPACT, WIDE = "compact-64-128-192", "wrn-28-2-silu"
CANDIDATES = (
    (COMPACT, "graph", 512),
    (COMPACT, "graph", 1024),
    (COMPACT, "graph", 256),
    (COMPACT, "eager", 512),
    (WIDE, "graph", 512),
    (COMPACT, "compile", 512),
    (WIDE, "compile", 512),
)
"""Classifier, way of WAYS, batch; those that matter most first, those that may take long to compile last."""
TINY_MINUTES = 0.1  # that the dry run trains for: what is left of a loan on a CPU may be half an hour
COLUMNS = ("classifier", "way", "batch", "ready_s", "ms_an_update", "images_a_second", "gib", "failed")


def fast(device: torch.device) -> None:
    """What makes convolutions fast: kernels chosen by trial, and TF32 for the float32 that is left."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = True


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this script."""
    parser.description = __doc__
    parser.add_argument(
        "what",
        nargs="?",
        choices=("all", "speed", "train"),
        default="all",
        help="one of the two (default: all)",
    )
    parser.add_argument("--data", help="folder of the data sets (default: METASTABLE_DATA)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the small files")
    parser.add_argument(
        "--run", dest="run_folder", type=Path, default=Path("runs/gpu/harden"), help="folder of the run"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it, the start included")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for each candidate of `speed`")
    parser.add_argument("--candidates", help="of `speed`: classifier:way:batch, with commas between")
    parser.add_argument("--device", default="auto", help="cuda, cpu; auto takes CUDA where there is one")
    parser.add_argument("--tiny", action="store_true", help="the dry run: everything, at a size for a CPU")
    parser.set_defaults(run=run, rest=[], resumes="run_folder")


def run(args: argparse.Namespace) -> int:
    """The whole script; its exit status."""
    theirs: list[str] = args.rest
    until = time.monotonic() + 60 * args.minutes
    root, results = datasets.data_root(args.data), Results(args.out / "result.json", tiny=args.tiny)
    rows: common.Rows = []
    if args.what in ("all", "speed"):
        chosen = candidates(args.candidates, tiny=args.tiny)
        rows = speed(chosen, root, results, args.device, args.limit, until, tiny=args.tiny)
        print(common.table(rows, COLUMNS))
    trained: dict[str, Any] = {}
    if args.what in ("all", "train"):
        device = device_of(args.device)
        fast(device)
        config = flags(theirs, args.out, tiny=args.tiny)
        if not {"--compile", "--no-compile"} & set(theirs):
            config = dataclasses.replace(config, compile=compiles(rows, config, until - time.monotonic()))
        trained = train(config, root, args.run_folder, args.device, until, tiny=args.tiny)
        results.add({"what": "training", **trained})
        found = tested(args.out, config, root, device, tiny=args.tiny)
        results.add({"what": "test split", **found})
        for result in (trained, found):
            print(common.table([{"what": k, "value": v} for k, v in result.items()], ("what", "value")))
    print(results.save(finished="paused" not in trained))
    return 0


class Results:
    """Rows of a result file, each in it as soon as it is known."""

    def __init__(self, path: Path, *, tiny: bool) -> None:
        self._path, self._tiny = path, tiny
        self._rows: common.Rows = []
        self.save(finished=False)

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.save(finished=False)
        print(json.dumps(row), flush=True)

    def save(self, *, finished: bool) -> str:
        """The line of JSON that the file now holds."""
        found = {"command": "gpu harden", "rows": self._rows, "tiny": self._tiny, "finished": finished}
        line = json.dumps(found)
        common.replace(self._path, line + "\n")
        return line


def flags(given: list[str], out: Path, *, tiny: bool) -> HardenConfig:
    """The trainer's parameters: its flags over the defaults of a sitting on a GPU."""
    base = HardenConfig(
        classifier=COMPACT, attack_steps=7, batch=512, check_every=400, ramp=0.1, copies=str(out)
    )
    if tiny:
        small = {"classifier": "compact-4-6-8", "purifier": "4,4,4", "attack_steps": 1, "batch": 8}
        sizes = {"check_images": 8, "check_steps": 1, "check_eot": 1, "held_out": 16, "check_every": 4}
        base = dataclasses.replace(base, **small, **sizes, log_every=2, bf16=False)  # type: ignore[arg-type]
    parser = console.Parser(prog="flags of the trainer")
    add_fields(parser, HardenConfig, base)
    return HardenConfig(**vars(parser.parse_args(given)))


def candidates(given: str | None, *, tiny: bool) -> list[tuple[str, str, int]]:
    if given:
        split = [one.split(":") for one in given.split(",")]
        return [(classifier, way, int(batch)) for classifier, way, batch in split]
    return [("compact-4-6-8", way, 8) for way in WAYS] if tiny else list(CANDIDATES)


def compiles(rows: common.Rows, config: HardenConfig, seconds: float) -> bool:
    """Whether compiling sees more images in the time that is left, by what `speed` measured."""
    seen = {
        row["way"]: row["images_a_second"] * (seconds - row["ready_s"])
        for row in rows
        if "failed" not in row and row["classifier"] == config.classifier and row["batch"] == config.batch
    }
    return bool(seen.get("compile", 0.0) > seen.get("graph", float("inf")))


def speed(
    chosen: list[tuple[str, str, int]],
    root: Path,
    results: Results,
    device: str,
    limit: float,
    until: float,
    *,
    tiny: bool,
) -> common.Rows:
    """A row for every candidate, each in a process of its own, which is ended after `limit` seconds."""
    rows: common.Rows = []
    for classifier, way, batch in chosen:
        row: dict[str, Any] = {"classifier": classifier, "way": way, "batch": batch}
        left = min(limit, until - time.monotonic() - 5)
        row |= _apart(row, root, device, left, tiny) if left > 5 else {"failed": "no time left"}
        rows.append(row)
        results.add({"what": "speed", **row})
    return rows


def _apart(row: dict[str, Any], root: Path, device: str, limit: float, tiny: bool) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_measured, args=(answers, row, root, device, tiny))
    process.start()
    try:
        found: dict[str, Any] = answers.get(timeout=limit)
    except queue.Empty:
        found = {"failed": f"nothing after {limit:.0f} s"}
    process.join(timeout=5)
    if process.is_alive():
        process.kill()
        process.join()
    return found


def _measured(answers: Any, row: dict[str, Any], root: Path, device: str, tiny: bool) -> None:
    try:
        answers.put(measure(row["classifier"], row["way"], row["batch"], root, device, tiny=tiny))
    except BaseException as error:
        traceback.print_exc()
        answers.put({"failed": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]})


def measure(classifier: str, way: str, batch: int, root: Path, device: str, *, tiny: bool) -> dict[str, Any]:
    """Speed of one candidate with PGD-7 and the shipped purifier, on random bytes of the data's shape."""
    began, dev = time.monotonic(), device_of(device)
    fast(dev)
    config = flags([], Path(), tiny=tiny)
    config = dataclasses.replace(config, classifier=classifier, batch=batch, copies="")
    config = dataclasses.replace(config, **WAYS[way])  # type: ignore[arg-type]
    images = torch.randint(0, 256, (4 * batch, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(len(images)) % 10
    parts = harden_parts.start(config, datasets.to_float(images[:8]))
    pipeline = channels_last(pipeline_of(parts, config).to(dev))
    optimizer, average = optimizer_of(pipeline, config, dev), DeviceEma(pipeline, config.ema)
    update = Update(pipeline, optimizer, average, config, (3, 32, 32), config.attack_steps, dev)
    batches = Batches(images, labels, config, dev)
    update.prepare(batches)
    each = update.seconds(batches, 20 if dev.type == "cuda" else 2)
    return {
        "ready_s": round(time.monotonic() - began, 1),
        "ms_an_update": round(1000 * each, 3),
        "images_a_second": round(batch / each),
        "gib": round(torch.cuda.max_memory_reserved() / 2**30, 1) if dev.type == "cuda" else 0.0,
        "graphed": update.graphed,
        "compiled": pipeline.is_compiled,
    }


def train(
    config: HardenConfig, root: Path, run: Path, device: str, until: float, *, tiny: bool
) -> dict[str, Any]:
    """Train until a little before `until`, which leaves time to judge; metrics, or that it was paused."""
    left = (until - time.monotonic()) / 60
    reserve = min(0.5, left / 4)
    # The reserve is for the test images; if training is late all the same, a checkpoint ends it.
    resumed = run.joinpath("config.json").exists()
    fits = min(left - reserve, TINY_MINUTES) if tiny else left - reserve
    minutes = json.loads((run / "config.json").read_text())["fit_minutes"] if resumed else fits
    config = dataclasses.replace(config, fit_minutes=round(minutes, 3) if not resumed else minutes)
    try:
        with sitting(left - reserve / 2):
            metrics = harden.train(config, root, run, device)
    except Paused as pause:
        return {"paused": str(pause)}
    kept = ("natural", "robust_pgd20", "judged_on", "updates", "epochs", "restorations", "training_minutes")
    return {key: metrics[key] for key in kept}


def tested(
    folder: Path, config: HardenConfig, root: Path, device: torch.device, *, tiny: bool
) -> dict[str, Any]:
    """Accuracies of the weights in `folder` on test images, float16 as they are shipped, in float32."""
    try:
        test = datasets.load(config.dataset, root, "test").take(8 if tiny else 1000)
    except DataError as error:
        return {"test split": f"not judged: {error}"}
    steps, eot = (2, 2) if tiny else (20, 8)
    pipeline = pipeline_of(of_files(folder), config).to(device)
    images, labels = _on(device, datasets.to_float(test.images), test.labels)
    began = time.monotonic()
    found = judge(pipeline, images, labels, eps=config.eps, steps=steps, eot=eot, bf16=False, votes=16)
    return {
        "test images": len(test),
        "natural": round(found["natural"], 4),
        f"PGD-{steps} EOT {eot} at {255 * config.eps:g}/255": round(found["robust"], 4),
        "seconds": round(time.monotonic() - began, 1),
        "device": common.device_name(device),
    }


def _on(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.to(device) for t in tensors)


def main() -> None:
    console.main(fill, "python -m benchmarks.gpu.harden")


if __name__ == "__main__":
    main()
