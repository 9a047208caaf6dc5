from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metastable.engine.runners.exported import CLASSIFIER, LARGEST, ExportedRunner, pieces


@given(st.integers(1, 500), st.integers(1, LARGEST))
def test_pieces_are_powers_of_two_that_make_up_the_batch(size: int, largest: int) -> None:
    cut = pieces(size, largest)
    assert sum(cut) == size
    assert all(p <= largest and p & (p - 1) == 0 for p in cut)
    assert cut == sorted(cut, reverse=True)


@pytest.mark.parametrize(("fixed", "sizes"), [(True, [4, 2, 1]), (False, [0])])
def test_large_images_go_in_small_batches(fixed: bool, sizes: list[int]) -> None:
    built: list[int] = []
    batches: list[int] = []

    def build(graph: bytes, size: int):  # type: ignore[no-untyped-def]
        built.append(size)

        def call(x: torch.Tensor) -> torch.Tensor:
            batches.append(len(x))
            return x + 1

        return call

    runner = ExportedRunner("mine", {CLASSIFIER: b"c"}, build, fixed=fixed)
    x = torch.rand(11, 1, 224, 200)
    assert torch.equal(runner.classify(x), x + 1)
    assert built == sizes
    assert sum(batches) == 11
    assert max(batches) <= 5


def test_a_graph_is_built_once_for_a_size_and_rows_keep_their_order() -> None:
    built: list[tuple[bytes, int]] = []

    def build(graph: bytes, size: int):  # type: ignore[no-untyped-def]
        built.append((graph, size))
        return lambda x: x + 1

    runner = ExportedRunner("mine", {CLASSIFIER: b"c", "score": b"s"}, build)
    x = torch.rand(2 * LARGEST + 3, 1, 2, 2)
    assert torch.equal(runner.score("score", x), x + 1)
    assert torch.equal(runner.score("score", x[:2]), x[:2] + 1)
    assert built == [(b"s", LARGEST), (b"s", 2), (b"s", 1)]


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(RuntimeError, match="lack 'classifier'"):
        ExportedRunner("mine", {"score": b""}, lambda graph, size: lambda x: x)
    runner = ExportedRunner("mine", {CLASSIFIER: b""}, lambda graph, size: lambda x: x)
    with pytest.raises(RuntimeError, match="mine has no graph 'energy'"):
        runner.score("energy", torch.rand(1, 1, 2, 2))
