"""Chains under way: what a batch is given, and where their states lie."""

from __future__ import annotations

from dataclasses import replace

import torch

from metastable import cuda_noise
from metastable.engine.chains import Chains
from metastable.engine.costs import Costs
from metastable.engine.runners import Abilities, Batch
from tests.engine.worlds import ADP, LONG, SHAPE, SHORT, Clock, Walk, job, run_out, world


def test_a_batch_has_its_keys_packed_and_no_secret_stays() -> None:
    engine, runner, _ = world()
    seen = 0

    def check(batch: Batch) -> bool:
        nonlocal seen
        seen += 1
        assert batch.packed is not None
        assert torch.equal(batch.packed, cuda_noise.pack(batch.keys, batch.steps))
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
