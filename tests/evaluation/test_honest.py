import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metastable import benign, bundle, datasets
from metastable.errors import BundleError, DataError
from metastable.evaluation import __main__ as command
from metastable.evaluation import honest


def config(**fields: object) -> honest.HonestConfig:
    wanted: dict[str, object] = {
        "settings": ("none", "fast"),
        "changes": ("clean", "noise4"),
        "n": 8,
        "judged": 4,
    }
    return honest.HonestConfig(**(wanted | fields))  # type: ignore[arg-type]


@pytest.fixture
def test_set(tiny: bundle.Bundle) -> datasets.ImageSet:
    """Eight images, the first three labelled as the bare classifier sees them, the fourth otherwise."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=rng)
    with torch.no_grad():
        labels = tiny.classifier(datasets.to_float(images)).argmax(1)
    labels[3] = (labels[3] + 1) % 10
    return datasets.ImageSet("noise", "test", images, labels, [])


@pytest.mark.slow
def test_flags_and_right_answers_are_counted(tiny: bundle.Bundle, test_set: datasets.ImageSet) -> None:
    assert tiny.anomaly is not None
    norms = tiny.scores["score"](datasets.to_float(test_set.images)).flatten(1).norm(dim=1)
    threshold = float(norms.sort().values[4:6].mean())  # three lie above
    changed = dataclasses.replace(tiny, anomaly=dataclasses.replace(tiny.anomaly, threshold=threshold))
    rows = honest.measure(changed, test_set, config())
    assert [row["change"] for row in rows] == ["clean", "noise4"]
    assert rows[0]["flagged"][0] == 0.375
    assert rows[0]["flagged"][1] < 0.375 < rows[0]["flagged"][2]
    assert rows[0]["right"]["none"][0] == 0.75
    assert rows == honest.measure(changed, test_set, config())
    assert "| uniform noise of 4/255 | `noise4` |" in honest.markdown(rows)


@pytest.mark.slow
def test_tables_and_pictures_with_and_without_settings(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    for asked in (config(), config(settings=(), judged=0)):
        rows = honest.measure(tiny, test_set, asked)
        assert honest.markdown(rows).count("\n") == 4
        honest.draw(rows, 0.05, tmp_path / "h.png")
        assert (tmp_path / "h.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("wrong", [{"n": 9}, {"judged": 9}, {"judged": -1}, {"changes": ("swirl",)}])
def test_what_does_not_fit_is_refused(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, wrong: dict[str, object]
) -> None:
    with pytest.raises(DataError, match=r"do not fit|choose from"):
        honest.measure(tiny, test_set, config(**wrong))
    with pytest.raises(BundleError, match="calibrate"):
        honest.measure(dataclasses.replace(tiny, anomaly=None), test_set, config())


@pytest.mark.slow
def test_the_command_writes_all_three_files(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "cifar-10-batches-bin"
    data.mkdir()
    records = np.random.default_rng(0).integers(0, 256, (20, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    (data / "test_batch.bin").write_bytes(records.tobytes())
    out = tmp_path / "o" / "honest.json"
    arguments = ["x", "honest", "--bundle", str(tiny_folder), "--data", str(tmp_path), "--n", "20"]
    monkeypatch.setattr("sys.argv", [*arguments, "--judged", "2", "--out", str(out)])
    command.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["change"] for row in printed["rows"]] == list(benign.CHANGES)
    assert printed["config"]["settings"] == ["none", "fast"]
    assert printed["config"]["n"] == 20
    assert printed["machine"]
    assert json.loads(out.read_text()) == printed
    assert out.with_suffix(".md").exists()
    assert out.with_suffix(".png").exists()
    monkeypatch.setattr("sys.argv", [*arguments, "--changes", "swirl"])
    with pytest.raises(SystemExit):
        command.main()
    assert "noise4" in capsys.readouterr().err
