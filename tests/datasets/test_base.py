import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from metastable import datasets
from metastable.errors import DataError


@pytest.fixture
def root_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        records = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(20) % 10
        (folder / name).write_bytes(records.tobytes())
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train", "t10k"):
        pixels = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
        head = struct.pack(">IIII", 2051, 6, 28, 28)
        (raw / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 6) + bytes(range(6)))
    return tmp_path


def test_cifar10_layout(root_folder: Path) -> None:
    data = datasets.load("cifar10", root_folder, "train")
    assert data.images.shape == (100, 3, 32, 32)
    assert data.labels[:11].tolist() == [*range(10), 0]
    raw = (root_folder / "cifar-10-batches-bin" / "data_batch_1.bin").read_bytes()
    assert data.images[0, 1, 2, 3] == raw[1 + 1024 + 2 * 32 + 3]  # green plane, row 2, column 3


def test_mnist_layout_packed_or_not(root_folder: Path) -> None:
    data = datasets.load("mnist", root_folder, "test")
    assert data.images.shape == (6, 1, 28, 28)
    assert data.labels.tolist() == list(range(6))


def test_taken_ranges_are_disjoint_and_repeatable(root_folder: Path) -> None:
    data = datasets.load("cifar10", root_folder, "train")
    first, second = data.take(30), data.take(40, skip=30)
    pixels = torch.cat([first.images, second.images]).flatten(1)
    assert len(torch.unique(pixels, dim=0)) == 70
    assert first.digest() == data.take(30).digest() != second.digest()


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("cifar-10-batches-bin/test_batch.bin", b"short", "3 073"),
        ("cifar-10-batches-bin/test_batch.bin", bytes([11]) * 3073, "labels above 9"),
        ("cifar-10-batches-bin/test_batch.bin", b"", "no records"),
        ("MNIST/raw/t10k-labels-idx1-ubyte", struct.pack(">II", 2049, 9) + bytes(9), "6 images but 9"),
        ("MNIST/raw/t10k-labels-idx1-ubyte", struct.pack(">II", 2049, 9), "damaged"),
        ("MNIST/raw/t10k-labels-idx1-ubyte", b"PK", "IDX"),
    ],
)
def test_damage_is_named(root_folder: Path, path: str, content: bytes, message: str) -> None:
    (root_folder / path).write_bytes(content)
    with pytest.raises(DataError, match=message):
        datasets.load("cifar10" if "cifar" in path else "mnist", root_folder, "test")


def test_missing_data_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="download"):
        datasets.load("cifar10", tmp_path, "test")
    monkeypatch.delenv("METASTABLE_DATA", raising=False)
    with pytest.raises(DataError, match="METASTABLE_DATA"):
        datasets.data_root()
    monkeypatch.setenv("METASTABLE_DATA", str(tmp_path))
    assert datasets.data_root() == tmp_path


def test_a_part_of_the_training_split_is_taken_as_it_is(root_folder: Path) -> None:
    whole = datasets.load("cifar10", root_folder, "train")
    folder = root_folder / "cifar-10-batches-bin"
    for i in (1, 3, 5):
        (folder / f"data_batch_{i}.bin").unlink()
    packed = folder / "data_batch_4.bin.gz"
    packed.write_bytes(gzip.compress((folder / "data_batch_4.bin").read_bytes()))
    (folder / "data_batch_4.bin").unlink()
    part = datasets.load("cifar10", root_folder, "train")
    assert torch.equal(part.images, torch.cat([whole.images[20:40], whole.images[60:80]]))
    assert torch.equal(part.labels, torch.cat([whole.labels[20:40], whole.labels[60:80]]))
    assert part.digest() != whole.digest()
    for i in (2, 4):
        (folder / f"data_batch_{i}.bin").unlink(missing_ok=True)
    packed.unlink()
    with pytest.raises(DataError, match="none of data_batch_1"):
        datasets.load("cifar10", root_folder, "train")


def test_labels_that_a_classifier_does_not_know_are_refused() -> None:
    found = datasets.ImageSet("few", "test", torch.zeros(2, 3, 4, 4), torch.tensor([0, 3]), ["a"] * 4)
    datasets.check_labels(found, 4, "it")
    with pytest.raises(DataError, match="it knows 3 classes, and few has labels up to 3"):
        datasets.check_labels(found, 3, "it")


def test_a_negative_number_of_images_is_refused() -> None:
    some = datasets.ImageSet("a", "test", torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4), ["x"])
    for n, skip in ((-1, 0), (2, -1)):
        with pytest.raises(DataError, match="cannot be negative"):
            some.take(n, skip=skip)
