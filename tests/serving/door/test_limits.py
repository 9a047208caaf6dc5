"""Limits check themselves."""

import dataclasses
from typing import Any

import pytest

from metastable.errors import SettingsError
from metastable.serving.door.limits import Limits


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "5", None, True])
def test_a_limit_is_positive_and_finite(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"limit {name} must be"):
        Limits(**{name: value})


def test_counts_are_whole() -> None:
    with pytest.raises(SettingsError, match="a whole number"):
        Limits(connections=1.5)  # type: ignore[arg-type]
    assert Limits(idle_seconds=1).idle_seconds == 1


def test_every_limit_is_documented() -> None:
    assert Limits.__doc__ is not None
    for field in dataclasses.fields(Limits):
        assert field.name in Limits.__doc__
