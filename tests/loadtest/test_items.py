import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import items, sets
from loadtest.items import Item, Part, Source
from metastable.errors import DataError
from tests.loadtest.test_sets import small

HERE = Path("sets")


def source(name: str, n: int) -> Source:
    return Source(name, "clean", [Item(b"", i, name, i, i) for i in range(n)], {})


def test_a_mix_is_parsed() -> None:
    assert items.parse_mix("clean:0.9,pgd:0.1", HERE) == [
        Part(HERE / "clean.npz", 0.9),
        Part(HERE / "pgd.npz", 0.1),
    ]
    assert items.parse_mix("clean, a/b.npz", HERE) == [
        Part(HERE / "clean.npz", None),
        Part(Path("a/b.npz"), None),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "form"),
        ("clean:0.9,", "form"),
        (":0.5", "form"),
        ("clean:x,pgd:0.1", "number"),
        ("clean:0.5,pgd:0.4", "sum to 1"),
        ("clean:1.5,pgd:-0.5", "above 0"),
        ("clean:0.5,pgd", "all sets or for none"),
        ("clean:nan", "above 0"),
        ("clean,clean", "twice"),
    ],
)
def test_a_wrong_mix_is_explained(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        items.parse_mix(text, HERE)


@given(st.text(max_size=30))
def test_any_text_is_a_mix_or_a_data_error(text: str) -> None:
    try:
        parts = items.parse_mix(text, HERE)
    except DataError:
        return
    assert parts
    assert all(part.share is None or 0 < part.share <= 1 for part in parts)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 300), st.integers(0, 9))
def test_shares_are_kept_to_the_image(weights: list[int], n: int, seed: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    drawn = items.draw([source(str(i), 7) for i in range(len(weights))], shares, n, seed)
    counts = Counter(item.source for item in drawn)
    assert len(drawn) == n
    assert all(abs(counts[str(i)] - share * n) < 1 + 1e-6 for i, share in enumerate(shares))


def test_without_shares_every_image_comes_once_in_an_order_of_the_seed() -> None:
    both = [source("a", 5), source("b", 3)]
    drawn = items.draw(both, [None, None], None, seed=1)
    assert sorted((i.source, i.row) for i in drawn) == [("a", i) for i in range(5)] + [
        ("b", i) for i in range(3)
    ]
    assert drawn == items.draw(both, [None, None], None, seed=1)
    assert drawn != items.draw(both, [None, None], None, seed=2)
    assert items.draw(both, [None, None], 4, seed=1) == drawn[:4]


def test_a_short_source_starts_over() -> None:
    drawn = items.draw([source("a", 2)], [1.0], 5, seed=0)
    assert sorted(Counter(item.row for item in drawn).values()) == [2, 3]


def test_a_set_is_sent_to_the_last_bit(tmp_path: Path) -> None:
    made = small()
    sets.save(tmp_path / "pgd.npz", made)
    found = items.read(tmp_path / "pgd.npz")
    assert (found.name, found.attack, found.about["digest"]) == ("pgd", "transfer", made.digest)
    for i, item in enumerate(found.items):
        assert (np.load(io.BytesIO(item.body)) == made.images[i]).all()
        assert (item.label, item.source, item.row) == (int(made.labels[i]), "pgd", i)


def test_a_folder_of_images_with_labels(tmp_path: Path, root: Path) -> None:
    (tmp_path / "cat.png").write_bytes((root / "samples" / "cat.png").read_bytes())
    (tmp_path / "labels.csv").write_text("file,label\ncat.png,3\n")
    found = items.read(tmp_path)
    assert found.attack == "clean"
    assert found.items == [Item((tmp_path / "cat.png").read_bytes(), 3, tmp_path.name, 0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no picture"),
        ("file,label\n", "names no picture"),
        ("name,class\na.png,3\n", "names of classes: give their numbers"),
        ("file,label\nnone.png,3\n", r"line 2: none\.png cannot be read"),
        ("file,label\na.png,cat\n", "names of classes: give their numbers"),
        ("file,label\na.png\n", "line 2: there are 1 fields, not 2"),
        ("file,label\na.png,-1\n", "names of classes: give their numbers"),
        ("file,label\na.png,1\n../secret.png,1\n", r"line 3: '\.\./secret\.png' is not the name of a file"),
        ("file,label\n/etc/hostname,1\n", "line 2: '/etc/hostname' is not the name of a file"),
        ("file,label\nlink.png,1\n", r"line 2: link\.png is a link that leads out"),
    ],
)
def test_a_wrong_folder_is_explained(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        items.read(tmp_path)


def test_a_folder_without_labels_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.csv"):
        items.read(tmp_path)
