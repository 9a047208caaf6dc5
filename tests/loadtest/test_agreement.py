"""Load tests of images that nobody labelled: their labels are the bare classifier's, and reports say so."""

import dataclasses
import json
from pathlib import Path

import pytest

from loadtest import sets
from loadtest.agreement import accuracy_of, word
from metastable.datasets.folder import AGREEMENT, CLASSIFIER
from tests.loadtest.servers import Behaviour, serving
from tests.loadtest.test_main import call, run
from tests.loadtest.test_sets import small


def save(folder: Path, name: str, labels: str) -> None:
    made = small("clean" if name == "clean" else "pgd")
    about = dataclasses.replace(made.about, data={**made.about.data, "labels": labels})
    sets.save(folder / f"{name}.npz", dataclasses.replace(made, about=about))


def test_sets_are_told_apart_by_who_gave_their_labels() -> None:
    bare = {"name": "photos", "data": {"labels": CLASSIFIER}}
    labelled = {"name": "cifar10", "data": {"labels": "labels.csv"}}
    folder = {"name": "folder"}
    assert accuracy_of([labelled, folder]) is None
    assert accuracy_of([bare, bare]) == AGREEMENT
    assert accuracy_of([bare, labelled]) == f"{AGREEMENT} on photos, where nobody gave labels"
    assert [word(accuracy_of(some)) for some in ([labelled], [bare], [bare, folder])] == [
        "accuracy",
        "agreement",
        "accuracy",
    ]


@pytest.mark.slow
def test_page_line_and_comparison_speak_of_agreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loadtest.validity.LAG_MS", 1e6)  # a busy machine makes the client late
    pages = {}
    with serving(Behaviour()) as url:
        for name, labels in (("bare", CLASSIFIER), ("labelled", "labels.csv")):
            for kind in ("clean", "pgd"):
                save(tmp_path, kind, labels)
            assert call(monkeypatch, *run(tmp_path, url, name)) == 0
            said = capsys.readouterr()
            assert json.loads(said.out.splitlines()[-1]).get("accuracy_is") == (
                AGREEMENT if name == "bare" else None
            )
            assert (f"what is called accuracy is {AGREEMENT}" in said.err) == (name == "bare")
            pages[name] = (tmp_path / name / "report.html").read_text()
    assert f"<li>what is called accuracy is {AGREEMENT.replace(chr(39), '&#39;')}</li>" in pages["bare"]
    assert "<th>natural agreement</th><th>lowest robust agreement</th>" in pages["bare"]
    assert "what the bare classifier says of the clean images" in pages["bare"]
    assert "<th>natural accuracy</th><th>lowest robust accuracy</th>" in pages["labelled"]
    assert "agreement" not in pages["labelled"]
    reports = [str(tmp_path / name / "report.json") for name in ("labelled", "bare")]
    assert call(monkeypatch, "compare", *reports) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy_is"] == AGREEMENT
