"""The cost of a decided answer: early deciding beside a fixed H = 150.

The outputs of 150 chains an image are recorded once (natural images, and transfer PGD), chunk by
chunk in a work folder, so that a run that was stopped goes on.  The sequential test then replays them
with the rounds that the engine would choose, at several caps.  Where an early label differs from
that of all 150 chains, 600 are run to see who is right.  Milliseconds are not replayed: some images
go through the real engine both ways, in turn; what other sizes of rounds would have cost is computed on
the measured cost curve.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks.stopping_simulation import REFERENCE, Replay, looks, replay, replay_rounds, t_mixture
from metastable import datasets
from metastable.anomaly import score_norms
from metastable.attacks.pgd import pgd
from metastable.attacks.white_box import attackable
from metastable.bundle import Bundle
from metastable.defense import defend
from metastable.engine import assembly
from metastable.engine.costs import CLASSIFY, Costs
from metastable.engine.engine import Engine, EngineLimits
from metastable.engine.job import Answer, Job
from metastable.engine.runners import Runner
from metastable.errors import DataError, MetastableError
from metastable.networks.onnx_gradient import IMAGES
from metastable.settings import Setting
from metastable.stopping import Stopping

KINDS = ("natural", "pgd")
CHUNK = 10
ARBITER = 600
ROUNDS = (6, 8, 16, 32, 64, REFERENCE)
"""Fixed sizes of rounds that the policy is held against."""


@dataclass(frozen=True)
class DecideConfig:
    """What a recording depends on; kept beside it.  `weights`: see `weights_digest`."""

    setting: str
    n: int
    skip: int
    weights: str


@dataclass(frozen=True)
class RecordingRunner:
    """Images of one kind [N, C, H, W], their flags [N], and outputs of their chains [N, 150, classes]."""

    images: Tensor
    flagged: Tensor
    outputs: Tensor


def weights_digest(bundle: Bundle, setting: str) -> str:
    """SHA-256 of what the recorded outputs depend on: the networks' weights and the setting's values."""
    digest = hashlib.sha256(repr(dataclasses.replace(bundle.settings[setting], delta=None)).encode())
    for network in (bundle.classifier, bundle.networks[bundle.settings[setting].network]):
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def record(
    bundle: Bundle, test: datasets.ImageSet, config: DecideConfig, folder: Path
) -> dict[str, RecordingRunner]:
    """Record what is missing in `folder`, and read all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    if (folder / "config.json").exists() and (folder / "config.json").read_text() != text:
        raise DataError(f"{folder} holds a recording of another configuration: choose another --work")
    (folder / "config.json").write_text(text)
    starts = range(0, len(test), CHUNK)
    for start in tqdm(starts, desc=f"{REFERENCE} chains an image", unit="chunk"):
        path = folder / f"chunk-{start:05d}.npz"
        if not path.exists():
            part = path.with_suffix(".part.npz")
            np.savez(part, allow_pickle=False, **_chunk(bundle, test, config, start))
            part.replace(path)
    loaded = [np.load(folder / f"chunk-{start:05d}.npz") for start in starts]
    return {
        kind: RecordingRunner(
            *(torch.from_numpy(np.concatenate([c[f"{kind}_{f}"] for c in loaded])) for f in _FIELDS)
        )
        for kind in KINDS
    }


_FIELDS = ("images", "flagged", "outputs")


def _chunk(
    bundle: Bundle, test: datasets.ImageSet, config: DecideConfig, start: int
) -> dict[str, np.ndarray]:
    images = datasets.to_float(test.images[start : start + CHUNK])
    labels = test.labels[start : start + CHUNK]
    found: dict[str, np.ndarray] = {}
    classifier = attackable(bundle, images[:IMAGES]).classifier
    for kind in KINDS:
        x = images if kind == "natural" else pgd(classifier, images, labels, seed=start)
        flagged = _flags(bundle, x)
        outputs = _outputs(bundle, x, flagged, _fixed(bundle, config, REFERENCE), kind, start)
        for field, value in zip(_FIELDS, (x, flagged, outputs), strict=True):
            found[f"{kind}_{field}"] = value.numpy()
    return found


def _flags(bundle: Bundle, x: Tensor) -> Tensor:
    calibration = bundle.calibration
    return calibration.flags(score_norms(x, bundle.scores[calibration.network]))


def _fixed(bundle: Bundle, config: DecideConfig, chains: int) -> Setting:
    return dataclasses.replace(bundle.settings[config.setting], chains=chains, delta=None)


def _outputs(bundle: Bundle, x: Tensor, flagged: Tensor, setting: Setting, kind: str, start: int) -> Tensor:
    seeds = [_seed(kind, start + i) for i in range(len(x))]
    return defend(
        x, seeds, setting, classifier=bundle.classifier, scores=bundle.scores, flagged=flagged
    ).outputs


def _seed(kind: str, index: int) -> int:
    return (KINDS.index(kind) << 32) + index


