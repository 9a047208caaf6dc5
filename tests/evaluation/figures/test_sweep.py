import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from metastable import bundle, datasets
from metastable.errors import DataError
from metastable.evaluation import __main__ as command
from metastable.evaluation.figures import sweep
from metastable.evaluation.groups import RobustConfig
from metastable.evaluation.robust_rows import Row
from metastable.settings import Setting

SETTING = Setting.of("s", "adp", chains=4, steps=2, sigma=0.1, delta=0.01)


def test_one_parameter_is_varied_and_nothing_else() -> None:
    config = RobustConfig()

    def changed(what: str, value: str) -> tuple[dict[str, object], dict[str, object]]:
        setting, attack = sweep.varied(what, Fraction(value), SETTING, config)
        pairs = ((flat(SETTING), flat(setting)), (flat(config), flat(attack)))
        return tuple({k: v for k, v in new.items() if v != old[k]} for old, new in pairs)  # type: ignore[return-value]

    def flat(one: Any) -> dict[str, object]:
        """Its fields, those of a setting's dynamics among them."""
        fields = {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}
        return fields | (flat(moves) if (moves := fields.pop("dynamics", None)) else {})

    assert changed("K", "7") == ({"steps": 7}, {})
    assert changed("eps", "2/255") == ({}, {"eps": 2 / 255})
    assert changed("N", "9") == ({}, {"steps": 9})
    assert changed("H_adv", "3") == ({}, {"samples": 3})
    assert changed("H_def", "30") == ({"chains": 30, "delta": None}, {"check": 30})
    for bad in ("1/2", "0", "-3"):
        with pytest.raises(DataError, match="whole number from 1"):
            sweep.varied("K", Fraction(bad), SETTING, config)


@pytest.fixture
def test_set(tiny: bundle.Bundle) -> datasets.ImageSet:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=rng)
    with torch.no_grad():
        labels = tiny.classifier(datasets.to_float(images)).argmax(1)
    return datasets.ImageSet("noise", "test", images, labels, list(datasets.CIFAR10_CLASSES))


@pytest.mark.slow
def test_a_larger_ball_breaks_what_a_tiny_one_does_not(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    values = [Fraction(1, 10**6), Fraction(1, 2)]
    config = RobustConfig(steps=5, batch=2)
    rows = [Row("none", "transfer", 2)]
    found = sweep.measure(tiny, test_set, "eps", values, rows, config, tmp_path)
    assert [(row["value"], row["robust"][0]) for row in found] == [(1e-6, 1.0), (0.5, 0.0)]
    assert {path.name for path in tmp_path.iterdir()} == {"eps-1_1000000", "eps-1_2"}
    again = sweep.measure(tiny, test_set, "eps", values, rows, config, tmp_path)
    assert again == found  # the times too: nothing was run again
    sweep.draw(found, "eps", tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_command_varies_the_steps_of_the_defense(
    tiny_folder: Path, test_set: datasets.ImageSet, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(datasets, "load", lambda *_: test_set)
    out = tmp_path / "k.json"
    shared = ["--bundle", str(tiny_folder), "--data", str(tmp_path), "--work", str(tmp_path / "w")]
    asked = ["--vary", "K", "--values", "1,3", "--settings", "langevin", "--attack", "bpda", "--steps", "1"]
    monkeypatch.setattr("sys.argv", ["x", "figure", "sweep", *shared, *asked, "--n", "2", "--out", str(out)])
    command.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["value"], row["K"]) for row in printed["rows"]] == [(1, 1), (3, 3)]
    assert out.with_suffix(".png").exists()
