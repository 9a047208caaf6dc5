import pytest

from export.adapt.following import FACTOR, _axis
from export.adapt.running import Failed


@pytest.mark.parametrize(
    ("before", "at", "after", "left", "axis", "inside"),
    [
        ((1, 48), 0, (1, 3, 16), 1, 0, 1),  # first, as nearly always
        ((4, 1, 16), 1, (4, 2, 8), 1, 1, 1),  # heads join the batch, which stands second
        ((4, 2, 8), 1, (4, 1, 16), 1, 1, 1),
        ((4, 1, 8), 1, (4, 2, 4), 1, 1, 1),
        ((4, 1, 8), 1, (4, 8), 1, 0, 4),  # it lies inside of an axis: after the tokens
        ((4, 8), 0, (4, 1, 8), 4, 1, 1),  # and comes out again
        ((64, 4, 8), 0, (1, 64, 4, 8), 1, 0, 1),  # windows are taken apart
    ],
)
def test_the_batch_stays_where_it_lies_in_memory(
    before: tuple[int, ...], at: int, after: tuple[int, ...], left: int, axis: int, inside: int
) -> None:
    grown = tuple(FACTOR * n if i == at else n for i, n in enumerate(before))
    assert _axis(before, grown, after, left, 1, weighed=False) == (axis, inside)


def test_an_axis_that_meets_weights_stays_whole() -> None:
    """[tokens, batch * heads, 4] becomes [tokens * batch, 8] where a linear layer follows."""
    assert _axis((5, 2, 4), (5, 14, 4), (5, 8), 1, 1, weighed=True) == (0, 5)
    assert _axis((5, 2, 4), (5, 14, 4), (5, 8), 1, 1, weighed=False) == (1, 1)


def test_a_batch_that_cannot_be_followed() -> None:
    with pytest.raises(Failed, match="several axes"):
        _axis((2, 2), (14, 14), (4,), 1, 1, weighed=False)
    with pytest.raises(Failed, match="gets lost"):
        _axis((3, 1, 4), (3, 7, 4), (4, 3), 1, 1, weighed=False)
