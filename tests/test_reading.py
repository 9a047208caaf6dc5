import errno
import os
from pathlib import Path

import pytest

from metastable import reading


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"12345")
    assert reading.read(file, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes") as error:
        reading.read(file, 4)
    assert error.value.errno == errno.EFBIG


@pytest.mark.timeout(20)
def test_what_has_no_end_or_no_beginning_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            reading.read(path, 100)


def test_a_file_that_says_that_it_is_empty_is_read_to_the_limit_only() -> None:
    status = Path("/proc/self/status")
    assert status.stat().st_size == 0
    with pytest.raises(OSError, match="more than 10 bytes"):
        reading.read(status, 10)


def test_names_that_cannot_be_are_refused() -> None:
    with pytest.raises(OSError, match="null byte"):
        reading.read(Path("a\0b"), 10)
    with pytest.raises(FileNotFoundError):
        reading.read(Path("nowhere"), 10)
