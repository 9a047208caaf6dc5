"""A hardening run in progress, and how it begins."""

from __future__ import annotations

import copy
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metastable import bundle, datasets
from metastable.bundle import shipped
from metastable.datasets.folder import labeller_of
from metastable.errors import DataError
from metastable.networks import channels_last
from metastable.training import harden_health, harden_parts
from metastable.training.harden_attack import judge
from metastable.training.harden_brought import Brought
from metastable.training.harden_config import HardenConfig
from metastable.training.harden_data import Batches
from metastable.training.harden_guard import Guard
from metastable.training.harden_step import DeviceEma, Update, optimizer_of, relink
from metastable.training.run import Learner, Run, device_of


def split(config: HardenConfig, data: datasets.Source) -> tuple[datasets.ImageSet, datasets.ImageSet]:
    """Images to train on and the last ones of the training split, which are only judged by.

    Pictures that nobody labelled get the labels of the bundle's classifier, where no classifier learns.

    Raises DataError if too few images are there.
    """
    if isinstance(data, datasets.Folder) and data.labels is None and not config.learns_labels:
        bare = bundle.load(shipped.path(config.bundle)).classifier
        data = dataclasses.replace(data, labeller=labeller_of(bare))
    whole = datasets.load(config.dataset, data, "train")
    if config.learns_labels:
        datasets.require_labels(whole, "a classifier that learns")
    most = len(whole) - config.held_out
    if isinstance(data, datasets.Folder):
        most -= most % max(1, data.crops)  # whole pictures
    if most < 1:
        raise DataError(
            f"{len(whole)} training images are too few to hold {config.held_out} of them out: give a smaller "
            "--held-out, or more images"
        )
    count = min(config.images or most, most)
    learned, held = (
        dataclasses.replace(whole, images=whole.images[s], labels=whole.labels[s])
        for s in (slice(0, count), slice(most, None))
    )
    return learned, held


@dataclass
class Session:
    """A run in progress: everything that the loop of `train` works on.

    `total` is the number of updates, 0 until it is settled; `began` when this sitting did, `written` when the
    small files were; `finite` whether all losses since the last check were; `labelled` whether somebody
    labelled the images that are judged, which have the bare classifier's labels otherwise.
    `kept` are averaged weights by name: `good.*` of the last good check, `best.*` of the best.
    """

    config: HardenConfig
    run: Run
    device: torch.device
    parts: dict[str, harden_parts.Part]
    batches: Batches
    held: tuple[Tensor, Tensor]
    labelled: bool
    update: Update
    learner: Learner
    guard: Guard
    kept: dict[str, Tensor]
    total: int = 0
    finite: bool = True
    began: float = 0.0
    written: float = 0.0

    def __post_init__(self) -> None:
        self.judged = copy.deepcopy(self.update.pipeline)  # before anything is compiled
        self.plan = torch.zeros(1, dtype=torch.int64)

    def averaged(self, prefix: str = "") -> None:
        """Load the running average, or with a prefix kept weights, into the network that is judged."""
        shadow = self.learner.average.shadow
        self.judged.load_state_dict({k: self.kept[prefix + k] for k in shadow} if prefix else shadow)

    def keep(self, prefix: str) -> None:
        for name, value in self.learner.average.shadow.items():
            self.kept[prefix + name].copy_(value)

    def check(self) -> dict[str, float]:
        self.averaged()
        c = self.config
        return judge(
            self.judged,
            *self.held,
            eps=c.eps,
            steps=c.check_steps,
            eot=c.check_eot,
            bf16=c.bf16,
            seed=c.seed,
        )

    def restore(self) -> None:
        """Weights and their average as at the last good check; the optimizer forgets what it has seen."""
        good = {name: self.kept["good." + name] for name in self.learner.average.shadow}
        self.update.pipeline.load_state_dict(good)
        self.learner.average.load(good)
        self.update.forget()
        if self.guard.steps != self.update.steps:
            self.attack_by(self.guard.steps)
            self.update.prepare(self.batches)

    def attack_by(self, steps: int) -> None:
        """Go on with another number of steps in the attack."""
        old = self.update
        new = Update(old.pipeline, old.optimizer, old.average, self.config, old.shape, steps, self.device)
        new.ring, new.cursor = old.ring, old.cursor  # a checkpoint holds these
        self.update = new

    def state(self) -> dict[str, Any]:
        self.learner.extra["guard"].copy_(self.guard.state())
        self.plan.fill_(self.total)
        return self.learner.state()

    def put(self, prefix: str = "") -> None:
        """Write the small files: fp16 weights, picture, and copies of them and the log."""
        self.averaged(prefix)
        folder = self.run.folder
        files = harden_parts.put_half(folder, self.judged, self.parts)
        harden_health.draw(folder / "health.png", self.run.read_log())
        more = [folder / name for name in ("log.jsonl", "health.png", "metrics.json")]
        harden_parts.copy([*files, *more], self.config.copies)
        self.written = time.monotonic()


def begin(config: HardenConfig, data: datasets.Source, out: Path, device: str) -> Session:
    """The session of a new or resumed run, at its first update or that of the checkpoint."""
    began = time.monotonic()
    dev = device_of(device)
    if dev.type == "cuda":
        torch.backends.cudnn.benchmark = True  # few shapes, many updates
    learned, held = split(config, data)
    some = datasets.to_float(learned.images[:5000])
    parts = harden_parts.start(config, some)
    if isinstance(brought := parts["classifier"], Brought):
        datasets.check_labels(learned, brought.classes, f"the classifier of {config.bundle}")
    harden_parts.check_same(out, parts)
    run = Run(out, config, every_s=config.every_s)  # what was refused above leaves no folder behind
    pipeline = channels_last(harden_parts.pipeline_of(parts, config).to(dev))
    if isinstance(brought, Brought):
        brought.check(some, dev)
    optimizer = optimizer_of(pipeline, config, dev)
    average = DeviceEma(pipeline, config.ema)
    guard = Guard(config.attack_steps)
    learner = Learner(pipeline, optimizer, average)
    mirrored = datasets.of(config.dataset, data).mirrored
    _, channels, height, width = learned.images.shape
    shape = (channels, height, width)
    update = Update(pipeline, optimizer, average, config, shape, guard.steps, dev)
    kept = {
        prefix + name: value.clone()
        for prefix in ("good.", "best.")
        for name, value in average.shadow.items()
    }
    session = Session(
        config=config,
        run=run,
        device=dev,
        parts=parts,
        batches=Batches(learned.images, learned.labels, config, dev, mirrored),
        held=(
            datasets.to_float(held.images[: config.check_images])
            .to(dev)
            .contiguous(memory_format=torch.channels_last),
            held.labels[: config.check_images].to(dev),
        ),
        labelled=held.labelled,
        update=update,
        learner=learner,
        guard=guard,
        kept=kept,
        began=began,
        written=began,
    )
    learner.extra = {"plan": session.plan, "guard": guard.state(), "ring": update.ring} | kept
    learner.extra["cursor"] = update.cursor
    learner.resume(run)
    relink(optimizer, dev)
    if learner.step:
        session.total = int(session.plan)
        session.guard = Guard.of(learner.extra["guard"])
        if session.guard.steps != update.steps:
            session.attack_by(session.guard.steps)
    session.update.prepare(session.batches)
    return session
