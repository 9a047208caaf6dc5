import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metastable import anomaly, bundle, datasets
from metastable.attacks.annealed import Annealed
from metastable.attacks.ascent import Attacked
from metastable.errors import DataError
from metastable.evaluation import __main__ as command
from metastable.evaluation import outcomes, robust, suite, suite_report
from metastable.evaluation.groups import planned
from metastable.evaluation.robust import Outcomes
from tests.evaluation.asked import MEMBERS, config


def known(measured: object) -> str:
    return json.dumps(measured, default=str).replace(" ", "")


def without_times(suites: list[dict[str, object]]) -> list[dict[str, object]]:
    found = copy.deepcopy(suites)
    for one in found:
        del one["seconds"]
        for row in one["attacks"]:  # type: ignore[attr-defined]
            del row["seconds"]
    return found


@pytest.mark.slow
def test_the_worst_case_is_by_image_and_lost_images_stay_lost(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    radii = [0.3, 0.02]
    found = suite.measure(tiny, test_set, ["none", "fast"], radii, config(), tmp_path, members=MEMBERS)
    assert [(s["setting"], s["eps"]) for s in found] == [
        ("none", 0.02), ("none", 0.3), ("fast", 0.02), ("fast", 0.3)
    ]  # fmt: skip
    lost: dict[tuple[str, float], set[int]] = {}
    for one in found:
        folder = tmp_path / f"eps-{255 * one['eps']:g}"
        seen = [
            o for o in outcomes.read_outcomes(folder / "outcomes.jsonl") if o["setting"] == one["setting"]
        ]
        wrong = {o["index"] for o in seen if o["predicted"] != o["label"]}
        smaller = lost.get((one["setting"], 0.02), set())
        lost[one["setting"], one["eps"]] = wrong | smaller
        assert one["worst_case"][0] == round(1 - len(wrong | smaller) / 5, 4)
        assert one["worst_case"][1] <= one["worst_case"][0] <= one["right_or_flagged"][0]
        left = 5
        for row in one["attacks"]:
            asked = {o["index"] for o in seen if o["attack"] == row["attack"]}
            assert row["attacked"] == len(asked)
            assert row["left"] <= left
            left = row["left"]
        natural = {o["index"] for o in seen if o["attack"] == "natural" and o["predicted"] != o["label"]}
        for row in one["attacks"]:
            assert not natural & {o["index"] for o in seen if o["attack"] == row["attack"]}
    bare = found[1]
    assert bare["worst_case"][0] == 0
    assert 0 in lost["none", 0.02]
    # What transfer broke is not attacked again, but by the attack that is after the flag as well.
    first, second, _ = bare["attacks"]
    assert second["attacked"] == first["left"]


@pytest.mark.slow
def test_a_resumed_suite_comes_to_the_same(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    def run(folder: str) -> list[dict[str, object]]:
        asked = config(eps=0.1)
        return suite.measure(tiny, test_set, ["fast"], [0.1], asked, tmp_path / folder, members=MEMBERS)

    whole = run("a")
    assert known(without_times(run("a"))) == known(without_times(whole))
    lines = (tmp_path / "a" / "eps-25.5" / "outcomes.jsonl").read_text().splitlines()
    for cut in (3, 7, len(lines) - 1):
        folder = tmp_path / str(cut) / "eps-25.5"
        folder.mkdir(parents=True)
        (folder / "outcomes.jsonl").write_text("\n".join(lines[:cut]) + "\n")
        assert known(without_times(run(str(cut)))) == known(without_times(whole))


def test_what_is_judged_is_kept_as_8_bit_pictures(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    suite.measure(tiny, test_set, ["none"], [8 / 255], config(), tmp_path, members=MEMBERS[:2])
    natural = test_set.images.permute(0, 2, 3, 1).numpy().astype(int)
    pictures = sorted((tmp_path / "eps-8" / "images" / "none").glob("*/*.png"))
    assert len(pictures) >= 4
    changes = [np.abs(np.asarray(Image.open(p)).astype(int) - natural[int(p.stem)]) for p in pictures]
    assert max(c.max() for c in changes) == 8
    assert all(c.any() for c in changes)


def test_an_attack_on_another_defense_than_the_judges_is_refused(
    tiny: bundle.Bundle, test_set: datasets.ImageSet
) -> None:
    plans = {"annealed-ce": planned(tiny, "fast", "annealed-ce", config())}
    suite.check_same(plans, tiny, tiny, "fast")
    with pytest.raises(DataError, match="another setting"):
        suite.check_same(plans, tiny, tiny, "softmax")
    networks = copy.deepcopy(tiny.networks)
    with torch.no_grad():
        next(networks["score"].parameters()).add_(1e-3)
    other = dataclasses.replace(tiny, networks=networks)
    with pytest.raises(DataError, match="another score"):
        suite.check_same(plans, tiny, other, "fast")
    answers = [{"chains": 3, "steps": 2.0}]
    suite.check_spent(answers, tiny.settings["fast"])
    for wrong in ({"chains": 4, "steps": 2.0}, {"chains": 3, "steps": 2.5}):
        with pytest.raises(DataError, match="more than 3 chains"):
            suite.check_spent([*answers, wrong], tiny.settings["fast"])


@pytest.mark.slow
def test_reports_show_radii_or_attacks(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    found = suite.measure(
        tiny, test_set, ["none"], [0.0, 2 / 255], config(), tmp_path / "w", members=MEMBERS[:2]
    )
    text = suite_report.markdown(found)
    assert text.count("| `none` |") == 2 + 4
    assert "2/255" in text
    for name, part in (("curve", found), ("attacks", found[1:])):
        suite_report.draw(part, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_an_attack_that_leaves_its_ball_is_found_out(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beyond(self, target, images, labels, *, seed=0, progress=False):  # type: ignore[no-untyped-def]
        return Attacked(images + 0.3, torch.ones(len(images)))

    monkeypatch.setattr(Annealed, "__call__", beyond)
    for norm in ("linf", "l2"):
        with pytest.raises(DataError, match="left its ball"):
            suite.measure(
                tiny, test_set, ["none"], [0.0], config(norm=norm), tmp_path / norm, members=MEMBERS[1:2]
            )


def scripted(monkeypatch: pytest.MonkeyPatch, script: dict[tuple[str, float, int], tuple[bool, ...]]) -> None:
    """Attacks that do nothing, and a judge who answers (wrong, flagged, shifted) by attack,
    radius and image."""

    class Scripted(Outcomes):
        def attack(self, setting, name, indices, told=None):  # type: ignore[no-untyped-def]
            for i in indices:
                wrong, flagged, *rest = script.get((name, self._config.eps, i), (False, False))
                self._done[setting, name, i] = {
                    "index": i, "label": 0, "predicted": int(wrong), "flagged": flagged, "seconds": 0.0,
                    "shifted": rest[0] if rest else False,
                    "chains": 1, "steps": 0, "strength": 0.0, "setting": setting, "attack": name,
                }  # fmt: skip

        def judge_natural(self, setting, indices, told=None):  # type: ignore[no-untyped-def]
            self.attack(setting, "natural", indices)

    monkeypatch.setattr(suite, "Outcomes", Scripted)


@pytest.mark.slow
def test_what_is_lost_passed_and_asked_by_a_script(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = 0.01, 0.02
    scripted(monkeypatch, {
        ("natural", small, 0): (True, True),  # wrong before, and flagged: lost in both counts
        ("natural", large, 0): (True, True),
        ("transfer", small, 1): (True, True),  # wrong and flagged: joint still has to try
        ("transfer", large, 2): (True, False),  # wrong and unflagged: joint need not
        ("joint", large, 3): (True, False),
    })  # fmt: skip
    first, second = suite.measure(
        tiny, test_set, ["none"], [large, small], config(), tmp_path, members=("transfer", "joint")
    )
    assert (first["worst_case"][0], first["right_or_flagged"][0]) == (0.6, 0.8)
    assert [row["attacked"] for row in first["attacks"]] == [4, 4]
    # Image 1 was lost at the smaller radius and stays lost; it was not attacked by transfer again.
    assert (second["worst_case"][0], second["right_or_flagged"][0]) == (0.2, 0.4)
    assert [row["attacked"] for row in second["attacks"]] == [3, 3]
    assert [row["broken_unflagged"] for row in second["attacks"]] == [1, 1]
    [alone] = suite.measure(tiny, test_set, ["none"], [large], config(), tmp_path / "b", members=["transfer"])
    assert alone["right_or_flagged"] is None  # nobody tried to pass the flag
    assert "| – |" in suite_report.markdown([alone])


def test_an_image_passes_where_neither_statistic_flags_it(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {
        ("natural", 0.01, 4): (False, False, True),
        ("transfer", 0.01, 0): (True, False, True),  # only the shift notices
        ("transfer", 0.01, 1): (True, True, False),
        ("joint", 0.01, 2): (True, False, False),
    })  # fmt: skip
    [one] = suite.measure(tiny, test_set, ["none"], [0.01], config(), tmp_path, members=("transfer", "joint"))
    assert (one["worst_case"][0], one["right_or_flagged"][0]) == (0.4, 0.8)
    first = one["attacks"][0]
    assert [first[key] for key in ("flagged", "shifted", "noticed", "broken_unflagged")] == [1, 1, 2, 0]
    shares = [one[f"{key}_natural"][0] for key in ("flagged", "shifted", "noticed")]
    assert shares == [0.0, 0.2, 0.2]
    assert "| 0, 20, 20 % |" in suite_report.markdown([one])


def test_attacks_know_the_shift_where_it_has_a_threshold(tiny: bundle.Bundle) -> None:
    limit = anomaly.threshold_of(torch.linspace(0, 0.4, 99), false_positive_rate=0.01, data={})
    both = dataclasses.replace(tiny, shifts={"fast": limit})
    assert len(planned(tiny, "fast", "joint", config()).attack.statistics) == 1  # type: ignore[attr-defined]
    norm, shift = planned(both, "fast", "joint", config()).attack.statistics  # type: ignore[attr-defined]
    assert (norm.threshold, shift.threshold) == (tiny.anomaly.threshold, limit.threshold)  # type: ignore[union-attr]
    assert robust.said(both, both.settings["fast"]) != robust.said(tiny, tiny.settings["fast"])


@pytest.mark.slow
def test_the_command_takes_a_suite_with_several_radii(
    tiny: bundle.Bundle, tiny_folder: Path, test_set: datasets.ImageSet, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(datasets, "load", lambda *_: test_set)
    shared = [
        "--bundle",
        str(tiny_folder),
        "--data",
        str(tmp_path),
        "--n",
        "2",
        "--steps",
        "1",
        "--samples",
        "1",
    ]
    out = tmp_path / "suite.json"
    asked = ["--attack", "suite", "--settings", "none", "--members", "transfer,annealed-ce",
             "--eps", "1/255,8/255", "--work", str(tmp_path / "w"), "--out", str(out)]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["x", "robust", *shared, *asked])
    command.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [round(255 * one["eps"]) for one in printed["suites"]] == [1, 8]
    assert json.loads(out.read_text()) == printed
    assert out.with_suffix(".png").exists()
    for wrong, said in (
        (["--rows", "none:suite"], "is no single row"),
        (["--rows", "none:transfer", "--eps", "1/255,2/255"], "only --attack suite takes several radii"),
    ):
        monkeypatch.setattr("sys.argv", ["x", "robust", *shared, *wrong, "--work", str(tmp_path / "v")])
        with pytest.raises(SystemExit) as stop:
            command.main()
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
