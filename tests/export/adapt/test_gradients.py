"""Adapted graphs convert to PyTorch as others do, so that they can be attacked and hardened."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from export.adapt import Adapted
from metastable.networks.onnx_classifier import OnnxClassifier
from metastable.networks.onnx_gradient import Differentiable
from tests.export.adapt.graphs import adapted, classifier, node, noise
from tests.export.adapt.test_batches import TokensFirst, Viewed, fixed
from tests.networks.brought import Separable, Vit, seen

pytest.importorskip("onnx2fx")
TURN = node("Transpose", "x", "planes", perm=[0, 3, 1, 2])
CASES: dict[str, Callable[[], Adapted]] = {
    "channels last, BGR, bytes, softmax": lambda: adapted(
        classifier(node("Softmax", "z", "y", axis=1), front=[TURN], shape=(1, 8, 8, 3), pixels="planes"),
        order="bgr",
        range=(0.0, 255.0),
    ),
    "half": lambda: adapted(classifier(front=[node("Cast", "x", "p", to=1)], kind=10, pixels="p")),
    "views of one": lambda: adapted(fixed(Viewed(), 8)),
    "windows of one": lambda: adapted(fixed(Viewed(twice=True), 8)),
    "transformer of one": lambda: adapted(fixed(seen(Vit(16), 16), 16)),
    "tokens before the batch": lambda: adapted(fixed(TokensFirst(), 16)),
    "separable, sigmoid of one": lambda: adapted(
        fixed(nn.Sequential(seen(Separable(1), 16), nn.Sigmoid()), 16)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_adapted_graphs_have_gradients(name: str) -> None:
    torch.manual_seed(0)
    found = CASES[name]()
    shared: dict[str, Any] = {"mean": found.mean, "std": found.std, "file": "it.onnx"}
    network = OnnxClassifier(found.graph, size=(found.height, found.width), **shared)
    images = torch.from_numpy(noise(found))
    converted = Differentiable(network, images)
    x = images[:3].clone().requires_grad_(True)
    logits = converted(x)
    torch.testing.assert_close(logits.detach(), network(images[:3]), atol=2e-3, rtol=1e-3)
    (slope,) = torch.autograd.grad(logits[:, 0].sum() - logits[:, 1].sum(), x)
    assert bool(slope.flatten(1).any(1).all())
