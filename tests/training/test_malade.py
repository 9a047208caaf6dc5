from pathlib import Path

import pytest
import torch

from metastable.errors import DataError
from metastable.training import classifier, malade
from metastable.training.classifier import ClassifierConfig
from metastable.training.malade import MaladeConfig, sdae_loss


def test_the_loss_by_hand() -> None:
    made, clean = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 2.0]]], [[[0.0, 3.0]]]])
    logits, labels = torch.tensor([[0.0, 0.0], [1000.0, 0.0]]), torch.tensor([0, 0])
    wanted = torch.tensor([5.0 + 2 * 0.15 * torch.log(torch.tensor(2.0)).item(), 9.0])
    assert torch.allclose(sdae_loss(made, clean, labels, 0.15, logits), wanted)
    assert torch.allclose(sdae_loss(made, clean, labels, 0.15, None), torch.tensor([5.0, 9.0]))


def test_it_needs_a_classifier_that_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--classifier"):
        MaladeConfig()
    with pytest.raises(DataError, match="no finished classifier run"):
        classifier.trained(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("bars")
def test_it_learns_to_denoise_for_the_classifier_and_resumes(tmp_path: Path) -> None:
    small = ClassifierConfig(
        dataset="mnist", network="cnn-4-4-8", epochs=40, batch=32, lr=2.0, label_smoothing=0.0, bf16=False
    )
    assert classifier.train(small, tmp_path, tmp_path / "f", "cpu")["test_accuracy"] > 0.9
    config = MaladeConfig(
        classifier=str(tmp_path / "f"), plain=50, updates=150, batch=16, lr=0.01, warmup=5, ema=0.9
    )
    result = malade.train(config, tmp_path, tmp_path / "a", "cpu")
    assert result["reconstructions_right"] > 0.75
    assert result["denoising"] < 0.5 * 0.15**0.5
    again = malade.train(config, tmp_path, tmp_path / "a", "cpu")
    assert again["denoising"] == result["denoising"]
    plain = MaladeConfig(supervised=False, updates=3, batch=4)
    assert "reconstructions_right" not in malade.train(plain, tmp_path, tmp_path / "p", "cpu")
