import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metastable import bundle, datasets, settings
from metastable.errors import BundleError, DataError
from metastable.evaluation import __main__ as command
from metastable.evaluation import groups, outcomes, robust, robust_rows
from metastable.evaluation.robust_rows import Row
from tests.conftest import SETTINGS


@pytest.fixture
def test_set(tiny: bundle.Bundle) -> datasets.ImageSet:
    """Noise, labelled so that the bare classifier is right on most of it."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=rng)
    with torch.no_grad():
        labels = tiny.classifier(datasets.to_float(images)).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    return datasets.ImageSet("noise", "test", images, labels, list(datasets.CIFAR10_CLASSES))


def config(**changes: object) -> groups.RobustConfig:
    fields: dict[str, object] = {"steps": 2, "samples": 2, "check": 4, "batch": 4}
    return groups.RobustConfig(**(fields | changes))  # type: ignore[arg-type]


def rows(n: int = 6) -> list[Row]:
    return [Row(s, a, n) for s in ("none", "fast") for a in ("transfer", "bpda-eot")]


def known(measured: list[dict[str, Any]]) -> str:
    """All but the times, which no two runs share."""
    return json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in measured])


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_gives_the_same_outcomes(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    whole = robust.measure(tiny, test_set, rows(), config(), tmp_path / "a")
    lines = (tmp_path / "a" / "outcomes.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 3 * 6
    for cut in (4, 15, 27):  # within the natural images, between groups, within a group
        (tmp_path / str(cut)).mkdir()
        (tmp_path / str(cut) / "outcomes.jsonl").write_text("\n".join(lines[:cut]) + "\n" + lines[cut][:9])
        resumed = robust.measure(tiny, test_set, rows(), config(), tmp_path / str(cut))
        assert known(resumed) == known(whole)
        again = outcomes.read_outcomes(tmp_path / str(cut) / "outcomes.jsonl")
        first = [json.loads(line) for line in lines]
        keys = ("setting", "attack", "index", "predicted", "broken")
        assert {tuple(o.get(k) for k in keys) for o in again} == {
            tuple(o.get(k) for k in keys) for o in first
        }
    with pytest.raises(DataError, match="another configuration"):
        robust.measure(tiny, test_set, rows(), config(eps=0.1), tmp_path / "a")
    # An attack's own defaults may change between versions: its parameters lie beside the outcomes.
    (tmp_path / "4" / "outcomes.jsonl").write_text("")
    (tmp_path / "4" / "fast-bpda-eot-attack.txt").write_text("BpdaEot(steps=1)\n")
    with pytest.raises(DataError, match="other parameters made these outcomes"):
        robust.measure(tiny, test_set, rows(), config(), tmp_path / "4")


@pytest.mark.slow
def test_rows_and_images_may_be_added_to_a_folder(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    whole = robust.measure(tiny, test_set, rows(), config(batch=2), tmp_path / "a")
    robust.measure(tiny, test_set, [Row("fast", "bpda-eot", 2)], config(batch=2), tmp_path / "b")
    lines = (tmp_path / "b" / "outcomes.jsonl").read_text()
    assert lines.count("\n") == 4
    # The settings of the bundle that no row uses, and their order, do not matter.
    more = dataclasses.replace(tiny, settings=settings.parse(SETTINGS + "  other: {dynamics: none}\n"))
    grown = robust.measure(more, test_set, rows(), config(batch=2), tmp_path / "b")
    assert (tmp_path / "b" / "outcomes.jsonl").read_text().startswith(lines)
    assert known(grown) == known(whole)
    other = dataclasses.replace(tiny, settings=settings.parse(SETTINGS.replace("sigma: 0.2", "sigma: 0.3")))
    with pytest.raises(DataError, match="another configuration"):
        robust.measure(other, test_set, rows(), config(batch=2), tmp_path / "b")


@pytest.mark.slow
def test_rows_say_what_was_measured(tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path) -> None:
    measured = robust.measure(tiny, test_set, rows(), config(eps=0.5, step=0.1, steps=5), tmp_path)
    by_name = {(row["setting"], row["attack"]): row for row in measured}
    bare = by_name["none", "transfer"]
    assert bare["natural"][0] == round(5 / 6, 4)
    assert bare["robust"][0] == 0
    assert (bare["unbroken"], bare["check"]) == (None, None)
    assert (bare["gradient"], bare["H"], bare["eot"]) == ("bare", 1, 1)
    fast = by_name["fast", "bpda-eot"]
    assert (fast["gradient"], fast["K"], fast["H"], fast["eot"], fast["check"]) == ("bpda", 2, 3, 2, 4)
    assert fast["robust"][1] <= fast["robust"][0] <= fast["robust"][2]
    assert 0 <= fast["unbroken"][0] <= fast["natural"][0]
    assert "BpdaEot(" in fast["parameters"]
    lines = outcomes.read_outcomes(tmp_path / "outcomes.jsonl")
    lost = next(o for o in lines if o.get("broken"))
    assert (lost["index"], lost["seconds"]) == (0, 0.0)
    idle = [o for o in lines if o["setting"] == "none"]
    assert all(o["purified_score"] == pytest.approx(o["score"], rel=1e-5) for o in idle)
    assert any(o["purified_score"] != pytest.approx(o["score"], rel=1e-2) for o in lines if o not in idle)
    text = robust_rows.markdown(measured)
    assert text.count("\n") == 2 + 4
    assert "| `fast` | bpda-eot | bpda | linf 0.5 | 2 | 2 | 3 | 4 | 6 |" in text
    robust_rows.draw(measured, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_detection_is_of_the_images_that_were_attacked(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    """Image 0 is answered wrongly as it is: nobody attacks it, and its score says nothing of the attack."""
    [row] = robust.measure(tiny, test_set, [Row("none", "transfer", 6)], config(eps=0.3, step=0.1), tmp_path)
    lines = outcomes.read_outcomes(tmp_path / "outcomes.jsonl")
    natural = [o["score"] for o in lines if o["attack"] == "natural"]
    attacked = [o["score"] for o in lines if o["attack"] == "transfer" and o["index"] > 0]
    pairs = [(a > b) + 0.5 * (a == b) for a in attacked for b in natural]
    assert row["attacked"] == 5
    assert row["auroc"] == round(sum(pairs) / len(pairs), 4)
    flags = [o["flagged"] for o in lines if o["attack"] == "transfer" and o["index"] > 0]
    assert row["flag_rate"][0] == round(sum(flags) / 5, 4)
    wrong = dataclasses.replace(test_set, labels=(test_set.labels + 5) % 10).take(1, skip=2)
    [lost] = robust.measure(tiny, wrong, [Row("none", "transfer", 1)], config(), tmp_path / "lost")
    assert (lost["attacked"], lost["auroc"], lost["flag_rate"], lost["robust"][0]) == (0, None, None, 0)
    assert "| – | – | 0.0 |" in robust_rows.markdown([lost])


@pytest.mark.slow
def test_the_judges_noise_is_not_the_attackers(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metastable import noise

    drawn: dict[str, set[int]] = {"attacks": set(), "engine": set()}
    original = noise.normal

    def spy(keys, *where):  # type: ignore[no-untyped-def]
        import sys

        frame, callers = sys._getframe(1), []
        while frame is not None:
            callers.append(frame.f_code.co_filename)
            frame = frame.f_back  # type: ignore[assignment]
        caller = "engine" if any("/engine/" in name for name in callers) else "attacks"
        drawn[caller] |= {seed for seed, _ in keys}
        return original(keys, *where)

    monkeypatch.setattr(noise, "normal", spy)
    robust.measure(tiny, test_set, [Row("fast", "exact", 6)], config(), tmp_path)
    assert len(drawn["attacks"]) > 3
    drawn["engine"].discard(0)  # of measuring what a chain costs
    assert len(drawn["engine"]) == 11  # 6 natural images and 5 attacked ones
    assert not drawn["attacks"] & drawn["engine"]
    assert min(drawn["engine"]) > 2**64  # 128 bits, all but surely


def test_a_bundle_without_a_calibration_or_a_run_without_images_is_refused(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    for asked in ([], rows(0), rows(7)):
        with pytest.raises(DataError, match="every row needs 1 to 6 images"):
            robust.measure(tiny, test_set, asked, config(), tmp_path)
    with pytest.raises(BundleError, match="calibrate"):
        robust.measure(dataclasses.replace(tiny, anomaly=None), test_set, rows(), config(), tmp_path)


@pytest.mark.slow
def test_the_command_prints_one_json_line_last(
    tiny: bundle.Bundle, tiny_folder: Path, test_set: datasets.ImageSet, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(datasets, "load", lambda *_: test_set)
    out = tmp_path / "r.json"
    monkeypatch.setattr(
        "sys.argv",
        ["x", "robust", "--bundle", str(tiny_folder), "--data", str(tmp_path), "--n", "3",
         "--rows", "none:transfer:2,fast:exact", "--eps", "4/255", "--steps", "1",
         "--samples", "1", "--check", "2", "--work", str(tmp_path / "w"), "--out", str(out)],
    )  # fmt: skip
    command.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["attack"], row["n"]) for row in printed["rows"]] == [("transfer", 2), ("exact", 3)]
    assert printed["config"]["eps"] == 4 / 255
    assert json.loads(out.read_text()) == printed
    assert out.with_suffix(".md").exists()
    assert out.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--attack", "charm"], "no attacks ['charm']"),
        (["--rows", "fast:charm"], "no attacks ['charm']"),
        (["--rows", "fast"], "'fast' is not setting:attack"),
        (["--rows", "fast:exact:many"], "is not setting:attack"),
        (["--rows", "fast:exact:3,fast:exact:4"], "twice"),
        (["--rows", "slow:exact"], "no settings ['slow']"),
        (["--rows", "fast:exact", "--dataset", "mnist"], "name another --bundle or --dataset"),
    ],
)
def test_what_does_not_exist_is_one_clear_line(
    asked: list[str], said: str, tiny_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    digits = datasets.ImageSet("mnist", "test", torch.zeros(2, 1, 28, 28), torch.zeros(2), [])
    monkeypatch.setattr(datasets, "load", lambda *_: digits)
    shared = ["--bundle", str(tiny_folder), "--data", str(tmp_path), "--work", str(tmp_path / "w")]
    monkeypatch.setattr("sys.argv", ["x", "robust", *asked, *shared])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