def measure(
    bundle: Bundle,
    runner: Runner,
    recordings: dict[str, RecordingRunner],
    config: DecideConfig,
    *,
    stopping: Stopping,
    caps: tuple[int, ...],
    timed: int,
    picture: Path | None,
) -> dict[str, Any]:
    """Replay the recordings, ask 600 chains where labels differ, and time `timed` images of each kind."""
    setting = bundle.settings[config.setting]
    kind = setting.dynamics.kind
    if kind is None:
        raise MetastableError(f"setting {setting.name} runs no chains: choose one that purifies")
    curve = assembly.measured(runner, [setting], bundle.shape, sizes=assembly.WIDE_SIZES)

    def seconds(size: int) -> float:
        return setting.steps * curve.seconds(kind, size) + curve.seconds(CLASSIFY, size)

    rows, replays, policy_ms = [], {}, []
    for cap in caps:
        every = []
        for name, recording in recordings.items():
            reference = recording.outputs.mean(1).argmax(1)
            result, spent = replay_rounds(recording.outputs, stopping, seconds, cap)
            if cap == max(caps):
                policy_ms.append(1e3 * spent.double().mean().item())
            row = {"images": name, "cap": cap, **result.row(reference)}
            differ = (result.labels != reference).nonzero().flatten().tolist()
            row["right_by_600"] = _arbitrate(bundle, config, recording, name, result, differ)
            rows.append(row)
            replays[cap, name] = result
            every.append(result.chains.double().mean().item())
        rows[-1]["fewer"] = rows[-2]["fewer"] = round(REFERENCE / statistics.fmean(every), 2)
    times = _time(bundle, runner, curve, recordings, setting, stopping, max(caps), timed)
    fixed_ms = {size: _fixed_rounds(recordings, stopping, seconds, size, max(caps)) for size in ROUNDS}
    if picture:
        _draw(picture, {name: replays[max(caps), name] for name in recordings})
    return {
        "rows": rows,
        "milliseconds": times,
        "rounds_ms": {"policy": round(statistics.fmean(policy_ms), 1), **fixed_ms},
        "cost_curve_ms": {n: round(1e3 * seconds(n), 2) for n in (1, 2, 4, 8, 16, 32)},
        "delta": stopping.delta,
        "least": stopping.least,
    }


def _fixed_rounds(
    recordings: dict[str, RecordingRunner],
    stopping: Stopping,
    seconds: Callable[[int], float],
    size: int,
    cap: int,
) -> float:
    """Mean milliseconds an image on the cost curve if every round had `size` chains."""
    spent = []
    for recording in recordings.values():
        used = replay(recording.outputs, t_mixture(stopping), looks(size, size, cap)).chains
        spent += [math.ceil(int(n) / size) * 1e3 * seconds(size) for n in used]
    return round(statistics.fmean(spent), 1)


def _arbitrate(
    bundle: Bundle, config: DecideConfig, recording: RecordingRunner, kind: str, result: Replay, at: list[int]
) -> int:
    """How many of the early labels at these indices are those of 600 chains."""
    right = 0
    for i in tqdm(at, desc=f"{ARBITER} chains where labels differ", disable=not at):
        one = slice(i, i + 1)
        setting = _fixed(bundle, config, ARBITER)
        outputs = _outputs(bundle, recording.images[one], recording.flagged[one], setting, kind, i)
        right += int(outputs.mean(1).argmax(1)) == int(result.labels[i])
    return right


def _time(
    bundle: Bundle,
    runner: Runner,
    curve: Costs,
    recordings: dict[str, RecordingRunner],
    setting: Setting,
    stopping: Stopping,
    cap: int,
    timed: int,
) -> dict[str, Any]:
    """Milliseconds an image through an engine of its own, fixed and early in turn."""
    early = dataclasses.replace(setting, chains=cap, delta=stopping.delta)
    fixed = dataclasses.replace(setting, chains=REFERENCE, delta=None)
    found: dict[str, dict[str, list[float]]] = {k: {"early": [], "fixed": []} for k in recordings}
    for kind, index in tqdm([(k, i) for k in recordings for i in range(timed)], desc="timing"):
        recording = recordings[kind]
        for name, one in (("early", early), ("fixed", fixed)):
            engine = Engine(runner, curve, bundle.shape, time.perf_counter, EngineLimits(segment=0.2))
            started = time.perf_counter()
            flag = bool(recording.flagged[index])
            engine.submit(Job("image", recording.images[index], one, _seed(kind, index), flagged=flag))
            while engine.advance():
                pass
            found[kind][name].append(1e3 * (time.perf_counter() - started))
            assert all(isinstance(outcome, Answer) for outcome in engine.collect())
    return {
        kind: {
            "early_mean": round(statistics.fmean(t["early"]), 1),
            "fixed_mean": round(statistics.fmean(t["fixed"]), 1),
            "ratio": round(statistics.fmean(t["fixed"]) / statistics.fmean(t["early"]), 2),
            "n": len(t["early"]),
        }
        for kind, t in found.items()
    }


def _draw(path: Path, replays: dict[str, Replay]) -> None:
    """Histogram of the chains that requests needed."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    edges = [*range(6, REFERENCE + 5, 4)]
    axes.hist(
        [replay.chains.numpy() for replay in replays.values()], bins=edges, label=list(replays), log=True
    )
    axes.set(xlabel="chains used", ylabel="images", title=f"early deciding, cap {REFERENCE}")
    axes.legend()
    figure.savefig(path, dpi=110)


def sizes(text: str) -> tuple[int, ...]:
    """Caps from `24,96,150`; raises ValueError above the chains that are recorded."""
    found = tuple(sorted(int(part) for part in text.split(",")))
    if not found or found[0] < 1 or found[-1] > REFERENCE:
        raise ValueError(f"caps lie between 1 and {REFERENCE}, the chains that are recorded")
    return found
