from __future__ import annotations

import json
import math
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import common

CPU = torch.device("cpu")


def test_a_table_is_aligned_and_what_a_row_lacks_is_a_dash() -> None:
    text = common.table([{"a": 1.23456, "b": "long name"}, {"a": 2}], ("a", "b")).splitlines()
    assert [line.split() for line in text] == [["a", "b"], ["1.235", "long", "name"], ["2", "-"]]
    assert text[0].index("b") == text[1].index("long") == text[2].index("-")


def test_works_are_timed_in_turn_and_slow_ones_take_longer() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.004)

    times = common.interleave({"slow": slow, "fast": lambda: order.append("fast")}, CPU, 3, 0.0)
    assert [len(taken) for taken in times.values()] == [3, 3]
    assert min(times["slow"]) > 0.004
    assert max(times["fast"]) < min(times["slow"])
    assert order[-6:] == ["slow", "fast"] * 3


def test_quartiles_of_one_sample_are_the_sample() -> None:
    assert common.quartiles([2.0]) == (2.0, 2.0, 2.0)
    assert math.isclose(common.quartiles([1.0, 2.0, 3.0])[1], 2.0)


@pytest.mark.parametrize("named", [True, False])
def test_what_there_is_lies_where_results_come_back_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "back"))
    out = tmp_path / "given" / "x.json" if named else tmp_path / "back" / "gpu-fast.json"
    args = Namespace(out=out if named else None, device="cpu", tiny=True)
    for rows in ([1], [1, 2]):
        common.save(args, {"command": "gpu fast", "rows": rows})
        found = json.loads(out.read_text())
        assert (found["rows"], found["finished"]) == (rows, False)
        assert [path.name for path in out.parent.iterdir()] == [out.name]
    monkeypatch.delenv("OUT")
    common.save(Namespace(out=None, device="cpu", tiny=True), {"command": "gpu fast", "rows": []})
