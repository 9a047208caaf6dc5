"""Attacked images, sent again."""

import dataclasses
from pathlib import Path

import pytest

from metastable import bundle, datasets
from metastable.errors import DataError
from metastable.evaluation import outcomes, resubmit, suite
from tests.evaluation.asked import MEMBERS, config

pytestmark = pytest.mark.slow


def test_resubmission_counts_wrong_answers_of_what_was_answered_rightly(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.measure(tiny, test_set, ["fast"], [2 / 255], config(), tmp_path, members=MEMBERS)
    folder = tmp_path / "eps-2"
    rows = resubmit.measure(tiny, ["fast"], folder, tries=4, seed=0)
    seen = outcomes.read_outcomes(folder / "outcomes.jsonl")
    for row in rows[:-1]:
        right = [o for o in seen if o["attack"] == row["attack"] and o["predicted"] == o["label"]]
        assert row["n"] == len(row["wrong"]) == len([o for o in right if "strength" in o])
        assert all(0 <= count <= 4 for count in row["wrong"])
        assert row["once"][0] == round(sum(count > 0 for count in row["wrong"]) / row["n"], 4)
        assert row["each"] == round(sum(row["wrong"]) / row["n"] / 4, 4)
    assert resubmit.measure(tiny, ["fast"], folder, tries=4, seed=0) == rows
    used: list[int] = []

    def half_wrong(bundle, engine, images, norms, seeds, setting):  # type: ignore[no-untyped-def]
        used.extend(seeds)
        return [{"predicted": -1 if seed % 2 else -2} for seed in seeds]

    monkeypatch.setattr(resubmit, "judge", half_wrong)
    wrong = resubmit.measure(tiny, ["fast"], folder, tries=4, seed=0)
    assert len(set(used)) == len(used) == 4 * sum(row["n"] for row in wrong[:-1])  # new noise in every try
    assert wrong.pop()["once"][0] == 1
    assert all(row["wrong"] == [4] * row["n"] for row in wrong)
    assert "| `fast` |" in resubmit.markdown(rows)
    resubmit.draw(rows, tmp_path / "again.png")
    assert rows[-1]["attack"] == "any"
    kept = [o for o in seen if "strength" in o and o["predicted"] == o["label"]]
    assert rows[-1]["n"] == len({o["index"] for o in kept})
    with pytest.raises(DataError, match="holds no suite of softmax"):
        resubmit.measure(tiny, ["softmax"], folder, tries=2, seed=0)
    other = dataclasses.replace(tiny, parts=tiny.parts | {"score": "0" * 64})
    with pytest.raises(DataError, match="another bundle or setting"):
        resubmit.measure(other, ["fast"], folder, tries=2, seed=0)
