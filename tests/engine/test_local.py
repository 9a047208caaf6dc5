"""An engine of one's own: what goes wrong leaves it as it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from metastable.bundle import Bundle
from metastable.defense import Defended
from metastable.engine.costs import CLASSIFY
from metastable.engine.local import LocalEngine, Supposed
from metastable.engine.runners.torch_runner import TorchRunner


def test_a_question_that_cannot_be_taken_leaves_no_job_behind(tiny: Bundle) -> None:
    fast = tiny.settings["fast"]
    only = dataclasses.replace(tiny.settings, by_name={"fast": fast})
    engine = LocalEngine(TorchRunner(tiny.networks, tiny.classifier), only, tiny.shape, sizes=(1,))
    images, flags = torch.rand(2, *tiny.shape), torch.zeros(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="seed"):
        engine.answer(images, [1, -1], fast, flags)
    with pytest.raises(ValueError, match="not made for setting langevin"):
        engine.answer(images, [1, 2], tiny.settings["langevin"], flags)
    assert [answer.job.seed for answer in engine.answer(images, [1, 2], fast, flags)] == [1, 2]
    assert engine._engine.admission.out == 0


def test_a_repeatable_engine_makes_the_same_batches_whatever_it_did_before(tiny: Bundle) -> None:
    """Chains end early, so that costs would choose the rounds, and both kinds of chains are asked for."""
    early = tiny.settings["fast"].moving(steps=3)
    early = dataclasses.replace(early, chains=8, delta=0.05)
    only = dataclasses.replace(tiny.settings, by_name={"early": early, "none": tiny.settings["none"]})
    images = torch.rand(5, *tiny.shape, generator=torch.Generator().manual_seed(0))
    flags = torch.tensor([True, False, True, False, True])

    def asked(engine: LocalEngine, count: int = 5) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        engine._engine.watch = lambda segment: seen.append((segment.jobs, segment.chains))
        answers = engine.answer(images[:count], range(count), early, flags[:count])
        answered.append([answer.result for answer in answers])
        return seen

    answered: list[list[Defended]] = []
    runner = TorchRunner(tiny.networks, tiny.classifier)
    first, second = (LocalEngine(runner, only, tiny.shape, repeatable=True) for _ in range(2))
    whole = asked(first)
    second.answer(images, range(9, 14), tiny.settings["none"], flags)
    for count in (3, 1, 4):
        asked(second, count)
    assert asked(second) == whole
    assert len(whole) > 1
    for one, other in zip(answered[0], answered[-1], strict=True):
        assert torch.equal(one.outputs, other.outputs)
        assert torch.equal(one.purified, other.purified)


def test_supposed_costs_do_not_follow_what_is_observed(tiny: Bundle) -> None:
    costs = Supposed(tiny.settings.by_name.values(), (1, 8))
    before = costs.seconds(CLASSIFY, 8)
    costs.observe(CLASSIFY, 8, 3.0)
    assert costs.seconds(CLASSIFY, 8) == before
    assert costs.width(CLASSIFY, 0.2) == 8
