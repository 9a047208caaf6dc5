"""An engine from a bundle: its runner, the costs of that, and the limits.  The one place where these meet."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metastable.bundle import Bundle
from metastable.dynamics.base import Kind
from metastable.engine import costs
from metastable.engine.costs import Costs
from metastable.engine.engine import Engine, EngineLimits
from metastable.engine.runners import Runner, choose
from metastable.engine.runners.cuda_runner import SLOTS
from metastable.pixels import at_most, most_pixels
from metastable.settings import Setting

SIZES = (1, 2, 4, 8, 16)
"""Of the batches whose cost is measured where a caller waits for the engine to be ready."""
WIDE_SIZES = (*SIZES, 32)
"""The same where nobody else waits for an answer, and time is better spent on large batches."""
BUDGET, GPU_BUDGET = 10.0, 90.0
"""Seconds that measuring costs may take on a processor, and on a GPU, where graphs are recorded meanwhile.

TorchServe gives up on a worker that has not started within 120 s.
"""
GPU_STATE_BYTES = 2**32  # of the states of chains that an engine of one's own holds on a GPU


def kinds_of(settings: Iterable[Setting]) -> set[Kind]:
    """The kinds of their chains."""
    return {kind for setting in settings if (kind := setting.dynamics.kind) is not None}


def runner_for(
    bundle: Bundle,
    name: str = choose.AUTO,
    *,
    artifacts: Mapping[str, Mapping[str, bytes]] | None = None,
    threads: int = 0,
    cache: MutableMapping[str, str] | None = None,
) -> Runner:
    """The runner of a name in `choose.MAKERS` for all settings of a bundle.

    Args:
        artifacts: what was exported of the bundle, by kind and name.
        threads: of the runner; 0 takes all cores.
        cache: remembers what `auto` found (`choose.make`).

    A runner that brings threads of its own leaves PyTorch one, in the whole process.

    Raises what `choose.make` raises.
    """
    parts = choose.Parts(
        bundle.networks,
        bundle.classifier,
        artifacts or {},
        bundle.shape,
        threads=threads,
        digest=bundle.digest,
    )
    if name == choose.AUTO and differentiates(bundle.settings.by_name.values()):
        name = "torch"  # the only one with derivatives of a score
    runner = choose.make(name, parts, cache)
    maker = choose.MAKERS.get(runner.name)
    if maker is not None and maker.package != "torch":
        # PyTorch's threads wait for work by spinning, on the cores that the runtime's own threads need:
        # with two cores that doubled the time of a request.
        torch.set_num_threads(1)
    return runner


def differentiates(settings: Iterable[Setting]) -> bool:
    """Whether chains of one of the settings need the derivative of a score."""
    return any(kind.differentiates for kind in kinds_of(settings))


def measured(
    runner: Runner,
    settings: Iterable[Setting],
    shape: tuple[int, int, int],
    *,
    sizes: Sequence[int] | None = None,
    usual: Sequence[int] = SIZES,
    clock: Callable[[], float] = time.perf_counter,
    look: Callable[[Tensor], object] | None = None,
) -> Costs:
    """What steps of the settings' chains, and classifications, cost on a runner.

    Args:
        shape: (C, H, W) of images.
        sizes: of the batches; the largest is the largest that an engine runs.  None takes what the runner
            names in its abilities, and `usual` where it names none, as far as images of this shape allow.
        clock: seconds, monotonic; the measurement has BUDGET of them.
        look: what is done to images before they are purified, where that is to have a price.
    """
    device = runner.abilities.device
    if sizes is None:
        known = runner.abilities.sizes or usual
        largest = at_most(max(known), shape, most_pixels(device))
        sizes = [size for size in known if size <= largest]
    budget = BUDGET if device.type == "cpu" else GPU_BUDGET
    return costs.measure(runner, kinds_of(settings), shape, sizes, clock, budget=budget, look=look)


def wide(runner: Runner) -> EngineLimits:
    """EngineLimits of an engine of one's own: nothing is refused, batches are large and fill a GPU."""
    limits = EngineLimits(segment=0.2, backlog=math.inf, jobs=sys.maxsize)
    if runner.abilities.device.type == "cpu":
        return limits
    return replace(limits, slots=SLOTS, state_bytes=GPU_STATE_BYTES)


def engine_for(
    runner: Runner,
    settings: Iterable[Setting],
    shape: tuple[int, int, int],
    limits: EngineLimits | None = None,
    *,
    sizes: Sequence[int] | None = None,
    usual: Sequence[int] = SIZES,
    clock: Callable[[], float] = time.perf_counter,
    look: Callable[[Tensor], object] | None = None,
) -> Engine:
    """An engine for jobs of these settings; their costs are measured now.  Arguments as of `measured`."""
    curve = measured(runner, settings, shape, sizes=sizes, usual=usual, clock=clock, look=look)
    return Engine(runner, curve, shape, clock, limits)
