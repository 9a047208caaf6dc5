import dataclasses
import math
from pathlib import Path

import pytest
import torch

from metastable import datasets
from metastable.errors import DataError
from metastable.networks.denoising_energy import DenoisingEnergy
from metastable.networks.energy import EnergyNetwork
from metastable.networks.score import ScoreNetwork
from metastable.training import score
from metastable.training.score import DenoisingEnergyConfig, EnergyDsmConfig, ScoreConfig


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant images of random grey: a denoiser can remove nearly all noise."""

    def load(name: str, root: Path, split: str) -> datasets.ImageSet:
        rng = torch.Generator().manual_seed(len(split))
        grey = torch.randint(60, 200, (64, 1, 1, 1), generator=rng, dtype=torch.uint8)
        images = grey.expand(64, 3, 32, 32).contiguous()
        return datasets.ImageSet(name, split, images, torch.zeros(64).long(), datasets.CIFAR10_CLASSES)

    monkeypatch.setattr(datasets, "load", load)


def test_the_loss_is_zero_for_the_exact_score() -> None:
    """For known noise the score network's target is -sigma n and the energy's -n / sigma."""
    noise, sigma = torch.randn(4, 3, 32, 32), torch.full((4, 1, 1, 1), 0.2)

    class Exact(ScoreNetwork):
        def score(self, x: torch.Tensor) -> torch.Tensor:
            return -sigma * noise

    class ExactEnergy(EnergyNetwork):
        def score(self, x: torch.Tensor) -> torch.Tensor:
            return -noise / sigma

    class ExactDenoising(DenoisingEnergy):
        def score(self, x: torch.Tensor) -> torch.Tensor:
            return -sigma * noise / self.sigma**2

    denoising = ExactDenoising(widths=(4, 4), sigma=0.3)
    for network in (Exact(widths=(4, 4, 4)), ExactEnergy(features=4), denoising):
        loss = score.dsm_loss(network, noise, noise, sigma)
        assert loss.shape == (4,)
        assert loss.max() < 1e-9


def test_a_network_that_says_nothing_has_loss_one() -> None:
    network = ScoreNetwork(widths=(4, 4, 4))
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    noise, sigma = torch.randn(64, 3, 32, 32), torch.full((64, 1, 1, 1), 0.05)
    assert float(score.dsm_loss(network, noise, noise, sigma).mean().detach()) == pytest.approx(1, abs=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_score_network_learns_to_denoise(tmp_path: Path) -> None:
    config = ScoreConfig(widths="8,8,8", updates=60, warmup=5, batch=8, bf16=False, lr=1e-2, ema=0.9)
    result = score.train_score(config, tmp_path, tmp_path / "run", "cpu")
    for sigma, error in result["denoising"].items():
        assert error < 0.6 * float(sigma)


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_an_energy_learns_to_denoise_through_its_gradient(tmp_path: Path) -> None:
    config = EnergyDsmConfig(features=8, updates=150, warmup=5, batch=8, lr=3e-3, sigma_min=0.15, ema=0.9)
    result = score.train_energy(config, tmp_path, tmp_path / "run", "cpu")
    assert result["denoising"]["0.2"] < 0.8 * 0.2
    assert math.isfinite(result["training_minutes"])


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_an_energy_by_construction_learns_to_denoise_and_goes_on_from_its_weights(tmp_path: Path) -> None:
    config = DenoisingEnergyConfig(
        widths="8,8", sigma=0.1, warm=60, updates=120, warmup=5, batch=8, lr=3e-3, ema=0.9
    )
    result = score.train_denoising_energy(config, tmp_path, tmp_path / "run", "cpu")
    assert result["denoising"]["0.1"] < 0.8 * 0.1
    start = str(tmp_path / "run" / "weights.safetensors")
    more = dataclasses.replace(config, warm=0, updates=1, lr=1e-9, start=start)
    again = score.train_denoising_energy(more, tmp_path, tmp_path / "more", "cpu")
    assert again["denoising"]["0.1"] == pytest.approx(result["denoising"]["0.1"], abs=1e-4)
    for wrong in (tmp_path / "none", tmp_path / "run" / "config.json"):
        with pytest.raises(DataError, match="holds no weights of such a network"):
            score.train_denoising_energy(
                dataclasses.replace(more, start=str(wrong)), tmp_path, tmp_path / wrong.stem, "cpu"
            )


def test_batches_depend_on_seed_and_step_only() -> None:
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    config = ScoreConfig(batch=4)
    one, other = (score._batch(images, config, 5, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], score._batch(images, config, 6, True)[0])
    assert ((one[2] >= config.sigma_min) & (one[2] <= config.sigma_max)).all()


def test_clipped_noise_is_what_the_loss_asks_to_undo() -> None:
    """A batch of --clip lies in [0, 1], and its noise is still the way from the clean image."""
    images = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    config = ScoreConfig(dataset="mnist", batch=8, sigma_min=0.3, sigma_max=1.0)
    noisy, noise, sigma = score._batch(images, dataclasses.replace(config, clip=True), 3, False)
    free, free_noise, _ = score._batch(images, config, 3, False)
    torch.testing.assert_close(noisy, free.clamp(0, 1))
    torch.testing.assert_close(noisy - sigma * noise, free - sigma * free_noise)
    assert (noise.mean() - free_noise.mean()).abs() > 0.1
