"""Attack sets that a cluster makes are those that are made here."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.make import make
from metastable.bundle import Bundle
from metastable.evaluation.on_ray import RayPool
from tests.loadtest.test_make import images, order

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


class Stopped(Exception):
    pass


class Stopping:
    """A pool whose user leaves after a result."""

    here, about = False, ""

    def __init__(self, pool: RayPool) -> None:
        self._pool = pool

    def map(self, work: Any, items: Iterable[int]) -> Iterator[tuple[int, Any]]:
        for number, one in enumerate(self._pool.map(work, items)):
            if number:
                raise Stopped
            yield one


@pytest.mark.parametrize("attack", ["transfer", "bpda-eot"])
def test_a_set_is_the_same_on_a_cluster_interrupted_or_not(
    tiny: Bundle, ray_pool: RayPool, tmp_path: Path, attack: str
) -> None:
    here = make(tiny, images(), order(attack), tmp_path / "here.npz")
    there = make(tiny, images(), order(attack), tmp_path / "there.npz", ray_pool)
    assert there.digest == here.digest
    assert (there.success == here.success).all()
    assert there.about == here.about
    with pytest.raises(Stopped):
        make(tiny, images(), order(attack), tmp_path / "a.npz", Stopping(ray_pool))
    assert len(list((tmp_path / "a.parts").glob("*.safetensors"))) == 1
    again = make(tiny, images(), order(attack), tmp_path / "a.npz", ray_pool)
    assert again.digest == here.digest
    assert (tmp_path / "here.npz").read_bytes() == (tmp_path / "a.npz").read_bytes()
