import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metastable import bundle, datasets
from metastable.errors import DataError
from metastable.evaluation import __main__ as command
from metastable.evaluation import outcomes, report, table


@pytest.fixture
def test_set() -> datasets.ImageSet:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return datasets.ImageSet("noise", "test", images, torch.arange(10), list(datasets.CIFAR10_CLASSES))


def config(**changes: object) -> table.TableConfig:
    return table.TableConfig(**{"settings": ("none", "fast"), "n": 10, "steps": 2, **changes})  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_interrupted_table_goes_on_and_gives_the_same_result(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    whole = table.measure(tiny, test_set, config(), tmp_path / "a")
    lines = (tmp_path / "a" / "outcomes.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 2 * 10
    (tmp_path / "b").mkdir()
    # Stopped in the middle of writing line 24.
    (tmp_path / "b" / "outcomes.jsonl").write_text("\n".join(lines[:23]) + "\n" + lines[23][:17])
    resumed = table.measure(tiny, test_set, config(), tmp_path / "b")

    def strip(summary: dict[str, object]) -> str:
        rows = summary["rows"]
        assert isinstance(rows, list)
        return json.dumps([{k: v for k, v in row.items() if k != "ms"} for row in rows])

    assert strip(whole) == strip(resumed)
    assert whole["auroc"] == resumed["auroc"]
    with pytest.raises(DataError, match="another configuration"):
        table.measure(tiny, test_set, config(steps=3), tmp_path / "b")


@pytest.mark.slow
def test_the_summary_counts_what_happened(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    summary = table.measure(tiny, test_set, config(), tmp_path)
    with torch.inference_mode():
        predicted = tiny.classifier(datasets.to_float(test_set.images)).argmax(1)
    row = summary["rows"][0]
    assert (row["setting"], row["kind"], row["n"]) == ("none", "natural", 10)
    assert row["accuracy"] == float((predicted == test_set.labels).float().mean())
    assert row["low"] <= row["accuracy"] <= row["high"]
    text = report.markdown(summary)
    assert text.count("\n") == 4
    assert "`fast` | 3 | 3 |" in text
    report.draw(summary, outcomes.read_outcomes(tmp_path / "outcomes.jsonl"), 1.0, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_commands_print_one_json_line_last(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "cifar-10-batches-bin"
    data.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        records = rng.integers(0, 256, (30, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (data / name).write_bytes(records.tobytes())
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in tiny_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    shared = ["--bundle", str(folder), "--data", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["x", "calibrate", *shared, "--n", "100"])
    command.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["n"] == 100
    assert found["data"]["split"] == "train"
    loaded = bundle.load(folder)
    assert loaded.anomaly is not None
    assert loaded.anomaly.threshold == found["threshold"]
    out = tmp_path / "t.json"
    monkeypatch.setattr(
        "sys.argv",
        ["x", "table", *shared, "--n", "4", "--settings", "none", "--attack-steps", "1",
         "--work", str(tmp_path / "work"), "--out", str(out)],
    )  # fmt: skip
    command.main()
    printed = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(printed)["rows"][0]["n"] == 4
    assert out.read_text().strip() == printed
    assert out.with_suffix(".md").exists()
    assert out.with_suffix(".png").exists()


def test_a_missing_data_set_is_one_clear_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["x", "calibrate", "--bundle", str(tiny_folder), "--data", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert "has none of data_batch_1.bin" in capsys.readouterr().err
