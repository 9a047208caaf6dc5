import dataclasses
from dataclasses import dataclass

import pytest

from metastable.console import Parser
from metastable.training.__main__ import TRAINERS
from metastable.training.fields import add_fields, descriptions


@dataclass
class Below:
    """What it is.

    Attributes:
        one: the first
            of them.
        two: 50 % of it.

    Not a field: this.
    """

    one: int = 1
    two: bool = True


@dataclass
class Above(Below):
    """More.

    Attributes:
        two: said anew.
        three: a: colon.
    """

    three: str = ""


def test_a_text_is_that_of_the_docstring() -> None:
    assert descriptions(Below) == {"one": "the first of them", "two": "50 % of it"}
    assert descriptions(Above) == {"one": "the first of them", "two": "said anew", "three": "a: colon"}


def test_options_take_values_and_explain_themselves() -> None:
    parser = Parser()
    add_fields(parser, Below, Below(one=5))
    assert "50 % of it" in parser.format_help()
    assert vars(parser.parse_args(["--no-two"])) == {"one": 5, "two": False}


@pytest.mark.parametrize("name", TRAINERS)
def test_every_field_has_one_description(name: str) -> None:
    config = TRAINERS[name][0]
    assert set(descriptions(config)) == {field.name for field in dataclasses.fields(config)}
