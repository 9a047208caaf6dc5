"""An engine of one's own: what goes wrong leaves it as it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from metastable.bundle import Bundle
from metastable.engine.local import LocalEngine
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
