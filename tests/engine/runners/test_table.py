"""What a new runner needs: one class, and one row of the table."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import metastable
from handlers import runner as workers
from metastable.bundle import Bundle
from metastable.cli import doctor
from metastable.dynamics.base import Kind
from metastable.engine.precision import Precision
from metastable.engine.runners import Abilities, Batch, Runner
from metastable.engine.runners.choose import MAKERS, Maker, Parts
from metastable.engine.runners.stepping import Call, Stepper
from metastable.errors import SettingsError

NAME = "torch-f64"


class DoubleRunner:
    """A runner that the package does not have: networks in float64."""

    name = NAME
    abilities = Abilities(exact=True)

    def __init__(self, networks: Mapping[str, nn.Module], classifier: nn.Module) -> None:
        self.calls = 0
        self._steppers = {k: Stepper(self._double(n, "score")) for k, n in networks.items()}
        self._steppers[""] = Stepper(torch.zeros_like)
        self._classifier = self._double(classifier, "forward")

    def advance(self, kind: Kind, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        return self._steppers[kind.network].advance(kind, batch, steps, batch.x)

    @torch.inference_mode()
    def score(self, network: str, x: Tensor) -> Tensor:
        return self._steppers[network].score(x)

    @torch.inference_mode()
    def classify(self, x: Tensor) -> Tensor:
        return self._classifier(x)

    def _double(self, module: nn.Module, method: str) -> Call:
        run: Call = getattr(copy.deepcopy(module).eval().requires_grad_(False).double(), method)

        def call(x: Tensor) -> Tensor:
            self.calls += 1
            return run(x.double()).float()

        return call


def make(parts: Parts, files: Mapping[str, bytes], precision: Precision) -> Runner:
    return DoubleRunner(parts.networks, parts.classifier)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAKERS, NAME, Maker(make))


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_one_class_and_one_row_answer_in_process(tiny_folder: Path) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = {}
    for name in (NAME, "torch"):
        with metastable.load(tiny_folder, runner=name) as defense:
            assert defense.runner == name
            found[name] = defense(images, setting="fast", seeds=[1, 2, 3])
    for ours, theirs in zip(found[NAME], found["torch"], strict=True):
        assert ours.label == theirs.label
        assert ours.margin == pytest.approx(theirs.margin, abs=1e-4)
        assert ours.score == pytest.approx(theirs.score, rel=1e-4)


@pytest.mark.usefixtures("double")
def test_a_worker_takes_it_by_its_name_and_doctor_lists_it(tiny: Bundle, tmp_path: Path) -> None:
    runner = workers.runner_for(tiny, {}, NAME, 1)
    assert isinstance(runner, DoubleRunner)
    runner.classify(torch.rand(1, 3, 32, 32))
    assert runner.calls == 1
    assert doctor.runners(tmp_path)[NAME] is None


def test_another_name_is_refused(tiny: Bundle) -> None:
    with pytest.raises(SettingsError, match=r"runner must be one of auto, torch, .*, not 'torch-f64'"):
        workers.runner_for(tiny, {}, NAME, 1)
