import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from metastable.errors import DataError, MetastableError
from metastable.evaluation import on_ray
from metastable.evaluation.on_ray import RayPool

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


class Counting:
    """How often this copy was asked, its process, and its threads."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, item: int) -> tuple[int, int, int]:
        self.asked += 1
        return self.asked, os.getpid(), torch.get_num_threads()


def test_a_process_gets_the_work_once_and_has_the_threads_asked_for(ray_pool: RayPool) -> None:
    work = Counting()
    found = dict(ray_pool.map(work, range(12)))
    assert sorted(found) == list(range(12))
    more = dict(ray_pool.map(work, range(4)))  # the same work again is not sent again
    every = [*found.values(), *more.values()]
    assert {threads for _, _, threads in every} == {torch.get_num_threads()}
    assert os.getpid() not in {process for _, process, _ in every}
    for process in {process for _, process, _ in every}:
        asked = [count for count, of, _ in every if of == process]
        assert sorted(asked) == list(range(1, len(asked) + 1))
    assert work.asked == 0


@dataclass
class Dying:
    """Kills its process the first time that it is asked for an item, or every time."""

    folder: Path
    always: bool = False

    def __call__(self, item: int) -> int:
        mark = self.folder / str(item)
        if self.always or not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 10 * item


def test_items_of_workers_that_die_are_done_again(ray_pool: RayPool, tmp_path: Path) -> None:
    assert dict(ray_pool.map(Dying(tmp_path), range(3))) == {0: 0, 1: 10, 2: 20}
    assert len(list(tmp_path.iterdir())) == 3


def test_an_item_that_kills_every_worker_is_given_up(
    ray_pool: RayPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "RETRIES", 1)
    with pytest.raises(MetastableError, match="Ray lost a task 2 times"):
        list(RayPool(ray, torch.get_num_threads(), 0).map(Dying(tmp_path, always=True), [7]))


def refuse(item: int) -> int:
    if item == 2:
        raise DataError("two is too many")
    return item


def test_an_error_is_that_of_the_work(ray_pool: RayPool) -> None:
    with pytest.raises(DataError, match=r"^two is too many$") as caught:
        list(ray_pool.map(refuse, range(4)))
    assert type(caught.value) is DataError


def test_no_more_is_handed_in_than_can_soon_be_done_and_a_closed_iterator_takes_no_more(
    ray_pool: RayPool,
) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100, 200):
            taken.append(item)
            yield item

    found = ray_pool.map(refuse, items())
    next(found)
    assert len(taken) == 2 * on_ray.AHEAD  # of two workers
    next(found)
    assert len(taken) == 2 * on_ray.AHEAD + 1
    found.close()  # type: ignore[attr-defined]
    assert dict(ray_pool.map(refuse, [0, 1])) == {0: 0, 1: 1}
    assert len(taken) == 2 * on_ray.AHEAD + 1


def test_other_versions_are_refused(ray_pool: RayPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "__version__", "0.0")
    with pytest.raises(DataError, match="install the same"):
        list(RayPool(ray, torch.get_num_threads(), 0).map(refuse, [0]))


def test_what_no_machine_has_is_refused_at_once(ray_pool: RayPool) -> None:
    with pytest.raises(DataError, match="no machine of the Ray cluster has 1 CPUs and 99 GPUs"):
        RayPool(ray, 1, 99)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "no.such.host.invalid:6379"])
def test_where_no_cluster_is_an_error_says_so_soon(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match=f"no Ray cluster lets in at {address}"), on_ray.connected(address):
        pass
    assert time.monotonic() - started < 60
