"""What every trainer shares: a run folder with checkpoints, a log, and resuming.

A run folder holds `config.json` (written first; a resumed run must match it), `checkpoint.pt` (replaced
atomically, in pieces if it is large: `pieces`), `weights-fp16.safetensors` (the present weights, every
minute), `log.jsonl` (one line a report) and, at the end, `weights.safetensors` and `metrics.json`.  A long
run is made in sittings:

    with sitting(minutes=9):
        train(...)      # raises Paused after its last checkpoint; the next sitting goes on from there
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metastable import datasets
from metastable.errors import DataError
from metastable.training import pieces

KEPT = "weights-fp16.safetensors"
"""The present weights of a run that is under way, in half precision."""

PASSING = {"passing": True}
"""Metadata of a configuration's field that a resumed run may change: it stays out of config.json."""


DATA = "data.json"
"""What a run on a folder of pictures leaves beside its config.json: how they became images."""


class Seen(NamedTuple):
    """What a run learned from: the shape of its images, their classes, whether mirror images are of them."""

    shape: datasets.Shape
    classes: tuple[str, ...]
    mirrored: bool


def seen_by(folder: Path) -> Seen:
    """What the run of a folder learned from; DataError where its configuration names no data set.

    Raises OSError where there is no run.
    """
    config = json.loads((folder / "config.json").read_text())
    for place in (folder, folder.parent):  # parts of `harden` are folders in that of the run
        if (place / DATA).exists():
            said = json.loads((place / DATA).read_text())
            return Seen(tuple(said["shape"]), tuple(said["classes"]), said["mirrored"])
    # Runs from before there was a choice do not name their data.
    row = datasets.named(config.get("dataset", "cifar10"))
    return Seen(row.shape, row.classes, row.mirrored)


