import dataclasses
import json
from pathlib import Path

import pytest
import torch

from metastable import bundle, datasets
from metastable.errors import DataError
from metastable.evaluation import __main__ as command
from metastable.evaluation import outcomes, report, robust


@pytest.fixture
def test_set(tiny: bundle.Bundle) -> datasets.ImageSet:
    """Noise, labelled so that the bare classifier is right on most of it."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=rng)
    with torch.no_grad():
        labels = tiny.classifier(datasets.to_float(images)).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    return datasets.ImageSet("noise", "test", images, labels, list(datasets.CIFAR10_CLASSES))


def config(**changes: object) -> robust.RobustConfig:
    fields: dict[str, object] = {
        "settings": ("none", "fast"), "attacks": ("transfer", "bpda-eot"), "n": 6,
        "steps": 2, "samples": 2, "check": 4, "batch": 4,
    }  # fmt: skip
    return robust.RobustConfig(**(fields | changes))  # type: ignore[arg-type]


def test_an_interrupted_run_goes_on_and_gives_the_same_outcomes(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    whole = robust.measure(tiny, test_set, config(), tmp_path / "a")
    lines = (tmp_path / "a" / "outcomes.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 3 * 6
    for cut in (4, 15, 27):  # within the natural images, between groups, within a group
        (tmp_path / str(cut)).mkdir()
        (tmp_path / str(cut) / "outcomes.jsonl").write_text("\n".join(lines[:cut]) + "\n" + lines[cut][:9])
        resumed = robust.measure(tiny, test_set, config(), tmp_path / str(cut))

        def known(summary: dict[str, object]) -> str:
            rows = summary["rows"]
            assert isinstance(rows, list)
            return json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows])

        assert known(resumed) == known(whole)
        again = outcomes.read_outcomes(tmp_path / str(cut) / "outcomes.jsonl")
        first = [json.loads(line) for line in lines]
        keys = ("setting", "attack", "index", "predicted", "broken")
        assert {tuple(o.get(k) for k in keys) for o in again} == {
            tuple(o.get(k) for k in keys) for o in first
        }
    with pytest.raises(DataError, match="another configuration"):
        robust.measure(tiny, test_set, config(eps=0.1), tmp_path / "a")


def test_rows_say_what_was_measured(tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path) -> None:
    summary = robust.measure(tiny, test_set, config(eps=0.5, step=0.1, steps=5), tmp_path)
    rows = {(row["setting"], row["attack"]): row for row in summary["rows"]}
    bare = rows["none", "transfer"]
    assert bare["natural"][0] == round(5 / 6, 4)
    assert bare["robust"][0] == 0
    assert (bare["unbroken"], bare["check"]) == (None, None)
    assert (bare["gradient"], bare["H"], bare["eot"]) == ("bare", 1, 1)
    fast = rows["fast", "bpda-eot"]
    assert (fast["gradient"], fast["K"], fast["H"], fast["eot"], fast["check"]) == ("bpda", 2, 3, 2, 4)
    assert fast["robust"][1] <= fast["robust"][0] <= fast["robust"][2]
    assert 0 <= fast["unbroken"][0] <= fast["natural"][0]
    assert "BpdaEot(" in fast["parameters"]
    lost = next(o for o in outcomes.read_outcomes(tmp_path / "outcomes.jsonl") if o.get("broken"))
    assert (lost["index"], lost["seconds"]) == (0, 0.0)
    text = report.robust_markdown(summary)
    assert text.count("\n") == 2 + 4
    assert "| `fast` | bpda-eot | bpda | linf 127.5/255 | 2 | 2 | 3 | 4 | 6 |" in text
    report.draw_robust(summary, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_the_judges_noise_is_not_the_attackers(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metastable import noise

    drawn: dict[str, set[int]] = {"attacks": set(), "engine": set()}
    original = noise.normal

    def spy(keys, step, shape):  # type: ignore[no-untyped-def]
        import sys

        caller = "engine" if "engine" in sys._getframe(1).f_code.co_filename else "attacks"
        drawn[caller] |= {seed for seed, _ in keys}
        return original(keys, step, shape)

    monkeypatch.setattr(noise, "normal", spy)
    robust.measure(tiny, test_set, config(settings=("fast",), attacks=("exact",)), tmp_path)
    assert len(drawn["attacks"]) > 3
    drawn["engine"].discard(0)  # of measuring what a chain costs
    assert len(drawn["engine"]) == 11  # 6 natural images and 5 attacked ones
    assert not drawn["attacks"] & drawn["engine"]
    assert min(drawn["engine"]) > 2**64  # 128 bits, all but surely


def test_a_bundle_without_a_calibration_or_a_run_without_images_is_refused(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no images"):
        robust.measure(tiny, test_set.take(0), config(), tmp_path)
    with pytest.raises(DataError, match="calibrate"):
        robust.measure(dataclasses.replace(tiny, anomaly=None), test_set, config(), tmp_path)


def test_the_command_prints_one_json_line_last(
    tiny: bundle.Bundle, tiny_folder: Path, test_set: datasets.ImageSet, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(datasets, "load", lambda *_: test_set)
    out = tmp_path / "r.json"
    monkeypatch.setattr(
        "sys.argv",
        ["x", "robust", "--bundle", str(tiny_folder), "--data", str(tmp_path), "--n", "3",
         "--settings", "fast", "--attack", "transfer,exact", "--eps", "4/255", "--steps", "1",
         "--samples", "1", "--check", "2", "--work", str(tmp_path / "w"), "--out", str(out)],
    )  # fmt: skip
    command.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["attack"] for row in printed["rows"]] == ["transfer", "exact"]
    assert printed["rows"][0]["n"] == 3
    assert printed["config"]["eps"] == 4 / 255
    assert json.loads(out.read_text()) == printed
    assert out.with_suffix(".md").exists()
    assert out.with_suffix(".png").exists()
    monkeypatch.setattr("sys.argv", ["x", "robust", "--attack", "charm", "--work", "w"])
    with pytest.raises(SystemExit):
        command.main()
    assert "no attacks ['charm']" in capsys.readouterr().err
