"""Train a score by denoising score matching: of a score network, or through an energy's gradient.

Loss (Vincent 2011; Song and Ermon 2019, with their weights sigma^2 a level):

    sigma^2 |s(x + sigma n) + n / sigma|^2 / D,    n ~ N(0, I),

with sigma log-uniform in [sigma_min, sigma_max] instead of a list of levels.  A ScoreNetwork
returns sigma^2 times the score, so there the loss is |s(x + sigma n) + sigma n|^2 / (sigma^2 D).
An EnergyNetwork's score is -grad U in closed form, so one backward pass trains it too, and so is that of a
DenoisingEnergy.  The latter is meant for one noise level, sigma: its loss is that of a score network for
sigma^2 times its score, with noise around sigma, so chains find back from both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from metastable import datasets
from metastable.errors import DataError
from metastable.networks import channels_last
from metastable.networks.denoising_energy import DenoisingEnergy
from metastable.networks.energy import EnergyNetwork
from metastable.networks.score import ScoreNetwork
from metastable.training.loop import descend
from metastable.training.run import Ema, Learner, Run, device_of


@dataclass(frozen=True)
class ScoreConfig:
    """Noise levels are in [0, 1] image units.

    `clip` trains on clip(x + sigma n, 0, 1), which is what ADP injects (the clip is in the text of its
    experiments; Algorithm 1 and eq. 12 have none) and what its network then sees.  The output is no
    longer a score where pixels were clipped, but still the least-squares way back.  It matters where most
    pixels are 0 or 1: half of MNIST's noise is cut off, so the noise that is left has a mean.

    Attributes:
        dataset: a name of metastable.datasets.
        widths: of the three levels of the network, three numbers separated by commas.
        blocks: residual blocks a level.
        updates: number of updates in all.
        batch: images an update.
        lr: peak learning rate.
        warmup: updates until the peak.
        sigma_min: least noise.
        sigma_max: greatest noise.
        ema: decay of the average of weights.
        seed: of weights, batches and noise.
        bf16: convolutions in bfloat16.
        clip: train on noisy images cut to [0, 1].
    """

    dataset: str = "cifar10"
    widths: str = "32,80,160"
    blocks: int = 1
    updates: int = 18_000
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 300
    sigma_min: float = 0.012
    sigma_max: float = 0.35
    ema: float = 0.999
    seed: int = 0
    bf16: bool = True
    clip: bool = False


@dataclass(frozen=True)
class EnergyDsmConfig:
    """Noise levels are in [0, 1] image units.

    Attributes:
        dataset: a name of metastable.datasets.
        features: width n of the EnergyNetwork.
        updates: number of updates in all.
        batch: images an update.
        lr: peak learning rate.
        warmup: updates until the peak.
        sigma_min: least noise.
        sigma_max: greatest noise.
        ema: decay of the average of weights.
        seed: of weights, batches and noise.
        bf16: convolutions in bfloat16; signs near zero flip there, and they are all a gradient depends on.
    """

    dataset: str = "cifar10"
    features: int = 32
    updates: int = 8_000
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 300
    sigma_min: float = 0.03
    sigma_max: float = 0.2
    ema: float = 0.999
    seed: int = 0
    bf16: bool = False


@dataclass(frozen=True)
class DenoisingEnergyConfig:
    """Noise levels are in [0, 1] image units.

    Attributes:
        dataset: a name of metastable.datasets.
        widths: of the two levels of the DenoisingEnergy, two numbers separated by a comma.
        blocks: residual blocks a level.
        sigma: noise of the images whose density is meant.
        spread: training noise is log-uniform between sigma / spread and sigma * spread.
        warm: updates in which the residual alone learns to denoise, at a third of the price: at zero it
            has no gradient as an energy.
        updates: number of updates in all.
        batch: images an update.
        lr: peak learning rate.
        warmup: updates until the peak.
        ema: decay of the average of weights.
        seed: of weights, batches and noise.
        bf16: convolutions in bfloat16.
        start: weights.safetensors of another such run to begin with, or nothing; then `warm` should be 0.
    """

    dataset: str = "cifar10"
    widths: str = "48,96"
    blocks: int = 1
    sigma: float = 0.08
    spread: float = 1.5
    warm: int = 3_000
    updates: int = 9_000
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 300
    ema: float = 0.999
    seed: int = 0
    bf16: bool = False
    start: str = ""

    @property
    def sigma_min(self) -> float:
        return self.sigma / self.spread

    @property
    def sigma_max(self) -> float:
        return self.sigma * self.spread


Config = ScoreConfig | EnergyDsmConfig | DenoisingEnergyConfig


def score_network(config: ScoreConfig, channels: int) -> ScoreNetwork:
    a, b, c = (int(w) for w in config.widths.split(","))
    return ScoreNetwork(channels, (a, b, c), config.blocks)


def dsm_loss(network: nn.Module, noisy: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Per-image loss [B], 1 for a network that returns zero; noise is n, sigma [B, 1, 1, 1]."""
    s = network.score(noisy).float()  # type: ignore[operator]
    if isinstance(network, DenoisingEnergy):
        s = network.sigma**2 * s
    error = s * sigma + noise if isinstance(network, EnergyNetwork) else s / sigma + noise
    loss: Tensor = error.square().mean(dim=(1, 2, 3))
    return loss


