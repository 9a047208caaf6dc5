"""What the cases of `price` compute, and that its ratios are of their work."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch

from benchmarks import price
from metastable import settings
from metastable.bundle import Bundle
from metastable.datasets import ImageSet
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import MetastableError

SETTINGS = """
default: fast
caps: {chains: 8, steps: 8}
settings:
  none: {dynamics: none}
  fast: {dynamics: adp, chains: 4, steps: 1, sigma: 0.2, step_fraction: 1.0, step_bounds: [1.0, 1.0]}
"""


class Counted(torch.nn.Module):
    """A classifier of one view that counts the images that it sees."""

    seen: ClassVar[list[int]] = []  # of all copies: a runner makes its own

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return torch.nn.functional.pad(x.mean((2, 3)), (0, 7))


@pytest.fixture
def one_view(tiny: Bundle) -> Bundle:
    return dataclasses.replace(tiny, classifier=Counted(), settings=settings.parse(SETTINGS))


def images(n: int) -> ImageSet:
    made = torch.randint(
        0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return ImageSet("toy", "test", made, torch.arange(n) % 3, [str(i) for i in range(10)])


def test_each_case_does_the_work_that_it_names(one_view: Bundle) -> None:
    runner = TorchRunner(one_view.networks, one_view.classifier)
    x = torch.rand(6, 3, 32, 32)
    for name, (adapts, both) in price.CASES.items():
        setting = price.variant(one_view.settings["fast"], 6, adapts=adapts, both=both)
        kind = setting.dynamics.kind
        assert getattr(kind, "adaptive") == ("two evaluations" in name)  # noqa: B009
        Counted.seen.clear()
        price.answer(runner, setting, x, both)
        assert sum(Counted.seen) == (12 if "two views" in name else 6)


@pytest.mark.slow
def test_rows_have_times_ratios_and_accuracy(one_view: Bundle) -> None:
    runner = TorchRunner(one_view.networks, one_view.classifier)
    rows = price.measure(one_view, runner, "fast", 2, images(30), rounds=2)
    assert [row["case"] for row in rows] == list(price.CASES)
    assert rows[-1]["ratio"] == 1.0
    assert all(row["ms"] > 0 and 0 <= row["accuracy"][1] <= row["accuracy"][0] <= 1 for row in rows)


def test_runners_of_fewer_bits_are_timed_beside_it(one_view: Bundle) -> None:
    runner = TorchRunner(one_view.networks, one_view.classifier)
    lower = {"torch-bf16": TorchRunner(one_view.networks, one_view.classifier, precision="bf16")}
    rows = price.measure(one_view, runner, "fast", 2, images(4), rounds=2, lower=lower)
    assert rows[-1]["case"] == "one evaluation, one view, torch-bf16"
    assert rows[-1]["ms"] > 0
    assert "accuracy" not in rows[-1]


def test_what_has_no_such_price_is_refused(one_view: Bundle, tiny: Bundle) -> None:
    runner = TorchRunner(one_view.networks, one_view.classifier)
    with pytest.raises(MetastableError, match="price needs a setting of dynamics adp"):
        price.measure(one_view, runner, "none", 2, images(2), rounds=1)
    with pytest.raises(MetastableError, match="looks at one view"):
        price.measure(tiny, runner, "fast", 2, images(2), rounds=1)
