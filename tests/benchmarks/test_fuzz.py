from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import fuzz
from tests.launched import free_port
from tests.serving.door.conftest import png


def test_a_mutation_changes_something_and_is_known_again() -> None:
    requests = fuzz.valid(png())
    assert len(requests) >= 10
    found = [fuzz.mutated(requests[i % len(requests)], random.Random(i)) for i in range(300)]
    assert found == [fuzz.mutated(requests[i % len(requests)], random.Random(i)) for i in range(300)]
    changed = [one for i, one in enumerate(found) if one != requests[i % len(requests)]]
    assert len(changed) > 280


def test_most_bodies_come_with_their_length() -> None:
    """So that what reads them is tried, and not only what reads heads."""
    whole = fuzz.valid(png())[0]
    right = 0
    for seed in range(200):
        head, _, body = fuzz.mutated(whole, random.Random(seed)).partition(b"\r\n\r\n")
        right += b"Content-Length: %d\r\n" % len(body) in head
    assert 120 < right < 200


@pytest.mark.server
def test_no_mutated_request_is_a_fault_of_the_server(tiny_folder: Path, tmp_path: Path) -> None:
    ports = (free_port(), free_port())
    found = fuzz.measure(tiny_folder, png(), tmp_path / "wrong", count=400, seed=1, ports=ports, warm=20)
    assert found["wrong"] == []
    assert sum(found["outcomes"].values()) == 400
    assert found["ready_afterwards"]
