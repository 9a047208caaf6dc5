import torch

from metastable.networks.score import ScoreNetwork


def test_sizes_shapes_and_names() -> None:
    network = ScoreNetwork()
    assert 1_000_000 < sum(p.numel() for p in network.parameters()) < 3_000_000
    x = torch.rand(2, 3, 32, 32)
    assert network(x).shape == x.shape
    assert torch.equal(network.score(x), network(x))
    assert torch.equal(network.denoise(x), x + network(x))


def test_full_size_option_has_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        network = ScoreNetwork(widths=(128, 256, 512), blocks=2)
    assert 25e6 < sum(p.numel() for p in network.parameters()) < 40e6


def test_rows_do_not_influence_each_other() -> None:
    torch.manual_seed(0)
    network = ScoreNetwork(1, widths=(4, 8, 8)).double()
    x = torch.rand(3, 1, 28, 28, dtype=torch.double)
    assert torch.allclose(network(x)[1:2], network(x[1:2]), atol=1e-14)
