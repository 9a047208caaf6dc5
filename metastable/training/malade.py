"""Train MALADE's supervised denoising autoencoder (Srinivasan et al. 2019, eq. 11).

The loss, over images x with labels y and noise nu of variance v, for a given classifier f:

    |r(x + nu) - x|^2 - 2 v J(r(x + nu), y),    J = log of the probability that f gives y.

The paper calls J the cross entropy, but its proof (eq. 14) has log p(y | r), whose sign this takes: the
cross entropy of the reconstruction is made small.  Without the second term the autoencoder is the plain
one of eq. 7, whose relaxation the paper compares as MALA.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metastable import datasets
from metastable.networks.autoencoder import Autoencoder
from metastable.training import classifier
from metastable.training.loop import descend
from metastable.training.run import Ema, Learner, Run, device_of


@dataclass(frozen=True)
class MaladeConfig:
    """The paper's variance for MNIST; it has 0.01 for CIFAR-10.

    Attributes:
        dataset: a name of metastable.datasets.
        classifier: run folder of the classifier f; needed where `supervised`.
        supervised: train eq. 11, else eq. 7.
        variance: v, in squared [0, 1] units.
        plain: first updates that leave the second term out, which costs twenty times the rest.
        updates: number of updates in all, of Adam with a cosine schedule.
        batch: images an update.
        lr: peak learning rate.
        warmup: updates until the peak.
        ema: decay of the average of weights.
        seed: of weights, batches and noise.
        bf16: bfloat16 convolutions of the classifier, which take nearly all the time.
    """

    dataset: str = "mnist"
    classifier: str = ""
    supervised: bool = True
    variance: float = 0.15
    plain: int = 2_500
    updates: int = 3_300
    batch: int = 64
    lr: float = 3e-3
    warmup: int = 100
    ema: float = 0.99
    seed: int = 0
    bf16: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no run can have."""
        if self.supervised and not self.classifier:
            raise ValueError("the supervised loss needs --classifier, the run folder of a trained classifier")


def sdae_loss(
    reconstruction: Tensor, clean: Tensor, labels: Tensor, variance: float, logits: Tensor | None
) -> Tensor:
    """Eq. 11 of each image [B]: squared error plus 2 v times the cross entropy of `logits` [B, classes].

    Args:
        reconstruction, clean: [B, C, H, W] in [0, 1] units; labels int64 [B].
        logits: of the reconstruction; None leaves eq. 7.
    """
    loss = (reconstruction - clean).square().sum(dim=(1, 2, 3))
    if logits is not None:
        loss = loss + 2 * variance * F.cross_entropy(logits, labels, reduction="none")
    return loss


def train(config: MaladeConfig, data: datasets.Source, out: Path, device: str = "auto") -> dict[str, Any]:
    """Train, resume where a checkpoint is, and return the metrics, on 1 000 test images.

    Raises DataError for missing data, an unfinished classifier, or a folder with another configuration.
    """
    run, dev = Run(out, config), device_of(device)
    train_set = datasets.load(config.dataset, data, "train")
    if config.supervised:
        datasets.require_labels(train_set, "the supervised loss")
    judge = classifier.trained(Path(config.classifier)).to(dev) if config.supervised else None
    torch.manual_seed(config.seed)
    network = Autoencoder(train_set.images.shape[1], config.variance).to(dev)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    learner = Learner(network, optimizer, Ema(network, config.ema))

    def loss_of(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        pick = torch.randint(0, len(train_set), (config.batch,), generator=rng)
        clean = datasets.to_float(train_set.images[pick])
        noisy = clean + config.variance**0.5 * torch.randn(clean.shape, generator=rng)
        made = network(noisy.to(dev))
        logits = None
        if judge is not None and step >= config.plain:
            with torch.autocast(dev.type, torch.bfloat16, enabled=config.bf16):
                logits = judge(made)
            logits = logits.float()
        losses = sdae_loss(made, clean.to(dev), train_set.labels[pick].to(dev), config.variance, logits)
        return losses.mean()

    descend(learner, run, loss_of, updates=config.updates, lr=config.lr, warmup=config.warmup, desc="sDAE")
    test = datasets.load(config.dataset, data, "test").take(1000)
    metrics = reconstruction_quality(network.cpu(), test, None if judge is None else judge.cpu())
    return run.finish(network, {**metrics, "test_n": len(test), "train_digest": train_set.digest()})


@torch.no_grad()
def reconstruction_quality(
    network: Autoencoder, test: datasets.ImageSet, judge: nn.Module | None
) -> dict[str, float]:
    """Root mean squared error of reconstructions of noisy test images, and how many the classifier gets."""
    clean = datasets.to_float(test.images)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    made = network(clean + network.variance**0.5 * noise)
    found = {"denoising": round(float((made - clean).square().mean().sqrt()), 5)}
    if judge is not None:
        found["reconstructions_right"] = float((judge(made).argmax(1) == test.labels).float().mean())
    return found
