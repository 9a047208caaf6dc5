"""An engine of one's own, for scripts: images in, answers out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from metastable.bundle import Bundle
from metastable.engine import assembly
from metastable.engine.costs import CLASSIFY, Costs, Work
from metastable.engine.engine import Engine
from metastable.engine.job import Answer, Job
from metastable.engine.runners import Runner
from metastable.engine.runners.cuda_runner import CudaRunner
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.pixels import at_most, most_pixels
from metastable.settings import Setting, Settings


class Supposed(Costs):
    """The same costs on every machine and at any time: no measurement makes or moves them.

    A batch of n costs as much as 4 + n chains, which is about what measured ones come to on a processor.

    Args:
        settings: whose chains have a cost.
        sizes: of batches.
    """

    def __init__(self, settings: Iterable[Setting], sizes: Iterable[int]) -> None:
        curve = {size: 1e-6 * (4 + size) for size in sizes}
        works: set[Work] = {CLASSIFY, *assembly.kinds_of(settings)}
        super().__init__({work: dict(curve) for work in works})

    def observe(self, work: Work, size: int, seconds: float) -> None:
        """Nothing."""


class LocalEngine:
    """What a server would answer, without a server.

    Args:
        runner: made for the bundle of `settings`.
        settings: their chains' costs are measured at once.
        shape: (C, H, W) of images.
        sizes: of the batches whose cost is measured; the largest is the largest that is run.  None
            takes what suits the runner.
        repeatable: make up batches by `Supposed` costs and without a clock.  A network's last bits depend on
            how many images it sees at a time; so equal questions get equal answers, to the bit, where
            processor, libraries and number of threads are the same.  `Answer.seconds` are then zero.
    """

    def __init__(
        self,
        runner: Runner,
        settings: Settings,
        shape: tuple[int, int, int],
        sizes: Sequence[int] | None = None,
        *,
        repeatable: bool = False,
    ) -> None:
        limits, known = assembly.wide(runner), settings.by_name.values()
        if repeatable:
            pixels = most_pixels(runner.abilities.device)
            some = sizes or {at_most(size, shape, pixels) for size in assembly.WIDE_SIZES}
            self._engine = Engine(runner, Supposed(known, some), shape, lambda: 0.0, limits)
        else:
            self._engine = assembly.engine_for(
                runner, known, shape, limits, sizes=sizes, usual=assembly.WIDE_SIZES
            )

    def answer(self, images: Tensor, seeds: Sequence[int], setting: Setting, flagged: Tensor) -> list[Answer]:
        """The answers to images [N, C, H, W] in [0, 1], in order, their chains advanced together.

        Args:
            seeds: one an image.
            flagged: bool [N], the anomaly flags.

        Raises the error of the first job that failed, and what `Engine.submit` raises; no job is left then.
        """
        try:
            for i, (image, seed) in enumerate(zip(images, seeds, strict=True)):
                self._engine.submit(Job(str(i), image, setting, seed, flagged=bool(flagged[i])))
            while self._engine.advance():
                pass
        except BaseException:
            for i in range(len(images)):
                self._engine.cancel(str(i))
            self._engine.collect()
            raise
        found: dict[str, Answer] = {}
        for outcome in self._engine.collect():
            if not isinstance(outcome, Answer):
                raise outcome.error
            found[outcome.job.id] = outcome
        return [found[str(i)] for i in range(len(images))]


def engine_on(device: str, bundle: Bundle) -> LocalEngine:
    """An engine for all settings of the bundle: repeatable on `cpu`, with batches that fill it on a GPU."""
    on_cpu = torch.device(device).type == "cpu"
    if on_cpu or assembly.differentiates(bundle.settings.by_name.values()):
        runner: Runner = TorchRunner(bundle.networks, bundle.classifier, device=device)
    else:
        runner = CudaRunner(bundle.networks, bundle.classifier, device=device)
    return LocalEngine(runner, bundle.settings, bundle.shape, repeatable=on_cpu)
