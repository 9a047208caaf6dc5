import pytest
import torch

from export import graphs
from metastable.networks.unshuffled import UnshuffledUNet


def small(seed: int = 0) -> UnshuffledUNet:
    """A network whose every block does something: fresh ones start as the identity."""
    torch.manual_seed(seed)
    network = UnshuffledUNet((4, 6, 8), 1).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.requires_grad_(False)


@pytest.mark.slow
def test_sizes_and_names() -> None:
    network = UnshuffledUNet()
    assert 300_000 < sum(p.numel() for p in network.parameters()) < 1_000_000
    x = torch.rand(2, 3, 16, 24)
    assert torch.equal(network.score(x), network(x))
    assert torch.equal(network.denoise(x), x + network(x))


@pytest.mark.parametrize("size", [(1, 1), (3, 12), (8, 8), (9, 15), (13, 31), (32, 17), (135, 48)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_of_gray_and_colour_keeps_its_shape(size: tuple[int, int], channels: int) -> None:
    x = torch.rand(2, channels, *size)
    made = small()(x)
    assert made.shape == x.shape
    assert made.isfinite().all()
    assert made.std() > 0


def test_gray_is_colour_with_equal_channels() -> None:
    network, x = small().double(), torch.rand(2, 1, 16, 16, dtype=torch.double)
    torch.testing.assert_close(network(x), network(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True))


def test_rows_do_not_influence_each_other() -> None:
    network, x = small().double(), torch.rand(3, 3, 24, 16, dtype=torch.double)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=0, atol=1e-12)


def test_a_shift_by_eight_pixels_shifts_what_is_far_from_the_edges() -> None:
    network, x = small().double(), torch.rand(1, 3, 160, 160, dtype=torch.double)
    moved = network(x.roll((8, 16), dims=(2, 3))).roll((-8, -16), dims=(2, 3))
    inside = (..., slice(64, 80), slice(64, 80))
    torch.testing.assert_close(moved[inside], network(x)[inside], rtol=0, atol=1e-12)
    assert not torch.allclose(moved, network(x))  # at the edges it cannot


def test_padding_changes_nothing_far_from_the_edges() -> None:
    network, x = small().double(), torch.rand(1, 3, 160, 160, dtype=torch.double)
    cut = network(x[..., :155, :153])
    torch.testing.assert_close(cut[..., :80, :80], network(x)[..., :80, :80], rtol=0, atol=1e-12)


def test_gradients_reach_every_weight_and_the_image() -> None:
    network = UnshuffledUNet((4, 6, 8), 1).requires_grad_(True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.rand(1, 3, 11, 13, requires_grad=True)
    network(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert x.grad is not None
    assert (x.grad.abs().sum(1) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 24, 24), (3, 21, 37), (1, 28, 28)])
def test_exported_graphs_agree_at_a_static_shape(shape: tuple[int, int, int]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    openvino = pytest.importorskip("openvino")
    network, x = small(), torch.rand(2, *shape)
    expected = network(x).numpy()
    graph = graphs.export(network, shape, "score")
    session = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    [made] = session.run(None, {graphs.INPUT: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(made), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    core = openvino.Core()
    model = core.read_model(graph)
    model.reshape([len(x), *shape])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    torch.testing.assert_close(
        torch.from_numpy(compiled([x.numpy()])[0]), torch.from_numpy(expected), rtol=1e-4, atol=1e-5
    )