def residual_loss(network: nn.Module, noisy: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Per-image loss [B] of a DenoisingEnergy's residual, which is to be what denoises."""
    loss: Tensor = (network.residual(noisy) / sigma + noise).square().mean(dim=(1, 2, 3))  # type: ignore[operator]
    return loss


def train_score(
    config: ScoreConfig, data: datasets.Source, out: Path, device: str = "auto"
) -> dict[str, Any]:
    """Train a ScoreNetwork; returns metrics with its denoising error on test images."""
    channels, _, _ = datasets.of(config.dataset, data).shape
    torch.manual_seed(config.seed)
    return _train(score_network(config, channels), config, data, out, device)


def train_energy(
    config: EnergyDsmConfig, data: datasets.Source, out: Path, device: str = "auto"
) -> dict[str, Any]:
    """Train an EnergyNetwork whose -grad U is a score; returns metrics as `train_score` does."""
    shape = datasets.of(config.dataset, data).shape
    size = datasets.square(shape, "an energy network")
    torch.manual_seed(config.seed)
    return _train(EnergyNetwork(shape[0], size, config.features), config, data, out, device)


def train_denoising_energy(
    config: DenoisingEnergyConfig, data: datasets.Source, out: Path, device: str = "auto"
) -> dict[str, Any]:
    """Train a DenoisingEnergy; returns metrics as `train_score` does."""
    channels, _, _ = datasets.of(config.dataset, data).shape
    torch.manual_seed(config.seed)
    a, b = (int(width) for width in config.widths.split(","))
    network = DenoisingEnergy(channels, (a, b), config.blocks, config.sigma)
    if config.start:
        _begin(network, Path(config.start))
    return _train(network, config, data, out, device)


def _begin(network: nn.Module, weights: Path) -> None:
    """Load weights, in half precision too; DataError for a file that has none for this network."""
    try:
        network.load_state_dict({name: one.float() for name, one in load_file(weights).items()})
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{weights} holds no weights of such a network: {error}") from None


def _train(
    network: nn.Module, config: Config, data: datasets.Source, out: Path, device: str
) -> dict[str, Any]:
    run, dev = Run(out, config), device_of(device)
    train_set = datasets.load(config.dataset, data, "train")
    mirrored = datasets.of(config.dataset, data).mirrored
    channels_last(network.to(dev))
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, betas=(0.9, 0.99))
    average = Ema(network, config.ema)
    learner = Learner(network, optimizer, average)

    def loss_of(step: int) -> Tensor:
        noisy, noise, sigma = _batch(train_set.images, config, step, mirrored)
        with torch.autocast(dev.type, torch.bfloat16, enabled=config.bf16):
            given = noisy.to(dev), noise.to(dev), sigma.to(dev)
            if isinstance(config, DenoisingEnergyConfig) and step < config.warm:
                return residual_loss(network, *given).mean()
            return dsm_loss(network, *given).mean()

    descend(
        learner,
        run,
        loss_of,
        updates=config.updates,
        lr=config.lr,
        warmup=config.warmup,
        desc="score matching",
    )
    test = datasets.load(config.dataset, data, "test").take(1000)
    return run.finish(
        network,
        {
            "denoising": denoising_error(network, datasets.to_float(test.images)),
            "test_n": len(test),
            "train_digest": train_set.digest(),
        },
    )


def _batch(images: Tensor, config: Config, step: int, mirrored: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The batch of one update, a function of seed and step alone, so a resumed run goes on the same."""
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    pick = torch.randint(0, len(images), (config.batch,), generator=rng)
    clean = datasets.to_float(images[pick])
    if mirrored:
        turned = torch.rand(config.batch, generator=rng) < 0.5
        clean = torch.where(turned.view(-1, 1, 1, 1), clean.flip(3), clean)
    clean = clean.contiguous(memory_format=torch.channels_last)
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    sigma = torch.exp(low + (high - low) * torch.rand(config.batch, 1, 1, 1, generator=rng))
    noise = torch.empty_like(clean).normal_(generator=rng)
    noisy = clean + sigma * noise
    if isinstance(config, ScoreConfig) and config.clip:
        noisy = noisy.clamp(0, 1)
        noise = (noisy - clean) / sigma
    return noisy, noise, sigma


@torch.no_grad()
def denoising_error(network: nn.Module, clean: Tensor, batch: int = 250) -> dict[str, float]:
    """Root mean squared error of one denoising step at several sigma, beside sigma itself.

    For an energy the step is x + sigma^2 s(x); for a score network it is x + s(x).
    """
    network.eval()
    device = next(network.parameters()).device
    result = {}
    for sigma in (0.05, 0.1, 0.15, 0.2, 0.25):
        rng, total = torch.Generator().manual_seed(1), 0.0
        for x in torch.split(clean, batch):
            noisy = (x + sigma * torch.randn(x.shape, generator=rng)).to(device)
            step = network.score(noisy)  # type: ignore[operator]
            if isinstance(network, EnergyNetwork):
                step = sigma**2 * step
            if isinstance(network, DenoisingEnergy):
                step = network.sigma**2 * step
            total += float((noisy + step - x.to(device)).square().mean(dim=(1, 2, 3)).sum())
        result[f"{sigma:g}"] = round(math.sqrt(total / len(clean)), 5)
    return result
