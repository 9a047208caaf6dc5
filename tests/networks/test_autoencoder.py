import pytest
import torch

from metastable.networks.autoencoder import Autoencoder


def test_sizes_are_kept_and_the_score_is_the_residual_over_the_variance() -> None:
    torch.manual_seed(0)
    network = Autoencoder(variance=0.15)
    x = torch.rand(3, 1, 28, 28)
    made = network(x)
    assert made.shape == x.shape
    assert made.abs().max() < 1
    assert torch.allclose(network.score(x), (made - x) / 0.15)


def test_the_parameters_are_those_of_the_papers_table() -> None:
    # kernels and biases of Table 6: 5x5 1->10, 5x5 10->25, 9x9 25->10, 1x1 10->1, 5x5 1->1
    wanted = (250 + 10) + (6250 + 25) + (20250 + 10) + (10 + 1) + (25 + 1)
    assert sum(p.numel() for p in Autoencoder().parameters()) == wanted == 26_832


def test_colour_images_and_a_wrong_variance() -> None:
    assert Autoencoder(3)(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="variance"):
        Autoencoder(variance=0.0)
