from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastable.datasets import labels
from metastable.errors import DataError

CLASSES = ("cat", "dog", "10", "crane", "crane")
PIECES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/\r", exclude_categories=["Cs"]),
    min_size=1,
    max_size=8,
).filter(lambda text: text == text.strip() and text not in (".", ".."))
FILES = st.lists(PIECES, min_size=1, max_size=3).map("/".join)


@pytest.mark.slow
@given(
    wanted=st.dictionaries(FILES, st.sampled_from(["cat", "dog", "10", "0", "3", "4"]), min_size=1),
    header=st.sampled_from([None, ("file", "label"), ("Label", "more", " file")]),
    ends=st.sampled_from(["\n", "\r\n"]),
    gaps=st.booleans(),
)
def test_what_was_written_is_read(
    wanted: dict[str, str], header: tuple[str, ...] | None, ends: str, gaps: bool
) -> None:
    """Any names, quoting, order of columns and line ends."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=ends)
    if header is None and next(iter(wanted.items())) in (("file", "label"), ("label", "file")):
        return  # that is a header
    if header:
        writer.writerow(header)
    for file, label in wanted.items():
        writer.writerow((label, "x", file) if header and len(header) == 3 else (file, label))
        if gaps:
            buffer.write(ends)
    found = labels.parse(buffer.getvalue(), "here", CLASSES)
    numbers = {"cat": 0, "dog": 1, "10": 2, "0": 0, "3": 3, "4": 4}
    assert {file: label.number for file, label in found.by_file.items()} == {
        file: numbers[label] for file, label in wanted.items()
    }
    lines = buffer.getvalue().count("\n") + 1
    assert all(1 <= label.line <= lines for label in found.by_file.values())


@given(text=st.text(st.sampled_from('ab,"\n\r 01/.\0é'), max_size=40))
def test_any_text_is_labels_or_an_error_that_names_a_line(text: str) -> None:
    said, found = "", None
    try:
        found = labels.parse(text, "here")
    except DataError as error:
        said = str(error)
    if found is None:
        line = re.match(r"here, line (\d+): ", said)
        assert line or "names no picture" in said or "numbers of classes end" in said
        assert line is None or int(line[1]) <= len(text) + 1
        return
    assert found.by_file
    for name, label in found.by_file.items():
        assert ".." not in name.split("/")
        assert not name.startswith("/")
        assert 0 <= label.number < len(found.classes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.png,cat\nb.png,crane\n", "line 2: 'crane' is the name of 2 classes: give a number, [3, 4]"),
        ("a.png,cow\n", "line 1: 'cow' is no class, neither a name nor a number from 0 to 4"),
        ("\n\na.png,5\n", "line 3: '5' is no class"),
        ("a.png,-1\n", "line 1: '-1' is no class"),
        ("a.png,\n", "line 1: a.png has no label"),
        ("a.png,0\n./a.png,1\n", "line 2: a.png stands on line 1 already"),
        ("a.png,0\nb/../../c.png,1\n", "line 2: 'b/../../c.png' is not the name of a file in the folder"),
        ("a.png\n", "line 1: there are 1 fields, not 2"),
        ("file,label,sure\na.png,0\n", "line 2: there are 2 fields, not 3"),
        ('a.png,"0\n', "line 1: unexpected end of data"),
        ("", "names no picture"),
        ("a.png;cat\n", "line 1: semicolons separate its fields: write commas"),
        ("file;label\na.png;cat\n", "line 1: semicolons separate its fields: write commas"),
        ("file,label\na.png\tcat\n", "line 2: tabs separate its fields: write commas"),
        (
            "image,category\na.png,cat\n",
            "neither a name nor a number from 0 to 4; if this is a header, name its",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        labels.parse(text, "here", CLASSES)


@pytest.mark.parametrize(
    "header", ["file,label", "filename,class", "Class, Filename", "file_name,width,label", "label,file,class"]
)
def test_headers_that_are_plain_are_taken(header: str) -> None:
    file = next(place for place, name in enumerate(header.split(",")) if "file" in name.lower())
    row = ["a.png" if place == file else "dog" for place in range(len(header.split(",")))]
    found = labels.parse(f"{header}\n{','.join(row)}\n", "here", CLASSES)
    assert found.by_file == {"a.png": (1, 2)}


def test_classes_without_names_are_numbers_or_in_order() -> None:
    assert labels.parse("a,2\nb,0\n", "here").classes == ("0", "1", "2")
    named = labels.parse("a,dog\nb,cat\nc,dog\n", "here")
    assert (named.classes, named.numbered) == (("cat", "dog"), False)
    assert [label.number for label in named.by_file.values()] == [1, 0, 1]
    with pytest.raises(DataError, match="numbers of classes end at 99999"):
        labels.parse("a,100000\n", "here")


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    with pytest.raises(DataError, match="cannot be read: No such file"):
        labels.read(path)
    path.write_bytes(b"a.png,cat\n\xff.png,cat\n")
    with pytest.raises(DataError, match="line 2: it is not UTF-8"):
        labels.read(path)
    path.write_bytes("\ufefffile,label\nä.png,cat\n".encode())
    assert list(labels.read(path).by_file) == ["ä.png"]
