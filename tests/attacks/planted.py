"""Small classifiers and defenses with known properties, for the tests of attacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metastable.attacks.detectors import Detector
from metastable.attacks.target import WhiteBox
from metastable.networks.energy import EnergyNetwork
from metastable.networks.score import ScoreNetwork
from metastable.settings import Setting

SHAPE = (3, 8, 8)
CLASSES = 4


class Prototypes(nn.Module):
    """Logits -sharpness |x - prototype_c|^2 / D: smooth, and right on images near the prototypes."""

    def __init__(self, sharpness: float = 40.0, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.register_buffer("prototypes", 0.3 + 0.4 * torch.rand(CLASSES, *SHAPE, generator=rng))
        self.sharpness = sharpness

    prototypes: Tensor

    def forward(self, x: Tensor) -> Tensor:
        distance = (x[:, None] - self.prototypes.to(x)).square().flatten(2).mean(2)
        return -self.sharpness * distance

    def images(self, n: int, *, share: float = 0.15, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Images a share of the way from their class's prototype to another's, lightly noisy, and labels."""
        rng = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % CLASSES
        other = self.prototypes[(labels + 1) % CLASSES]
        x = (1 - share) * self.prototypes[labels] + share * other
        return (x + 0.02 * torch.randn(x.shape, generator=rng)).clamp(0, 1), labels


def score_network(seed: int = 0) -> ScoreNetwork:
    """A tiny network whose residual blocks do something (they start as the identity)."""
    torch.manual_seed(seed)
    network = ScoreNetwork(widths=(4, 8, 8))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("conv2.weight"):
                weight.normal_(0, 0.1)
    return network.requires_grad_(False).eval()


def restoring_score(seed: int = 0, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """A score that pulls to grey, bent by the tiny network: ADP's step size lies between its bounds."""
    network = score_network(seed).to(dtype)
    return lambda x: 0.3 * network.score(x) - (x - 0.5)


def energy_network(seed: int = 0) -> EnergyNetwork:
    torch.manual_seed(seed)
    return EnergyNetwork(size=8, features=4).requires_grad_(False).eval()


def box(classifier: nn.Module, **fields: object) -> WhiteBox:
    """A defense of the tiny score network, with a detector: ADP, unless `fields` of its setting say else."""
    dynamics = str(fields.pop("dynamics", "adp"))
    own: dict[str, object] = {} if dynamics == "none" else {"steps": 2}
    if dynamics == "adp":
        own |= {"sigma": 0.05, "step_fraction": 0.5}
    setting = Setting.of("planted", dynamics, **(own | fields))
    score = score_network().score
    return WhiteBox(setting, classifier, score, (Detector(score, 1.0),))


def gradient_of(target: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Tensor:
    """Of the summed cross entropy."""
    x = x.clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(target(x), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient
