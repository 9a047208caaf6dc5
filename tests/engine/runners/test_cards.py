from __future__ import annotations

import json
from pathlib import Path

import pytest

from metastable.engine.runners import cards
from metastable.errors import BundleError

WEIGHTS = {"classifier": "0" * 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "aot"
    made.mkdir()
    (made / "score.pt2").write_bytes(b"package")
    card = {"artifact": "aot", "weights": WEIGHTS, "made_with": {"torch": "1"}, "files": cards.listed(made)}
    (made / cards.CARD).write_bytes(cards.render(card))
    return made


def test_what_fits_is_packed(folder: Path) -> None:
    assert cards.packed(folder, "aot", WEIGHTS, {"torch": "1"}) == {"score.pt2": b"package"}


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match="of another kind or of other weights"):
        cards.packed(folder, "aot", {"classifier": "1" * 64}, {})
    with pytest.raises(BundleError, match="of another kind"):
        cards.packed(folder, "onnx-int8", WEIGHTS, {})
    with pytest.raises(BundleError, match="not made for torch 2"):
        cards.packed(folder, "aot", WEIGHTS, {"torch": "2"})
    with pytest.raises(BundleError, match="metastable export all --only aot"):
        cards.packed(folder.parent / "elsewhere", "aot", WEIGHTS, {})


def test_damage_is_found_and_named(folder: Path) -> None:
    (folder / "score.pt2").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"score\.pt2 of aot does not match its SHA-256"):
        cards.read(folder)
    (folder / "more.pt2").write_bytes(b"")
    with pytest.raises(BundleError, match=r"must hold \['score\.pt2'\], and holds"):
        cards.read(folder)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"files": {"x": 1}}', '{"files": {}}', '{"schema": 9, "files": {}}']
)
def test_a_card_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / cards.CARD).write_text(text)
    with pytest.raises(BundleError, match=r"card\.json of aot is (damaged|not of schema 1)"):
        cards.read(folder)


def test_a_card_that_names_files_elsewhere_reads_none(folder: Path) -> None:
    card = json.loads((folder / cards.CARD).read_text())
    card["files"]["../secret"] = card["files"].pop("score.pt2")
    (folder / cards.CARD).write_text(json.dumps(card))
    with pytest.raises(BundleError, match="must hold"):
        cards.read(folder)
