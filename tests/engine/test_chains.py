"""Chains under way: what a batch is given, and where their states lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metastable import cuda_noise
from metastable.dynamics.base import Kind
from metastable.dynamics.drift import Drift
from metastable.engine.chains import Chains
from metastable.engine.costs import Costs
from metastable.engine.job import ActiveJob
from metastable.engine.runners import Abilities, Batch
from tests.engine.worlds import ADP, DENOISED, LONG, SHAPE, SHORT, Clock, Walk, job, permit, run_out, world


def test_a_batch_has_its_keys_packed_and_no_secret_stays() -> None:
    engine, runner, _ = world()
    seen = 0

    def check(batch: Batch) -> bool:
        nonlocal seen
        seen += 1
        assert batch.packed is not None
        assert torch.equal(batch.packed, cuda_noise.pack(batch.keys, batch.next_steps))
        return False

    runner.break_on = check
    runner.poison = lambda batch: [0] if seen == 3 else []  # a chain is drawn again, with another key
    for number, setting in enumerate((SHORT, LONG, ADP)):
        engine.submit(job(str(number), setting, seed=(1 << 100) + number))
    run_out(engine)
    assert seen > 5
    assert engine.chains.redrawn == 1
    assert not engine.chains._packed.any()


def test_states_lie_on_the_runners_device() -> None:
    clock = Clock()
    runner = Walk(clock)
    runner.abilities = replace(Abilities(exact=True), device=torch.device("meta"))
    chains = Chains(runner, Costs({"classify": {1: 1.0}}), 4, SHAPE, clock)
    assert chains._x.device.type == "meta"


class Border(TorchDispatchMode):
    """The way from a device to the host and back, for small things only; `meta` stands for the device.

    It has shapes and no content, so what comes back is ones.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.crossed = most, list[int]()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func is torch.ops.aten._to_copy.default and "device" in given:
            x, there = args[0], torch.device(given["device"])
            if there.type != x.device.type:
                assert x.numel() <= self.most, f"{tuple(x.shape)} goes from {x.device} to {there}"
                self.crossed.append(x.numel())
                return torch.ones(x.shape, dtype=given.get("dtype", x.dtype), device=there)
        return func(*args, **given)


class Far(Walk):
    """A runner whose states stay where they are."""

    abilities = replace(Abilities(exact=True), device=torch.device("meta"))

    def advance(self, kind: Kind, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        assert batch.packed is not None
        assert batch.held is not None
        assert batch.held.shape == (len(batch.parameters[0]), len(batch.keys))
        assert {t.device.type for t in (batch.x, batch.packed, batch.held)} == {"meta"}
        return batch.x, torch.full((len(batch.keys),), steps)


def test_a_walk_takes_no_states_keys_or_parameters_to_the_host() -> None:
    clock = Clock()
    chains = Chains(Far(clock), Costs({Drift("energy"): {1: 1.0}}), 60, SHAPE, clock)
    setting = replace(LONG, dynamics=replace(LONG.dynamics, steps=3))
    active = ActiveJob(job("x", setting), 0, 0.0, permit(setting), 60)
    slots = chains.begin(active, 60)
    with Border(most=60) as border:  # a number a chain: places, steps moved, whether it is finite
        assert chains.walk(Drift("energy"), slots, 0.0) == ([], [])
        assert chains.walk(Drift("energy"), slots, 1e9) == (slots, [])
    assert border.crossed == [60] * 6
    with Border(most=60), pytest.raises(AssertionError, match=r"\(60, 1, 2, 2\) goes from meta to cpu"):
        chains._x.cpu()


def test_a_batch_holds_the_parameters_of_its_rows() -> None:
    engine, runner, _ = world()
    seen = set()

    def check(batch: Batch) -> bool:
        assert batch.held is not None
        assert torch.equal(batch.held, torch.tensor(batch.parameters).T)
        seen.update(batch.parameters)
        return False

    runner.break_on = check
    other = replace(LONG, name="other", dynamics=replace(LONG.dynamics, tau=0.3))
    for number, setting in enumerate((SHORT, other, LONG, ADP, DENOISED)):
        engine.submit(job(str(number), setting, seed=number))
    run_out(engine)
    assert len(seen) == 4  # SHORT and LONG have the same
