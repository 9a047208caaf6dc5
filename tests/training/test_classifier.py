import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metastable import datasets
from metastable.networks.cnn import Cnn
from metastable.training import classifier
from metastable.training.classifier import ClassifierConfig, augment
from metastable.training.run import Run


def test_augmented_images_are_shifted_windows_and_mirror_by_epoch() -> None:
    images = torch.rand(6, 3, 8, 8)
    none = torch.zeros(6, dtype=torch.bool)
    still = augment(images, 0, 0, none, torch.Generator().manual_seed(0))
    assert torch.equal(still, images)
    assert torch.equal(augment(images, 1, 0, none, torch.Generator().manual_seed(0)), images.flip(3))
    shifted = augment(images, 0, 2, none, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (2,) * 4, mode="reflect")
    for one, wide in zip(shifted, padded, strict=True):
        windows = [wide[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
        assert any(torch.equal(one, w) for w in windows)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two colours, ten labels of which two occur: learnable in a few updates."""

    def load(name: str, root: Path, split: str) -> datasets.ImageSet:
        rng = torch.Generator().manual_seed(len(split))
        labels = torch.arange(96) % 2
        images = torch.randint(0, 100, (96, 3, 32, 32), generator=rng) + 150 * labels.view(-1, 1, 1, 1)
        return datasets.ImageSet(name, split, images.to(torch.uint8), labels, datasets.CIFAR10_CLASSES)

    monkeypatch.setattr(datasets, "load", load)


SMALL = ClassifierConfig(epochs=4, batch=32, bf16=False, lr=3.0)


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_it_learns_and_a_resumed_run_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = classifier.train(SMALL, tmp_path, tmp_path / "a", "cpu")
    assert result["test_accuracy"] > 0.9
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["test_n"] == 96

    class Stop(Exception):
        pass

    updates = 0
    step = torch.optim.SGD.step

    def interrupted(self: torch.optim.SGD, *args: object) -> None:
        nonlocal updates
        updates += 1
        if updates == 6:
            raise Stop
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", interrupted)
        patch.setattr("metastable.training.classifier.Run", _eager_run)
        with pytest.raises(Stop):
            classifier.train(SMALL, tmp_path, tmp_path / "b", "cpu")
    classifier.train(SMALL, tmp_path, tmp_path / "b", "cpu")
    one, other = (classifier_weights(tmp_path / name) for name in "ab")
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-5), name


def _eager_run(folder: Path, config: ClassifierConfig) -> Run:
    return Run(folder, config, every_s=0.0)  # a checkpoint after every update


def classifier_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


@pytest.mark.slow
def test_adversarial_batches_are_harder_and_inside_their_share_of_the_ball() -> None:
    torch.manual_seed(0)
    network = Cnn(widths=(4, 4, 8))
    x, y = torch.rand(8, 1, 28, 28), torch.arange(8)
    config = ClassifierConfig(dataset="mnist", network="cnn-4-4-8", adversarial=0.2, attack_steps=5)
    moved = {share: classifier._attacked(network, x, y, config, 3, share) for share in (0.5, 1.0)}
    losses = [torch.nn.functional.cross_entropy(network(z), y) for z in (x, moved[0.5], moved[1.0])]
    assert losses[0] < losses[1] < losses[2]
    for share, z in moved.items():
        assert 0.8 * 0.2 * share < float((z - x).abs().max()) <= 0.2 * share + 1e-6
    assert torch.equal(moved[1.0], classifier._attacked(network, x, y, config, 3, 1.0))


@pytest.mark.slow
def test_adversarial_training_of_digits_learns(tmp_path: Path, bars: None) -> None:
    config = ClassifierConfig(
        dataset="mnist", network="cnn-4-4-8", epochs=40, batch=32, lr=2.0, label_smoothing=0.0,
        adversarial=0.2, attack_steps=2, bf16=False,
    )  # fmt: skip
    assert classifier.train(config, tmp_path, tmp_path / "run", "cpu")["test_accuracy"] > 0.9
    network = classifier.trained(tmp_path / "run")
    test = datasets.load("mnist", tmp_path, "test")
    assert classifier.accuracy(network, test) > 0.9


def test_a_ball_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="adversarial"):
        ClassifierConfig(adversarial=-0.1)


def test_digits_are_not_mirrored() -> None:
    images = torch.rand(4, 1, 8, 8)
    for epoch in (0, 1):
        assert torch.equal(augment(images, epoch, 0, None, torch.Generator().manual_seed(0)), images)
