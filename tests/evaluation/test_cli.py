from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastable.evaluation import cli


@given(st.fractions(min_value=0, max_value=10), st.integers(1, 1000))
def test_a_ratio_is_exact(above: Fraction, below: int) -> None:
    assert cli.ratio(f"{above.numerator}/{below}") == Fraction(above.numerator, below)


def test_lengths_are_written_as_people_write_them() -> None:
    assert cli.fraction("8/255") == 8 / 255
    assert cli.fraction("0.5/255") == 0.5 / 255
    assert cli.fractions("0.25,1/2") == [0.25, 0.5]
    assert cli.whole_numbers("1,150") == [1, 150]


@pytest.mark.parametrize("text", ["", "a", "1/0", "1/-2", "1/2/3", "8/", "nan"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        cli.ratio(text)


@pytest.mark.parametrize("text", ["0", "1,-1", "1.5", ""])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        cli.whole_numbers(text)
