from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from export import aot
from metastable.engine.runners.aot_runner import AotRunner
from metastable.engine.runners.exported import CLASSIFIER

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not shutil.which("g++"), reason="packages are built with a C++ compiler")
def test_a_package_answers_as_the_network_in_every_batch_and_memory_format() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.LeakyReLU(0.05), nn.Flatten(), nn.Linear(36, 5)).eval()
    runner = AotRunner({CLASSIFIER: aot.package(network.requires_grad_(False), (3, 8, 8))})
    for size in (1, 3, 40):
        x = torch.rand(size, 3, 8, 8)
        wanted = network(x)
        assert torch.allclose(runner.classify(x), wanted, atol=1e-5)
        # A package takes any strides for its own and returns garbage: the runner must lay images out.
        strided = x.to(memory_format=torch.channels_last)
        assert torch.allclose(runner.classify(strided), wanted, atol=1e-5)
