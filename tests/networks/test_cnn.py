import torch

from metastable.networks.cnn import Cnn


def test_the_parameters_are_those_of_the_papers_table() -> None:
    # Table 5 without padding: 28 -> 26 -> 11, so the first linear layer sees 64 * 11 * 11 numbers.
    wanted = (9 + 1) * 128 + (25 * 128 + 1) * 64 + (64 * 121 + 1) * 128 + (128 + 1) * 10
    network = Cnn()
    assert sum(p.numel() for p in network.parameters()) == wanted
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_other_images_classes_and_widths() -> None:
    assert Cnn(classes=3, channels=3, size=32, widths=(4, 5, 6))(torch.rand(2, 3, 32, 32)).shape == (2, 3)
