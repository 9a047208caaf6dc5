"""An engine of one's own, for scripts: images in, answers out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metastable.bundle import Bundle
from metastable.engine import costs
from metastable.engine.engine import Engine, Limits
from metastable.engine.job import Answer, Job
from metastable.engine.runners import Runner
from metastable.engine.runners.cuda_runner import SLOTS, CudaRunner
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.settings import Setting, Settings

SIZES = (1, 2, 4, 8, 16, 32)
LIMITS = Limits(segment=0.2, backlog=math.inf, jobs=1_000_000)  # nobody else waits: large batches


class LocalEngine:
    """What a server would answer, without a server.

    Args:
        runner: made for the bundle of `settings`.
        settings: their chains' costs are measured at once.
        shape: (C, H, W) of images.
        sizes: of the batches whose cost is measured; the largest is the largest that is run.  None
            takes what suits the runner.
        limits: of the engine.
    """

    def __init__(
        self,
        runner: Runner,
        settings: Settings,
        shape: tuple[int, int, int],
        sizes: Sequence[int] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        kinds = {kind for setting in settings.by_name.values() if (kind := setting.dynamics.kind)}
        sizes = sizes or runner.abilities.sizes or SIZES
        curve = costs.measure(runner, kinds, shape, sizes, time.perf_counter)
        self._engine = Engine(runner, curve, shape, time.perf_counter, limits)

    def answer(self, images: Tensor, seeds: Sequence[int], setting: Setting, flagged: Tensor) -> list[Answer]:
        """The answers to images [N, C, H, W] in [0, 1], in order, their chains advanced together.

        Args:
            seeds: one an image.
            flagged: bool [N], the anomaly flags.

        Raises the error of the first job that failed.
        """
        for i, (image, seed) in enumerate(zip(images, seeds, strict=True)):
            self._engine.submit(Job(str(i), image, setting, seed, flagged=bool(flagged[i])))
        while self._engine.advance():
            pass
        found: dict[str, Answer] = {}
        for outcome in self._engine.collect():
            if not isinstance(outcome, Answer):
                raise outcome.error
            found[outcome.job.id] = outcome
        return [found[str(i)] for i in range(len(images))]


def engine_on(device: str, bundle: Bundle) -> LocalEngine:
    """An engine for all settings of the bundle on `cpu`, or on a GPU with batches that fill it."""
    kinds = [setting.dynamics.kind for setting in bundle.settings.by_name.values()]
    if torch.device(device).type == "cpu" or any(kind and kind.differentiates for kind in kinds):
        runner = TorchRunner(bundle.networks, bundle.classifier, device=device)
        return LocalEngine(runner, bundle.settings, bundle.shape)
    graphs = CudaRunner(bundle.networks, bundle.classifier, device=device)
    limits = replace(LIMITS, slots=SLOTS)
    return LocalEngine(graphs, bundle.settings, bundle.shape, limits=limits)
