import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

from export.adapt import adapt, from_module, from_timm, modules, same_as_module
from metastable.errors import BundleError, MissingPackage
from tests.export.adapt.graphs import BIAS, WEIGHTS, adapted, classifier, logits, noise, said
from tests.networks.brought import Separable, seen


def trained() -> nn.Module:
    """In training mode, with dropout, and in float16 as its owner left it."""
    torch.manual_seed(0)
    return nn.Sequential(seen(Separable(), 16), nn.Dropout(0.5)).train()


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "trace"])
def test_a_module_is_exported_rightly(exporter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = trained()
    if exporter == "trace":
        monkeypatch.setattr(modules, "_by_dynamo", broken)
    found = adapt(from_module(module, (3, 16, 16)))
    assert module.training  # it is left as it was
    assert found.changes == ()
    for n in (1, 5):
        x = noise(found, n)
        with torch.no_grad():
            wanted = module.eval()(torch.from_numpy(x)).numpy()
        module.train()
        assert_allclose(logits(found, x), wanted, rtol=1e-4, atol=1e-4)
    assert same_as_module(module.eval(), found, torch.from_numpy(noise(found))) is None


def broken(*_: Any) -> bytes:
    raise RuntimeError("no such operator")


def wrong(*_: Any) -> bytes:
    return classifier().SerializeToString()


def test_a_graph_that_differs_from_its_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "_by_dynamo", broken)
    monkeypatch.setattr(modules, "_by_trace", wrong)
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    with pytest.raises(BundleError, match=r"dynamo: no such operator; the older.* differs .*largest"):
        from_module(module, (3, 8, 8))
    with pytest.raises(BundleError, match="inf of the largest"):
        from_module(module[:2], (3, 8, 8))


class Ended(nn.Module):
    """What `classifier` computes, with an end and an error."""

    def __init__(self, end: nn.Module, error: float = 0.0) -> None:
        super().__init__()
        self.end, self.error = end, error

    def forward(self, x: Tensor) -> Tensor:
        z = x.mean((2, 3)) @ torch.from_numpy(WEIGHTS) + torch.from_numpy(BIAS)
        out: Tensor = self.end(z * (1 + self.error))
        return out


@pytest.mark.parametrize("end", [nn.Identity(), nn.Softmax(1)])
def test_logits_are_compared_with_the_module(end: nn.Module) -> None:
    found = adapted(classifier(), range=(0.0, 255.0))
    images = torch.from_numpy(noise(found))
    assert same_as_module(Ended(end), found, images / 255) is None
    warning = same_as_module(Ended(end, error=0.2), found, images / 255)
    assert warning is not None
    assert "differ from the module's" in warning
    assert "of 5 labels" in warning


def test_other_numbers_of_classes_are_a_warning() -> None:
    found = adapted(classifier())
    warning = same_as_module(First(), found, torch.rand(2, 3, 8, 8))
    assert warning == "the graph gives 10 numbers an image and the module 3"


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_logit_is_compared(sigmoid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "_by_dynamo", broken)

    class Reddish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = 3 * x.mean((2, 3))[:, :1] - 1
            return z.sigmoid() if sigmoid else z

    found = adapt(from_module(Reddish(), (3, 8, 8)))
    assert "two classes" in said(found)
    assert same_as_module(Reddish(), found, torch.from_numpy(noise(found))) is None
    assert np.isfinite(logits(found, noise(found))).all()


def test_timm_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackage, match="network resnet18 needs the package timm: pip install timm"):
        from_timm("resnet18", tmp_path / "weights.safetensors")
