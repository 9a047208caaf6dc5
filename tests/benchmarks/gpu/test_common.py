from __future__ import annotations

import math
import time

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
