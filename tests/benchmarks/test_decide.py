from pathlib import Path

import pytest
import torch

from benchmarks import decide
from benchmarks.stopping_simulation import REFERENCE
from metastable import datasets
from metastable.bundle import Bundle
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import DataError, MetastableError
from metastable.stopping import Stopping

CONFIG = decide.DecideConfig("fast", 3, 0, "tiny")


@pytest.fixture
def test_set() -> datasets.ImageSet:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return datasets.ImageSet("noise", "test", images, torch.arange(3), list(datasets.CIFAR10_CLASSES))


@pytest.mark.slow
def test_early_answers_are_counted_against_all_chains(
    tiny: Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    recordings = decide.record(tiny, test_set, CONFIG, tmp_path / "work")
    assert recordings["pgd"].outputs.shape == (3, REFERENCE, 10)
    again = decide.record(tiny, test_set, CONFIG, tmp_path / "work")
    assert torch.equal(again["natural"].outputs, recordings["natural"].outputs)
    with pytest.raises(DataError, match="another configuration"):
        decide.record(tiny, test_set, decide.DecideConfig("fast", 3, 1, "tiny"), tmp_path / "work")
    runner = TorchRunner(tiny.networks, tiny.classifier)
    picture = tmp_path / "decide.png"
    found = decide.measure(
        tiny, runner, recordings, CONFIG, stopping=Stopping(), caps=(12, 150), timed=1, picture=picture
    )
    assert [(row["images"], row["cap"]) for row in found["rows"]] == [
        ("natural", 12), ("pgd", 12), ("natural", 150), ("pgd", 150)
    ]  # fmt: skip
    for row in found["rows"]:
        assert 6 <= row["mean"] <= row["cap"]
        assert row["agreement"] == 1 or row["cap"] == 12
    assert all(row["fewer"] >= 1 for row in found["rows"])
    assert found["rounds_ms"]["policy"] > 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    none = decide.DecideConfig("none", 3, 0, "tiny")
    with pytest.raises(MetastableError, match="runs no chains"):
        decide.measure(tiny, runner, recordings, none, stopping=Stopping(), caps=(12,), timed=1, picture=None)


@pytest.mark.parametrize("text", ["0", "151", "many", ""])
def test_impossible_caps_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decide.sizes(text)
