import json
import zipfile
from pathlib import Path

import pytest
import torch

from export import __main__ as command
from export import mar, runs
from metastable import bundle
from metastable.bundle.parts import stored_part
from metastable.errors import BundleError
from metastable.networks.autoencoder import Autoencoder
from metastable.networks.classifier import WhitenedNet
from metastable.networks.cnn import Cnn
from metastable.networks.denoising_energy import DenoisingEnergy
from metastable.networks.energy import EnergyNetwork
from metastable.networks.score import ScoreNetwork
from metastable.training.classifier import ClassifierConfig
from metastable.training.energy import EnergyMlConfig
from metastable.training.energy_update import DeviceConfig
from metastable.training.malade import MaladeConfig
from metastable.training.run import Run
from metastable.training.score import DenoisingEnergyConfig, EnergyDsmConfig, ScoreConfig

SETTINGS = "default: a\ncaps: {chains: 1, steps: 1}\nsettings:\n  a: {dynamics: none}\n"


@pytest.fixture
def run_folders(tmp_path: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    made = {
        "classifier": (ClassifierConfig(), WhitenedNet()),
        "score": (ScoreConfig(widths="4,8,8"), ScoreNetwork(widths=(4, 8, 8))),
        "energy": (EnergyDsmConfig(features=4), EnergyNetwork(features=4)),
    }
    for part, (config, network) in made.items():
        Run(tmp_path / part, config).finish(network, {})
    return {part: tmp_path / part for part in made}


def test_a_bundle_from_runs_computes_what_was_trained(run_folders: dict[str, Path], tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(SETTINGS)
    runs.build(run_folders, settings, "cifar10", tmp_path / "bundle")
    loaded = bundle.load(tmp_path / "bundle")
    x = torch.rand(4, 3, 32, 32)
    network, _ = runs.network_of("classifier", run_folders["classifier"])
    with torch.inference_mode():
        assert torch.allclose(loaded.classifier(x), network.eval()(x), atol=2e-2)  # float16 storage
    assert loaded.anomaly is None
    assert set(loaded.scores) == {"score", "energy"}


def test_an_energy_that_denoises_goes_into_a_bundle(run_folders: dict[str, Path], tmp_path: Path) -> None:
    network = DenoisingEnergy(widths=(4, 6), sigma=0.1)
    Run(tmp_path / "by", DenoisingEnergyConfig(widths="4,6", sigma=0.1)).finish(network, {})
    settings = tmp_path / "settings.yaml"
    settings.write_text(SETTINGS)
    runs.build(run_folders | {"energy": tmp_path / "by"}, settings, "cifar10", tmp_path / "bundle")
    found = bundle.load(tmp_path / "bundle").networks["energy"]
    assert isinstance(found, DenoisingEnergy)
    assert found.sigma == 0.1
    x = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(found.score(x), network.score(x), rtol=1e-2, atol=0.5)  # float16 storage


def test_parts_of_another_bundle_are_kept_as_they_are(
    run_folders: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(SETTINGS)
    out, energy = tmp_path / "bundle", {"energy": run_folders["energy"]}
    runs.build(energy, settings, "both", out, base=tiny_folder, kept=["classifier", "score"])
    made, base = bundle.load(out), bundle.load(tiny_folder)
    assert (made.classes, made.shape, made.fit) == (base.classes, base.shape, base.fit)
    for part in ("classifier", "score"):
        assert stored_part(out, part) == stored_part(tiny_folder, part)
    assert stored_part(out, "energy").data != stored_part(tiny_folder, "energy").data
    with pytest.raises(BundleError, match="energy: take it from a run or from the base"):
        runs.build(energy, settings, "both", out, base=tiny_folder, kept=["energy"])
    with pytest.raises(BundleError, match="no part 'purifier'"):
        runs.build(energy, settings, "both", out, base=tiny_folder, kept=["purifier"])


def test_a_bundle_of_digits_from_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = {
        "classifier": (ClassifierConfig(dataset="mnist", network="cnn-2-3-4"), Cnn(widths=(2, 3, 4))),
        "autoencoder": (MaladeConfig(classifier="f", variance=0.1), Autoencoder(variance=0.1)),
        "short_run": (EnergyMlConfig(dataset="mnist", features=2), EnergyNetwork(1, 28, 2)),
        "energy": (
            DeviceConfig(dataset="mnist", features=2, activation="silu"),
            EnergyNetwork(1, 28, 2, "silu"),
        ),
    }
    for part, (config, network) in made.items():
        Run(tmp_path / part, config).finish(network, {})
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    runs.build({part: tmp_path / part for part in made}, tmp_path / "settings.yaml", "digits", tmp_path / "b")
    loaded = bundle.load(tmp_path / "b")
    assert (loaded.shape, loaded.classes[9]) == ((1, 28, 28), "9")
    x = torch.rand(2, 1, 28, 28)
    for part, (_, network) in made.items():
        run = loaded.classifier if part == "classifier" else loaded.scores[part]
        wanted = network if part == "classifier" else network.score
        assert torch.allclose(run(x), wanted(x), atol=2e-2)  # float16 storage


def test_a_run_without_weights_is_refused_and_one_that_kept_some_is_taken(tmp_path: Path) -> None:
    folder, network = tmp_path / "half", ScoreNetwork(widths=(4, 8, 8))
    with pytest.raises(BundleError, match="holds no run"):
        runs.network_of("score", folder)
    run = Run(folder, ScoreConfig(widths="4,8,8"))
    with pytest.raises(BundleError, match="holds no weights"):
        runs.network_of("score", folder)
    run.keep(network, now=True)
    found, _ = runs.network_of("score", folder)
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value.half().float())


@pytest.mark.slow
def test_the_archive_holds_all_that_a_worker_imports(tiny_folder: Path, root: Path, tmp_path: Path) -> None:
    archive = tmp_path / "metastable.mar"
    digest = mar.build(tiny_folder, root / "model-config.yaml", archive)
    assert len(digest) == 64
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
        manifest = json.loads(packed.read("MAR-INF/MANIFEST.json"))
        assert packed.read("bundle/bundle.json") == (tiny_folder / "bundle.json").read_bytes()
    assert manifest["model"]["modelName"] == "metastable"
    assert manifest["model"]["modelVersion"] == "1.2"
    assert {"handler.py", "handlers/service.py", "metastable/dynamics/adp.py"} <= set(names)
    assert not [n for n in names if "training" in n or "__pycache__" in n or n.endswith(".pt")]


def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["x", "mar", "--bundle", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert "bundle.json is missing" in capsys.readouterr().err
