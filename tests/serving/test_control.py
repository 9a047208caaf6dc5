"""What travels over a control channel arrives as it was."""

from __future__ import annotations

import json

import pytest

from deploy.java import JavaError
from metastable.errors import (
    BundleError,
    DeadlineExceeded,
    Draining,
    MetastableError,
    Overloaded,
    TooMany,
    Unavailable,
)
from metastable.images import Fit
from metastable.serving.backends.base import Served
from metastable.serving.control import described, error_of, refusal, served_of


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("full", 2.5),
        Unavailable("gone", 4.0),
        TooMany("you", 1.5),
        Draining("stopping"),
        DeadlineExceeded("late"),
        BundleError("damaged"),
        MetastableError("inside"),
    ],
    ids=lambda error: error.code,
)
def test_an_error_arrives_as_it_was(error: MetastableError) -> None:
    arrived = error_of(**json.loads(json.dumps(refusal(error))))
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert getattr(arrived, "retry_after", None) == getattr(error, "retry_after", None)


def test_an_error_without_a_code_of_its_own_is_one_inside() -> None:
    assert issubclass(JavaError, MetastableError)  # which has the code of that
    assert type(error_of("internal", "x", None)) is MetastableError
    assert type(error_of("from the future", "x", None)) is MetastableError
    full = error_of("overloaded", "x", None)
    assert isinstance(full, Overloaded)
    assert full.retry_after == 1.0


def test_what_is_served_arrives_as_it_was() -> None:
    fit = Fit("crop", 0.875, "bilinear")
    served = Served("n", "1", "d", (1, 2, 3), fit, ("a",), ("fast", "none"), "fast", True, "torch")
    assert served_of(json.loads(json.dumps(described(served)))) == served
    with pytest.raises(TypeError):
        served_of({**described(served), "more": 1})
