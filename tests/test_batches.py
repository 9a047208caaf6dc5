from pathlib import Path

import numpy as np
import pytest
import torch

from metastable.batches import batch_of
from metastable.errors import InvalidImage, MalformedRequest, TooLarge, UnsupportedImage
from metastable.images import decode

SHAPE = (3, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_any_precision_become_float32(dtype: torch.dtype) -> None:
    given = torch.rand(2, *SHAPE).to(dtype)
    batch = batch_of(given, SHAPE)
    assert batch.dtype == torch.float32
    assert torch.equal(batch, given.float())


def test_arrays_are_copied_whatever_their_layout() -> None:
    given = np.random.default_rng(0).random((2, 8, 8, 3)).astype(">f4").transpose(0, 3, 1, 2)[::-1]
    given.setflags(write=False)
    batch = batch_of(given, SHAPE)
    assert batch.is_contiguous()
    assert np.array_equal(batch.numpy(), given)
    tensor = torch.zeros(1, *SHAPE)
    kept = batch_of(tensor, SHAPE)
    tensor += 1
    assert float(kept.max()) == 0


def test_files_are_read_as_the_server_reads_them(root: Path) -> None:
    path = root / "samples" / "cat.png"
    batch = batch_of([path, str(path), path.read_bytes()], SHAPE)
    expected = decode(path.read_bytes(), size=8).pixels
    assert batch.shape == (3, *SHAPE)
    for image in batch:
        assert torch.equal(image, expected)
    assert batch_of([], SHAPE).shape == (0, *SHAPE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(SHAPE), r"shape \[3, 8, 8\], this bundle takes \[N, 3, 8, 8\]: add the first axis"),
        (torch.zeros(1, 8, 8, 3), r"shape \[1, 8, 8, 3\], this bundle takes \[N, 3, 8, 8\]$"),
        (torch.zeros(1, *SHAPE, dtype=torch.uint8), "type uint8: give floats"),
        (np.zeros((1, *SHAPE), np.int64), "type int64: give floats"),
        (np.full((1, *SHAPE), "a"), "give floats"),
        (torch.full((2, *SHAPE), 255.0), "image 0 has values from 255 to 255: every value"),
        (np.full((1, *SHAPE), 1e300), "image 0 has values from inf to inf"),
        (torch.tensor([0.5, float("nan")]).view(2, 1, 1, 1).expand(2, *SHAPE), "image 1 has NaN"),
        (torch.full((1, *SHAPE), -0.01), "image 0 has values from -0.01"),
        ("cat.png", "put it into a list"),
        (b"bytes", "put it into a list"),
        (["nothing/here.png"], "image 0: .*here.png cannot be read: No such file"),
        ([3.5], "holds a float: give paths"),
        (None, "the images are of type NoneType: give paths or bytes"),
        (3, "the images are of type int: give paths or bytes"),
        (torch.zeros(1, *SHAPE).to_sparse(), "sparse or nested tensor: give a dense one"),
        (torch.zeros(1, *SHAPE, device="meta"), "on the meta device, which has no values"),
        (np.ma.masked_array(np.zeros((1, *SHAPE))), "masked array: fill what is masked"),
        (torch.tensor(0.5), r"shape \[\], this bundle takes"),
    ],
)
def test_what_is_no_batch_is_said(given: object, message: str) -> None:
    with pytest.raises(InvalidImage, match=message):
        batch_of(given, SHAPE)  # type: ignore[arg-type]


def test_an_iterator_of_files_is_a_list_of_them(root: Path) -> None:
    files = sorted((root / "samples").glob("*.png"))
    assert torch.equal(batch_of(iter(files), SHAPE), batch_of(files, SHAPE))  # type: ignore[arg-type]


def test_wrong_files_keep_their_error_and_get_a_number(root: Path, tmp_path: Path) -> None:
    good = root / "samples" / "cat.png"
    (tmp_path / "large.png").write_bytes(bytes(3_000_000))
    with pytest.raises(UnsupportedImage, match="image 1: The image format is not supported"):
        batch_of([good, b"not an image"], SHAPE)
    with pytest.raises(MalformedRequest, match="image 1: The image is empty"):
        batch_of([good, b""], SHAPE)
    with pytest.raises(TooLarge, match=r"image 0: .*more than 2000000 bytes"):
        batch_of([tmp_path / "large.png"], SHAPE)
