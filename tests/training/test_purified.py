from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from metastable import bundle, datasets
from metastable.errors import BundleError, DataError
from metastable.networks.cnn import Cnn
from metastable.networks.energy import EnergyNetwork
from metastable.training import purified
from metastable.training.purified import PurifiedConfig, rejuvenate

SETTINGS = "default: none\ncaps: {chains: 1, steps: 1}\nsettings:\n  none: {dynamics: none}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    bundle.write(
        tmp_path / "bundle",
        name="small",
        version="1",
        classes=list(datasets.MNIST_CLASSES),
        shape=(1, 28, 28),
        networks={
            "classifier": (Cnn(widths=(2, 2, 4)), {"widths": [2, 2, 4]}),
            "energy": (EnergyNetwork(1, 28, 2), {"channels": 1, "size": 28, "features": 2}),
        },
        settings=SETTINGS,
        anomaly=None,
    )
    return tmp_path / "bundle"


def test_rejuvenation_replaces_its_share() -> None:
    old, clean = torch.ones(4000, 1, 1, 1), torch.zeros(4000, 1, 1, 1)
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(rejuvenate(old, clean, 0.0, rng), old)
    assert torch.equal(rejuvenate(old, clean, 1.0, rng), clean)
    assert abs(float(rejuvenate(old, clean, 0.25, rng).mean()) - 0.75) < 0.03


@pytest.mark.slow
@pytest.mark.usefixtures("bars")
def test_it_learns_while_the_bank_moves_inside_the_ball(tmp_path: Path, folder: Path) -> None:
    config = PurifiedConfig(
        network="cnn-4-4-8", bundle=str(folder), updates=40, batch=32, eps=0.1, warmup=2, lr=0.02, ema=0.8
    )
    result = purified.train(config, tmp_path, tmp_path / "run", "cpu")
    assert result["natural"] > 0.9
    assert result["purified"] > 0.9
    assert 0.03 < result["mean_distance"] <= 0.1 + 1e-5
    bank = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["extra"]["bank"]
    assert 0 <= float(bank.min()) <= float(bank.max()) <= 1
    before = load_file(tmp_path / "run" / "weights.safetensors")
    assert (
        purified.train(config, tmp_path, tmp_path / "run", "cpu")["mean_distance"] == result["mean_distance"]
    )
    after = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.usefixtures("bars")
def test_it_begins_with_the_bundles_classifier(tmp_path: Path, folder: Path) -> None:
    few: dict[str, Any] = {
        "bundle": str(folder),
        "updates": 1,
        "batch": 8,
        "lr": 1e-9,
        "begin": True,
        "denoise": 0.1,
    }
    purified.train(PurifiedConfig(network="cnn-2-2-4", **few), tmp_path, tmp_path / "run", "cpu")
    found, wanted = load_file(tmp_path / "run" / "weights.safetensors"), bundle.load(folder).classifier
    for name, one in wanted.state_dict().items():
        torch.testing.assert_close(found[name], one, rtol=0, atol=1e-3)
    with pytest.raises(DataError, match="is not of the network cnn-4-4-8"):
        purified.train(PurifiedConfig(network="cnn-4-4-8", **few), tmp_path, tmp_path / "other", "cpu")


@pytest.mark.usefixtures("bars")
def test_a_network_that_is_not_there_and_impossible_settings(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BundleError, match="no network 'short_run'"):
        purified.train(
            PurifiedConfig(bundle=str(folder), energy="short_run"), tmp_path, tmp_path / "r", "cpu"
        )
    with pytest.raises(ValueError, match="rejuvenation"):
        PurifiedConfig(rejuvenation=2.0)
    with pytest.raises(ValueError, match="steps"):
        PurifiedConfig(steps=0)
