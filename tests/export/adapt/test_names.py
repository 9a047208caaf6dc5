import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.adapt import class_names
from export.adapt.names import LONGEST, _distinct
from metastable.errors import DataError


def names(folder: Path, text: str | Any, classes: int) -> list[str]:
    path = folder / "names.txt"
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return class_names(path, classes)


def test_without_a_file_they_are_numbered() -> None:
    assert class_names(None, 3) == ["class 0", "class 1", "class 2"]
    assert len(set(class_names(None, 21841))) == 21841


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cat\ndog\n", ["cat", "dog"]),
        ("\ufeffcat\r\n  dog\r\n\r\n", ["cat", "dog"]),
        ("cat\n\ndog\n\n", ["cat", "dog"]),
        ("cat\n\ndog\n", ["cat", "class 1", "dog"]),
        (["cat", "dog"], ["cat", "dog"]),
        ({"1": "dog", "0": "cat"}, ["cat", "dog"]),
        ({"cat": 0, "dog": 1}, ["cat", "dog"]),
        ({"id2label": {"0": "cat", "1": "dog"}, "model_type": "vit"}, ["cat", "dog"]),
        ({"0": ["n02123045", "cat"], "1": ["n02084071", "dog"]}, ["cat", "dog"]),
        (["crane", "crane", "crane (2)", "crane"], ["crane", "crane (2)", "crane (2) (2)", "crane (3)"]),
        (["", " ", "a\tb\nc"], ["class 0", "class 1", "a b c"]),
        ("[not JSON\ndog", ["[not JSON", "dog"]),
    ],
)
def test_names_as_people_have_them(text: Any, wanted: list[str], tmp_path: Path) -> None:
    assert names(tmp_path, text, len(wanted)) == wanted


def test_long_names_are_shortened_and_stay_different(tmp_path: Path) -> None:
    found = names(tmp_path, ["x" * 500, "x" * 501, "y" * 200], 3)
    assert [len(one) for one in found] == [LONGEST] * 3
    assert found[1].endswith(" (2)")
    assert found[2] == "y" * 200


def test_21841_names(tmp_path: Path) -> None:
    found = names(tmp_path, "\n".join(f"thing {i // 2}" for i in range(21841)), 21841)
    assert len(set(found)) == 21841


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog", r"names\.txt names 2 classes, and the network has 3"),
        ({"0": "a", "5": "b", "1": "c"}, "keys 0 to 2"),
        ("", "names 0 classes, and the network has 3"),
    ],
)
def test_other_numbers_of_names(text: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        names(tmp_path, text, 3)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class names cannot be read"):
        class_names(tmp_path / "absent", 3)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="class names cannot be read"):
        class_names(tmp_path / "binary", 3)


@given(st.lists(st.one_of(st.text(max_size=300), st.sampled_from(["a", "a (2)", ""])), max_size=30))
def test_any_names_become_different_printable_ones(given: list[str]) -> None:
    found = _distinct(given)
    assert len(set(found)) == len(given)
    assert all(1 <= len(one) <= LONGEST and one.isprintable() for one in found)
