import pytest

from metastable.errors import DataError
from metastable.training import rcc
from tests.training.resources import packed

FILES = {"a/b/one.webp": b"1" * 1000, "a/two.txt": b"", "a/b/drei-ü.png": bytes(range(256))}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compress", [False, True])
def test_files_come_back_by_path(version: int, compress: bool) -> None:
    assert dict(rcc.files(packed(FILES, version, compress))) == FILES


@pytest.mark.parametrize("cut", [3, 19, 40, 120, -3])
def test_a_file_that_was_cut_is_refused(cut: int) -> None:
    with pytest.raises(DataError, match=r"damaged|not an \.rcc"):
        list(rcc.files(packed(FILES)[:cut]))


def test_other_files_and_loops_are_refused() -> None:
    with pytest.raises(DataError, match=r"not an \.rcc file"):
        list(rcc.files(b"RIFF" + bytes(100)))
    looped = bytearray(packed(FILES))
    looped[24 + 10 : 24 + 14] = (0).to_bytes(4, "big")  # the root's first child is the root
    with pytest.raises(DataError, match="damaged"):
        list(rcc.files(bytes(looped)))
