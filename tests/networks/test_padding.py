"""Networks that halve images, on images of any height and width."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from export import graphs
from metastable.networks.autoencoder import Autoencoder
from metastable.networks.energy import EnergyNetwork
from metastable.networks.padding import on_multiples
from metastable.networks.score import ScoreNetwork
from metastable.networks.unshuffled import UnshuffledUNet

SIZES = [(1, 1), (2, 7), (3, 40), (18, 5), (33, 48), (28, 32)]
ort = pytest.importorskip("onnxruntime")


def network(name: str) -> nn.Module:
    """One whose every layer does something: fresh ones start as the identity."""
    torch.manual_seed(0)
    made = {
        "score": lambda: ScoreNetwork(1, (4, 6, 8)),
        "natural": lambda: UnshuffledUNet((4, 6, 8), 1),
        "autoencoder": Autoencoder,
        "energy": lambda: EnergyNetwork(1, 28, 4),
    }[name]()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.eval().requires_grad_(False)


NAMES = ["score", "natural", "autoencoder", "energy"]


def mean(x: torch.Tensor) -> torch.Tensor:
    """Of every 4 x 4 pixels, in their place: it wants multiples of 4."""
    return F.interpolate(F.avg_pool2d(x, 4), scale_factor=4)


def test_nothing_is_done_where_nothing_is_missing() -> None:
    x = torch.rand(2, 3, 8, 12)
    assert on_multiples(lambda given: given, x, 4) is x


def test_edges_are_mirrored_and_short_sides_repeated() -> None:
    x = torch.arange(10.0).view(1, 1, 2, 5)
    seen = []
    made = on_multiples(lambda given: seen.append(given) or given, x, 4)  # type: ignore[func-returns-value]
    assert torch.equal(made, x)
    # Columns: mirrored without the last one.  Rows: two cannot be mirrored by two, and the last is repeated.
    row, last = [0, 1, 2, 3, 4, 3, 2, 1], [5, 6, 7, 8, 9, 8, 7, 6]
    assert seen[0][0, 0].tolist() == [row, last, last, last]


def test_a_constant_image_stays_constant() -> None:
    assert torch.equal(on_multiples(mean, torch.full((1, 1, 5, 9), 0.5), 4), torch.full((1, 1, 5, 9), 0.5))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_every_purifier_takes_any_size(name: str, size: tuple[int, int]) -> None:
    made, x = network(name), torch.rand(2, 1, *size)
    score = made.score(x)
    assert score.shape == x.shape
    assert score.isfinite().all()
    assert score.std() > 0
    torch.testing.assert_close(made.score(x[1:]), score[1:])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_go_through_the_padding(name: str) -> None:
    x = torch.rand(1, 1, 6, 7, requires_grad=True)
    made = network(name)
    out = made.score(x) if name != "energy" else made(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert (gradient != 0).all()


@pytest.mark.parametrize("size", [(1, 1), (18, 5), (20, 36)])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_is_exported(name: str, size: tuple[int, int]) -> None:
    made = network(name)
    session = ort.InferenceSession(graphs.export(graphs.Scored(made), (1, *size), "score"))
    for batch in (1, 3):
        x = torch.rand(batch, 1, *size)
        (found,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), made.score(x), rtol=1e-4, atol=1e-5)


def test_the_program_of_a_padded_network_can_be_saved() -> None:
    made, x = network("score"), torch.rand(2, 1, 18, 5)
    program = torch.export.export(made, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    data = io.BytesIO()
    torch.export.save(program, data)
    torch.testing.assert_close(program.module()(torch.rand(5, 1, 18, 5)).shape, (5, 1, 18, 5))