def device_of(name: str = "auto") -> torch.device:
    """`auto` takes CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Paused(Exception):
    """The sitting is over; the checkpoint holds all that was done."""


_until: ContextVar[float] = ContextVar("_until", default=math.inf)


@contextmanager
def sitting(minutes: float | None) -> Iterator[None]:
    """Let runs inside end with Paused at a checkpoint after so many minutes; None lets them finish."""
    token = _until.set(math.inf if minutes is None else time.monotonic() + 60 * minutes)
    try:
        yield
    finally:
        _until.reset(token)


class Run:
    """One resumable training run in one folder.

    Args:
        config: a dataclass; a setting that an older folder lacks must have its default.
        every_s: seconds between checkpoints.
        keep_s: seconds between half-precision weights.
        free: names of settings that may change when the run goes on.

    Raises DataError when the folder holds a run with another configuration.
    """

    def __init__(
        self,
        folder: Path,
        config: Any,
        *,
        every_s: float = 100.0,
        keep_s: float = 60.0,
        free: Collection[str] = (),
    ) -> None:
        self.folder = folder
        stays = {f.name for f in dataclasses.fields(config) if not f.metadata.get("passing")}
        fields = {name: value for name, value in dataclasses.asdict(config).items() if name in stays}
        self.config: dict[str, Any] = json.loads(json.dumps(fields))
        self._every_s, self._keep_s = every_s, keep_s
        self._started = self._saved = self._kept = time.monotonic()
        self._spent_before = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.json"
        if path.exists():
            defaults = {name: value for name, value in _defaults(config).items() if name in stays}
            before = defaults | json.loads(path.read_text())
            if changed := sorted(k for k in before.keys() | self.config if self._differs(k, before, free)):
                said = f"{folder} holds a run with another configuration ({', '.join(changed)})"
                raise DataError(f"{said}: choose another --out")
        path.write_text(json.dumps(self.config, indent=2) + "\n")

    def _differs(self, name: str, before: Mapping[str, Any], free: Collection[str]) -> bool:
        return name not in free and before.get(name) != self.config.get(name)

    @property
    def spent_s(self) -> float:
        """Seconds of training so far, earlier sittings included."""
        return self._spent_before + time.monotonic() - self._started

    def resume(self) -> dict[str, Any] | None:
        """The last checkpoint, or None in a fresh folder."""
        content = pieces.read(self.folder / "checkpoint.pt")
        if content is None:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        self._spent_before = float(state["spent_s"])
        return state

    def checkpoint(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Save `state()` if the last checkpoint is older than `every_s` seconds, or at once.

        Raises Paused, with everything saved, if the sitting is over and the run is not (`now`).
        """
        over = not now and time.monotonic() >= _until.get()
        if not (now or over) and time.monotonic() - self._saved < self._every_s:
            return
        part = self.folder / "checkpoint.part"
        torch.save({**state(), "spent_s": self.spent_s}, part)
        pieces.place(part, self.folder / "checkpoint.pt")
        self._saved = time.monotonic()
        if over:
            raise Paused(f"{self.folder} is not finished: run the same command again to go on")

    def keep(self, weights: nn.Module | Mapping[str, Tensor], *, now: bool = False) -> None:
        """Write the weights in half precision to KEPT if the last ones are `keep_s` seconds old, or at once.

        At once too where the sitting is over: what one leaves behind can so be judged.  Integers stay what
        they are, and so do tensors that are out of the range of half precision.
        """
        now = now or time.monotonic() >= _until.get()
        if not now and time.monotonic() - self._kept < self._keep_s:
            return
        named = weights.state_dict() if isinstance(weights, nn.Module) else weights
        part = self.folder / f"{KEPT}.part"
        save_file({k: _half(v) for k, v in named.items()}, part)
        pieces.place(part, self.folder / KEPT)
        self._kept = time.monotonic()

    def log(self, **values: float) -> None:
        line = {k: float(f"{v:.6g}") for k, v in values.items()}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({**line, "spent_s": round(self.spent_s, 1)}) + "\n")

    def read_log(self) -> list[dict[str, float]]:
        path = self.folder / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def finish(self, network: nn.Module, metrics: dict[str, Any]) -> dict[str, Any]:
        """Write weights and metrics; returns the metrics with configuration and time added."""
        self.keep(network, now=True)
        tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        save_file(tensors, self.folder / "weights.safetensors")
        result = {
            **metrics,
            "config": self.config,
            "parameters": sum(p.numel() for p in network.parameters()),
            "training_minutes": round(self.spent_s / 60, 1),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
        }
        (self.folder / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
        return result


def _defaults(config: Any) -> dict[str, Any]:
    """The settings of a dataclass that have a default, as JSON has them."""
    fields = [f for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING]
    defaults: dict[str, Any] = json.loads(json.dumps({f.name: f.default for f in fields}))
    return defaults


def _half(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    half = value.half() if value.is_floating_point() else value
    return half if half.isfinite().all() else value


class Ema:
    """Exponential moving average of a network's weights, with a warm-up so early steps count less."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 1 - decay)
            else:
                self.shadow[name].copy_(value)

    def load(self, shadow: dict[str, Tensor]) -> None:
        for name, value in shadow.items():
            self.shadow[name].copy_(value)

    def copy_to(self, network: nn.Module) -> None:
        network.load_state_dict(self.shadow)


@dataclasses.dataclass
class Learner:
    """What a checkpoint of gradient training holds: network, optimizer, averaged weights, step.

    `extra` are further tensors that change while it learns, by name; they are restored in place.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: Ema
    step: int = 0
    extra: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.shadow,
            "step": self.step,
            "extra": self.extra,
        }

    def resume(self, run: Run) -> None:
        """Go on from the run's last checkpoint, if there is one."""
        if (saved := run.resume()) is not None:
            self.network.load_state_dict(saved["network"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average.load(saved["average"])
            self.step = saved["step"]
            for name, value in saved.get("extra", {}).items():
                self.extra[name].copy_(value)
