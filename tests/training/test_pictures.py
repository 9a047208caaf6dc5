import csv
import hashlib
from dataclasses import asdict
from pathlib import Path

import pytest

from metastable import walk
from metastable.cli import main
from metastable.errors import DataError
from metastable.training import pictures
from metastable.training.pictures import Listed
from tests.training.resources import packed

SHIPPED = "model_store/natural/pictures.csv"
FREE = {"CC0-1.0", "public domain", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0"}


def line(name: str, file: str, data: bytes, left_out: str = "") -> Listed:
    digest = hashlib.sha256(data).hexdigest()
    return Listed(name, "photos 1", file, digest, "somebody", "CC0-1.0", "somewhere", left_out)


def listing(path: Path, lines: list[Listed]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Listed.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(one) for one in lines)
    return path


def test_listed_pictures_are_taken_and_others_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packages, out = tmp_path / "packages", tmp_path / "out"
    (packages / "usr").mkdir(parents=True)
    (packages / "usr/plain.jpg").write_bytes(b"plain")
    (packages / "usr/all.rcc").write_bytes(packed({"a/one.webp": b"one", "a/two.webp": b"two"}))
    lines = [
        line("plain.jpg", "usr/plain.jpg", b"plain"),
        line("b/one.webp", "usr/all.rcc:a/one.webp", b"one"),
        line("b/two.webp", "usr/all.rcc:a/two.webp", b"another one"),
        line("gone.webp", "usr/all.rcc:a/gone.webp", b""),
        line("drawn.webp", "usr/all.rcc:a/two.webp", b"two", "a drawing"),
    ]
    path = listing(tmp_path / "list.csv", lines)
    main(["pictures", "--packages", str(packages), "--list", str(path), "--out", str(out)])
    found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert found == {"plain.jpg": b"plain", "b/one.webp": b"one"}
    said = capsys.readouterr().out
    assert "b/two.webp is another picture: it is of photos 1" in said
    assert "gone.webp is absent" in said
    assert '"missing": ["b/two.webp", "gone.webp"]' in said


def test_a_list_cannot_write_outside_of_its_folder(tmp_path: Path) -> None:
    for name in ("../out.png", "/out.png", ""):
        with pytest.raises(DataError, match="leads out of the folder"):
            list(pictures.listed(listing(tmp_path / "list.csv", [line(name, "x", b"")])))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="not a list of pictures"):
        list(pictures.listed(tmp_path / "other.csv"))


def test_every_shipped_picture_is_free_and_attributed(root: Path) -> None:
    lines = list(pictures.listed(root / SHIPPED))
    taken = [one for one in lines if not one.left_out]
    assert len(taken) > 200
    assert len({one.name for one in lines}) == len(lines)
    for one in taken:
        assert one.licence in FREE, one.name
        assert one.author, one.name
        assert one.source.startswith("https://"), one.name
        assert len(one.sha256) == 64
        assert Path(one.name).suffix in walk.SUFFIXES
    assert len({one.source for one in taken if "gcompris" in one.package}) == sum(
        "gcompris" in one.package for one in taken
    )  # no picture twice, which might be held out and trained on
