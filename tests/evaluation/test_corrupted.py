import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metastable import bundle, corruptions, datasets
from metastable.errors import DataError
from metastable.evaluation import __main__ as command
from metastable.evaluation import corrupted

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tiny: bundle.Bundle, tmp_path: Path) -> Path:
    """Two images, labelled as the bare classifier sees them; severity 5 of fog is all black."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=rng)
    with torch.no_grad():
        labels = tiny.classifier(datasets.to_float(images)).argmax(1)
        dark = int(tiny.classifier(torch.zeros(1, 3, 32, 32)).argmax())
    test = datasets.ImageSet("noise", "test", images, labels, [])

    def draw(image: np.ndarray, kind: str, severity: int) -> np.ndarray:
        return np.zeros_like(image) if (kind, severity) == ("fog", 5) else image

    corruptions.generate(test, tmp_path / "c", corrupt=draw)
    assert dark not in labels.tolist()
    return tmp_path / "c"


def config(**changes: object) -> corrupted.CorruptedConfig:
    fields: dict[str, object] = {"settings": ("none", "fast"), "kinds": ("fog", "snow"), "severities": (1, 5)}
    return corrupted.CorruptedConfig(**(fields | {"n": 2} | changes))  # type: ignore[arg-type]


def test_every_kind_and_severity_is_judged_by_itself(
    tiny: bundle.Bundle, folder: Path, tmp_path: Path
) -> None:
    rows = corrupted.measure(tiny, folder, config(), tmp_path / "w")
    found = {(r["setting"], r["kind"], r["severity"]): r["accuracy"][0] for r in rows}
    assert len(found) == 2 * 2 * 2
    bare = {key[1:]: value for key, value in found.items() if key[0] == "none"}
    assert bare == {("fog", 1): 1.0, ("fog", 5): 0.0, ("snow", 1): 1.0, ("snow", 5): 1.0}
    assert corrupted.means(rows)["none"] == {"fog": 0.5, "snow": 1.0, "mean": 0.75}
    assert "| fog | 50.0 |" in corrupted.markdown(rows)
    corrupted.draw(rows, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_an_interrupted_run_goes_on_and_gives_the_same_rows(
    tiny: bundle.Bundle, folder: Path, tmp_path: Path
) -> None:
    whole = corrupted.measure(tiny, folder, config(), tmp_path / "a")
    lines = (tmp_path / "a" / "outcomes.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 2 * 2 * 2
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "outcomes.jsonl").write_text("\n".join(lines[:5]) + "\n" + lines[5][:9])
    assert corrupted.measure(tiny, folder, config(), tmp_path / "b") == whole
    with pytest.raises(DataError, match="another configuration"):
        corrupted.measure(tiny, folder, config(seed=1), tmp_path / "b")


def test_the_command_writes_all_three_files(
    tiny_folder: Path, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "o" / "c.json"
    monkeypatch.setattr(
        "sys.argv",
        ["x", "corruptions", "--bundle", str(tiny_folder), "--corruptions", str(folder), "--settings", "none",
         "--kinds", "fog", "--severities", "5", "--work", str(tmp_path / "w"), "--out", str(out)],
    )  # fmt: skip
    command.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["means"] == {"none": {"fog": 0.0, "mean": 0.0}}
    assert printed["config"]["n"] == 2
    assert json.loads(out.read_text()) == printed
    assert out.with_suffix(".md").exists()
    assert out.with_suffix(".png").exists()
