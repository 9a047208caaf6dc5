import dataclasses

import pytest

from metastable.engine.verdict import Verdict
from metastable.errors import InvalidOption

CAT = Verdict(
    label=1,
    class_name="cat",
    probability=0.5,
    margin=1.25,
    standard_error=0.125,
    runner_up="dog",
    setting="fast",
    chains=7,
    steps=1.0,
    decided=True,
    late=False,
    score=0.2,
    threshold=0.25,
    flagged=False,
    shift=0.1,
    shift_threshold=None,
    shifted=None,
    unpurified=1,
    unpurified_name="cat",
    probabilities=(0.5, 0.5, 0.0, 0.0),
    classes=("dog", "cat", "ship", "truck"),
)


def test_it_prints_as_one_line() -> None:
    assert str(CAT) == "cat 50.0%; 1.25 ± 0.12 ahead of dog; 7 chains of fast, decided"
    other = dataclasses.replace(
        CAT,
        standard_error=None,
        chains=1,
        decided=False,
        late=True,
        score=0.5,
        flagged=True,
        unpurified=2,
        unpurified_name="ship",
    )
    assert str(other) == (
        "cat 50.0%; 1.25 ahead of dog; 1 chain of fast; late; flagged: score 0.5 above 0.25; unpurified: ship"
    )


def test_a_shift_above_its_threshold_is_said() -> None:
    moved = dataclasses.replace(CAT, shift=0.75, shift_threshold=0.5, shifted=True)
    assert str(moved).endswith("; flagged: shift 0.75 above 0.5")


def test_the_label_comes_first_among_equals() -> None:
    assert CAT.top(3) == [(1, "cat", 0.5), (0, "dog", 0.5), (2, "ship", 0.0)]


def test_a_number_of_classes_is_not_negative() -> None:
    assert CAT.top(0) == []
    assert len(CAT.top(99)) == 4
    with pytest.raises(InvalidOption, match="cannot be negative: -1"):
        CAT.top(-1)
