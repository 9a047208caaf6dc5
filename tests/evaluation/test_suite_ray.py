"""Attacks on a cluster come to what they come to here, to the bit, whatever is interrupted or dies."""

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metastable import bundle, datasets
from metastable.evaluation import robust, suite
from metastable.evaluation.groups import Found, Group, Judge
from metastable.evaluation.on_ray import RayPool
from metastable.evaluation.outcomes import read_outcomes
from metastable.evaluation.pool import Here, Item, Pool, Result
from metastable.evaluation.robust_rows import Row
from tests.evaluation.asked import MEMBERS, config

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

TIMES = ("ms", "seconds")
RADII = (0.02, 0.1)


def outcomes(folder: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """All but the times, by folder, setting, attack and image."""
    return {
        (str(path.parent.relative_to(folder)), o["setting"], o["attack"], str(o["index"])): {
            key: value for key, value in o.items() if key not in TIMES
        }
        for path in folder.rglob("outcomes.jsonl")
        for o in read_outcomes(path)
    }


def pictures(folder: Path) -> dict[str, bytes]:
    """The images that were judged."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def known(measured: list[dict[str, Any]]) -> str:
    """Summaries without their times."""
    return json.dumps([without(one) for one in measured])


def without(one: dict[str, Any]) -> dict[str, Any]:
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in one.get("attacks", [])]
    return {k: v for k, v in one.items() if k not in TIMES} | {"attacks": rows}


@pytest.fixture
def measure(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> Callable[[str, Pool], list[dict[str, Any]]]:
    """The suite in a folder of this name."""

    def run(folder: str, pool: Pool) -> list[dict[str, Any]]:
        asked = ["fast", "langevin"], RADII, config(), tmp_path / folder
        return suite.measure(tiny, test_set, *asked, members=MEMBERS, pool=pool)

    return run


Measure = Callable[[str, Pool], list[dict[str, Any]]]


def test_a_suite_is_the_same_on_a_cluster(measure: Measure, ray_pool: RayPool, tmp_path: Path) -> None:
    here, there = measure("here", Here()), measure("there", ray_pool)
    assert known(there) == known(here)
    found = outcomes(tmp_path / "there")
    assert found == outcomes(tmp_path / "here")
    assert {key[2] for key in found} == {"natural", *MEMBERS}
    assert pictures(tmp_path / "there") == pictures(tmp_path / "here") != {}


class Stopped(Exception):
    pass


class Stopping:
    """A pool whose user leaves after a few results."""

    here, about = False, ""

    def __init__(self, pool: Pool, after: int) -> None:
        self._pool, self._left = pool, after

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        for one in self._pool.map(work, items):
            if not self._left:
                raise Stopped
            self._left -= 1
            yield one


@pytest.mark.parametrize("after", [5, 14])
def test_an_interrupted_suite_goes_on_anywhere(
    measure: Measure, ray_pool: RayPool, tmp_path: Path, after: int
) -> None:
    whole = measure("whole", Here())
    for name, pools in {"there": (ray_pool, ray_pool), "back": (ray_pool, Here())}.items():
        with pytest.raises(Stopped):
            measure(name, Stopping(pools[0], after))
        begun = outcomes(tmp_path / name)
        assert 0 < len(begun) < len(outcomes(tmp_path / "whole"))
        if after == 5:  # and half a group
            [path] = (tmp_path / name).glob("*/outcomes.jsonl")
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]) + '{"setting": "fa')
        assert known(measure(name, pools[1])) == known(whole)
        assert outcomes(tmp_path / name) == outcomes(tmp_path / "whole")
        assert pictures(tmp_path / name) == pictures(tmp_path / "whole")


@dataclass(frozen=True)
class Dying:
    """A judge that kills its process in its first try at every group of an attack."""

    judge: Judge
    folder: Path

    def __call__(self, group: Group) -> Found:
        mark = self.folder / f"{group.setting}-{group.attack}-{group.eps}-{group.first}"
        found = self.judge(group)
        if group.attack == MEMBERS[1] and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return found


class Deadly:
    """A pool of such workers."""

    here, about = False, ""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self._pool, self._folder = pool, folder

    def map(self, work: Any, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
        return self._pool.map(Dying(work, self._folder), items)


def test_workers_that_are_killed_lose_nothing(measure: Measure, ray_pool: RayPool, tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    here, there = measure("here", Here()), measure("there", Deadly(ray_pool, tmp_path / "killed"))
    assert len(list((tmp_path / "killed").iterdir())) > 2
    assert known(there) == known(here)
    assert outcomes(tmp_path / "there") == outcomes(tmp_path / "here")
    for path in (tmp_path / "there").rglob("outcomes.jsonl"):
        lines = path.read_text().splitlines()
        assert len({line.split('"label"')[0] for line in lines}) == len(lines)  # nothing twice


def test_rows_are_the_same_on_a_cluster(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, ray_pool: RayPool, tmp_path: Path
) -> None:
    rows = [Row("none", "transfer", 5), Row("fast", "bpda-eot", 5), Row("fast", "score-aware", 4)]
    found = {}
    for name, pool in {"here": Here(), "there": ray_pool}.items():
        found[name] = known(robust.measure(tiny, test_set, rows, config(), tmp_path / name, pool=pool))
    assert found["there"] == found["here"]
    assert outcomes(tmp_path / "there") == outcomes(tmp_path / "here")
    assert pictures(tmp_path / "there") == pictures(tmp_path / "here")
