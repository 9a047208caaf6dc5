"""Train a classifier on purified attacks (Mitchell 2020, section 3.4, Algorithm 2).

A bank holds an attacked copy of every training image, at first the image.  An update draws copies, purifies
them by K Langevin steps, trains the classifier on what comes out, and moves the copies one sign step along
the gradient with respect to the purified images, inside the ball around their images: BPDA, which takes
the purification for the identity, spread over the whole training.  Now and then ("rejuvenation") a copy
starts again from its image, so that the attacks do not all grow old.

The thesis calls the bank one of purified samples; what its loop carries from step to step is the attacked
ones, and that is what this keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metastable import bundle, datasets
from metastable.attacks.ball import Ball
from metastable.bundle import shipped
from metastable.dynamics import ScoreFunction
from metastable.dynamics.langevin import langevin
from metastable.errors import DataError
from metastable.training import classifier
from metastable.training.loop import descend
from metastable.training.run import Ema, Learner, Run, device_of


@dataclass(frozen=True)
class PurifiedConfig:
    """Lengths are in [0, 1] image units; rates and K are the thesis's, the rest is for digits.

    Attributes:
        dataset: a name of metastable.datasets.
        network: of the classifier, a name as in ClassifierConfig.
        bundle: folder of the bundle that purifies.
        energy: which of its networks purifies.
        images: training images, and copies in the bank; 0 for all.
        steps: Langevin steps K of a purification.
        tau: size of these steps.
        denoise: noise that a step after them takes off (`metastable.dynamics.langevin`); 0 for none.
        begin: start from the bundle's classifier, which must be of this network, not from random weights.
        eps: radius of the l_inf ball.
        attack_step: length of a copy's move.
        rejuvenation: chance that a copy in a batch starts again from its image.
        updates: number of updates in all.
        batch: images an update.
        lr: peak learning rate.
        warmup: updates until the peak.
        ema: decay of the average of weights.
        seed: of weights, batches and noise.
    """

    dataset: str = "mnist"
    network: str = "cnn-16-32-100"
    bundle: str = "model_store/mnist"
    energy: str = "energy"
    images: int = field(default=10_000, metadata={"option": "n"})  # --images names a folder of pictures
    steps: int = 1
    tau: float = 0.015
    denoise: float = 0.0
    begin: bool = False
    eps: float = 0.3
    attack_step: float = 0.05
    rejuvenation: float = 0.01
    updates: int = 4_000
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no run can have."""
        if not 0 <= self.rejuvenation <= 1 or not 0 < self.eps <= 1 or self.attack_step <= 0:
            raise ValueError("rejuvenation and eps must lie in [0, 1], and attack_step be positive")
        if self.steps < 1 or self.tau <= 0 or self.denoise < 0:
            raise ValueError("steps must be 1 or more, tau positive, and denoise not negative")


def rejuvenate(attacked: Tensor, clean: Tensor, rate: float, rng: torch.Generator) -> Tensor:
    """The copies [B, C, H, W], each replaced by its image with the chance `rate`."""
    again = torch.rand(len(attacked), generator=rng) < rate
    return torch.where(again.view(-1, 1, 1, 1), clean, attacked)


def _begin(network: nn.Module, known: nn.Module, config: PurifiedConfig) -> None:
    """Give the network the weights of another one; DataError where they do not fit."""
    try:
        network.load_state_dict(known.state_dict())
    except RuntimeError:
        raise DataError(
            f"the classifier of {config.bundle} is not of the network {config.network}: name its own with "
            "--network"
        ) from None


def train(config: PurifiedConfig, data: datasets.Source, out: Path, device: str = "auto") -> dict[str, Any]:
    """Train, resume where a checkpoint is, and return the metrics, on 1 000 test images.

    Raises DataError or BundleError for missing data, a bundle without the network, or a folder with
    another configuration.
    """
    run, dev = Run(out, config), device_of(device)
    train_set = datasets.load(config.dataset, data, "train")
    datasets.require_labels(train_set, "a classifier")
    train_set = train_set.take(config.images or len(train_set), seed=config.seed)
    score: ScoreFunction = bundle.network(shipped.path(config.bundle), config.energy).to(dev).score  # type: ignore[assignment]
    torch.manual_seed(config.seed)
    row = datasets.of(config.dataset, data)
    network = classifier.build(config.network, len(row.classes), row.shape).to(dev)
    if config.begin:
        _begin(network, bundle.load(shipped.path(config.bundle)).classifier, config)
    bank, ball = datasets.to_float(train_set.images), Ball("linf", config.eps)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    learner = Learner(network, optimizer, Ema(network, config.ema), extra={"bank": bank})

    def purified(x: Tensor, rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            end = langevin(
                x.to(dev),
                score,
                tau=config.tau,
                steps=config.steps,
                noise=lambda t: torch.randn(x.shape, generator=rng).to(dev),
            )
            return end + config.denoise**2 * score(end) if config.denoise else end

    def loss_of(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        rows = torch.randperm(len(bank), generator=rng)[: config.batch]
        clean = datasets.to_float(train_set.images[rows])
        attacked = rejuvenate(bank[rows], clean, config.rejuvenation, rng)
        x = purified(attacked, rng).requires_grad_(True)

        def attack(gradient: Tensor) -> None:
            """The backward pass that trains the weights also moves the copies."""
            moved = attacked + config.attack_step * ball.direction(gradient.cpu())
            bank[rows] = ball.project(moved, clean)

        x.register_hook(attack)  # type: ignore[no-untyped-call]
        network.train()
        return F.cross_entropy(network(x), train_set.labels[rows].to(dev))

    descend(
        learner, run, loss_of, updates=config.updates, lr=config.lr, warmup=config.warmup, desc="purified"
    )
    test = datasets.load(config.dataset, data, "test").take(1000)
    images, rng = datasets.to_float(test.images), torch.Generator().manual_seed(1)
    network.eval()
    with torch.no_grad():
        right = {
            name: float((network(x.to(dev)).argmax(1).cpu() == test.labels).float().mean())
            for name, x in (("natural", images), ("purified", purified(images, rng)))
        }
    moved = float((bank - datasets.to_float(train_set.images)).abs().amax(dim=(1, 2, 3)).mean())
    return run.finish(
        network,
        {**right, "test_n": len(test), "mean_distance": round(moved, 5), "train_digest": train_set.digest()},
    )
