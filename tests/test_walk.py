from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from metastable.errors import DataError
from metastable.walk import walk


def test_pictures_below_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/z.jpg", "a/b/c.webp", "d.npy", "notes.txt", ".hidden.png", ".thumbs/e.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert walk(tmp_path) == (["a/b/c.webp", "a/z.jpg", "b.PNG", "d.npy"], 0)


def test_links_are_followed_inside_only_and_no_picture_is_there_twice(tmp_path: Path) -> None:
    folder, secret = tmp_path / "photos", tmp_path / "secret"
    for place in (folder, folder / ".store", secret):
        place.mkdir()
    (secret / "s.png").write_bytes(b"")
    (folder / "own.png").write_bytes(b"")
    (folder / ".store" / "kept.png").write_bytes(b"")
    (folder / "a-link.png").symlink_to(folder / "own.png")  # the picture is there itself
    (folder / "c.png").symlink_to(folder / ".store" / "kept.png")
    (folder / "b.png").symlink_to(folder / ".store" / "kept.png")
    (folder / "out.png").symlink_to(secret / "s.png")
    (folder / "below").symlink_to(secret, target_is_directory=True)
    (folder / "around").symlink_to(folder, target_is_directory=True)
    assert walk(folder) == (["b.png", "own.png"], 1)
    assert walk(folder / "around") == (["b.png", "own.png"], 1)  # the folder itself may be a link


def test_what_is_no_folder_of_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no pictures \(\.jpeg"):
        walk(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        walk(tmp_path / "none")


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is made up, because some users may read everything."""
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    scandir = os.scandir

    def scanned(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scanned)
    with pytest.raises(DataError, match="locked cannot be read: Permission denied"):
        walk(tmp_path)


@pytest.mark.timeout(20)
def test_pipes_and_folders_with_the_name_of_a_picture_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert walk(tmp_path) == (["a.png"], 2)
