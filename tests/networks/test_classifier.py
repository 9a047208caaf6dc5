import pytest
import torch
from torch import nn

from metastable.networks.classifier import WhitenedNet, WideResNet


def test_whitening_makes_patches_white() -> None:
    torch.manual_seed(0)
    # Correlated images: neighbouring pixels share most of their value.
    images = nn.functional.avg_pool2d(torch.rand(200, 3, 36, 36), 5, 1)
    network = WhitenedNet(widths=(8, 8, 8))
    network.fit_whitening(images, eps=0.0)
    out = network.whiten(network.normalize(images))[:, :12]
    flat = out.permute(1, 0, 2, 3).reshape(12, -1)
    second = flat @ flat.T / flat.shape[1]
    assert torch.allclose(second, torch.eye(12), atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("network", [WhitenedNet(widths=(8, 8, 8)), WideResNet(10, 1, flip_average=True)])
def test_flip_averaging_makes_mirror_images_equal(network: nn.Module) -> None:
    x = torch.rand(3, 3, 32, 32)
    network.eval()
    with torch.inference_mode():
        assert torch.allclose(network(x), network(x.flip(3)), atol=1e-5)
    network.train()
    assert network(x).shape == (3, 10)


def test_wide_resnet_has_the_papers_size() -> None:
    with torch.device("meta"):
        network = WideResNet(28, 10)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(36.5e6, rel=0.005)
    with pytest.raises(ValueError, match="depth"):
        WideResNet(27, 1)


def test_silu_is_smooth_where_relu_is_not() -> None:
    torch.manual_seed(0)
    made = {name: WideResNet(10, 1, activation=name).eval() for name in ("relu", "silu")}
    made["silu"].load_state_dict(made["relu"].state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert not torch.allclose(made["relu"](x), made["silu"](x))
    with pytest.raises(ValueError, match="activation"):
        WideResNet(10, 1, activation="gelu")  # type: ignore[arg-type]
