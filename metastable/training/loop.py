"""The loop that the trainers by Adam share: schedule, clipping, averaged weights, log and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from metastable.training.run import Learner, Run

REPORT = 100  # updates between lines of the log


def schedule(step: int, warmup: int, total: int) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def descend(
    learner: Learner,
    run: Run,
    loss_of: Callable[[int], Tensor],
    *,
    updates: int,
    lr: float,
    warmup: int,
    desc: str,
) -> None:
    """Make the updates that are left, from the run's checkpoint on, and leave the averaged weights behind.

    Args:
        loss_of: the loss of update `step`, a function of that number and the weights alone, so that a
            resumed run goes on the same.
        lr: peak learning rate.
        desc: what the progress bar says.
    """
    learner.resume(run)
    running: Tensor | None = None  # on the device: to read it would wait for the update
    bar = tqdm(total=updates, initial=learner.step, desc=desc, unit="update", mininterval=5)
    while (step := learner.step) < updates:
        for group in learner.optimizer.param_groups:
            group["lr"] = lr * schedule(step, warmup, updates)
        loss = loss_of(step)
        learner.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learner.network.parameters(), 1.0)
        learner.optimizer.step()
        learner.step = step = step + 1
        learner.average.update(learner.network, step)
        loss = loss.detach()
        running = loss if running is None else torch.lerp(running, loss, 0.02)
        bar.update()
        if step % REPORT == 0:
            bar.set_postfix(loss=f"{running.item():.4f}", refresh=False)
            run.log(step=step, loss=running.item())
        run.keep(learner.average.shadow)
        run.checkpoint(learner.state)
    bar.close()
    run.checkpoint(learner.state, now=True)
    learner.average.copy_to(learner.network)
