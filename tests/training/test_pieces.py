"""Large files in pieces: what is read is what was placed, or what was there before."""

from __future__ import annotations

from pathlib import Path

import pytest

from metastable.training import pieces


def placed(folder: Path, content: bytes, limit: int = 10) -> list[str]:
    part = folder / "x.part"
    part.write_bytes(content)
    pieces.place(part, folder / "x", limit)
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, 10, 11, 20, 35])
def test_any_size_comes_back(tmp_path: Path, size: int) -> None:
    content = bytes(range(size))
    names = placed(tmp_path, content)
    assert len(names) == max(1, -(-size // 10))
    assert all((tmp_path / name).stat().st_size <= 10 for name in names)
    assert pieces.read(tmp_path / "x") == content


def test_the_next_file_takes_the_place_of_the_last(tmp_path: Path) -> None:
    assert pieces.read(tmp_path / "x") is None
    for content in (b"a" * 25, b"b" * 25, b"short", b"c" * 15):
        names = placed(tmp_path, content)
        assert len(names) == -(-len(content) // 10)
        assert pieces.read(tmp_path / "x") == content
    assert placed(tmp_path, b"c" * 15) == names


def test_pieces_that_are_not_all_there_do_not_count(tmp_path: Path) -> None:
    before = placed(tmp_path, b"a" * 25)
    saved = {name: (tmp_path / name).read_bytes() for name in before}
    after = placed(tmp_path, b"b" * 35)
    for name, content in saved.items():  # as if the second writing had been cut short
        (tmp_path / name).write_bytes(content)
    (tmp_path / after[0]).unlink()
    assert pieces.read(tmp_path / "x") == b"a" * 25
    (tmp_path / before[1]).write_bytes(b"damaged")
    assert pieces.read(tmp_path / "x") is None
