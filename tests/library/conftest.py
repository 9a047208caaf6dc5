"""A defense of the small bundle."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import metastable
from metastable.library import Defense


@pytest.fixture(scope="module")
def defense(tiny_folder: Path) -> Iterator[Defense]:
    with metastable.load(tiny_folder, runner="torch") as made:
        yield made


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
