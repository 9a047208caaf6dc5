"""Shared fixtures: a small bundle with random weights, and the shipped one.  And the markers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from metastable import anomaly, bundle, datasets
from metastable.networks.classifier import WhitenedNet
from metastable.networks.energy import EnergyNetwork
from metastable.networks.score import ScoreNetwork
from tests import launched

if TYPE_CHECKING:
    from metastable.evaluation.on_ray import RayPool

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # So a shell starts what runs in the background, and every command that a test starts would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = """
default: fast
caps: {chains: 16, steps: 20}
settings:
  none: {dynamics: none}
  fast: {dynamics: adp, chains: 3, steps: 2, sigma: 0.2, sigma_unflagged: 0.04, step_fraction: 0.5}
  softmax: {dynamics: adp, chains: 2, steps: 1, sigma: 0.1, average: softmax}
  langevin: {dynamics: langevin, network: energy, chains: 2, steps: 3, tau: 0.01}
"""


COSTS = ("fast", "server", "slow")
"""Markers of which every test has exactly one; who gives none is fast."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        found = [name for name in COSTS if item.get_closest_marker(name)]
        if len(found) > 1:
            raise pytest.UsageError(f"{item.nodeid} is marked {' and '.join(found)}: leave one of them")
        if not found:
            item.add_marker("fast")
        # A worker of pytest-xdist takes whole files, for their fixtures; one takes all servers, one by one.
        item.add_marker(pytest.mark.xdist_group("server" if found == ["server"] else item.path.as_posix()))


@pytest.hookimpl(tryfirst=True)  # before fixtures start anything
def pytest_runtest_setup(item: pytest.Item) -> None:
    launched.allowed = item.get_closest_marker("server") is not None


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The bundle in the repository, trained weights and all."""
    return ROOT / "model_store" / "cifar10"


def write_tiny(folder: Path, settings: str = SETTINGS) -> Path:
    """A bundle of small networks with random weights and a calibration, written to `folder`."""
    torch.manual_seed(0)
    arguments = {"widths": [4, 8, 8]}
    score = ScoreNetwork(widths=(4, 8, 8))
    norms = anomaly.score_norms(torch.rand(99, 3, 32, 32), score.score)
    bundle.write(
        folder,
        name="tiny",
        version="1.2",
        classes=list(datasets.CIFAR10_CLASSES),
        shape=(3, 32, 32),
        networks={
            "classifier": (WhitenedNet(widths=(8, 8, 8)).eval(), {"widths": [8, 8, 8]}),
            "score": (score, arguments),
            "energy": (EnergyNetwork(features=4), {"features": 4}),
        },
        settings=settings,
        anomaly=anomaly.calibrate(norms, false_positive_rate=0.05, network="score", data={"name": "noise"}),
    )
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> bundle.Bundle:
    return bundle.load(tiny_folder)


@pytest.fixture(scope="session")
def tiny_graphs(tiny: bundle.Bundle) -> dict[str, bytes]:
    """The ONNX graphs of the small bundle."""
    from export import graphs  # needs onnx, which tests of other things do without

    return graphs.build(tiny)


@pytest.fixture(scope="module")
def ray_pool() -> Iterator[RayPool]:
    """A cluster of its own for the tests of a file: other tests start clusters in this process too."""
    pytest.importorskip("ray")
    from tests.clusters import cluster

    with cluster() as pool:
        yield pool
