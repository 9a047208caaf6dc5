import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastable.errors import InvalidOption, MalformedRequest, RequestError
from metastable.serving import options
from metastable.serving.options import Allowed

POLICY = Allowed(settings=("none", "fast"), default="fast", classes=10)
OPEN = Allowed(settings=("none", "fast"), default="fast", classes=10, allow_seed=True)


def test_defaults() -> None:
    chosen = options.parse({"Host": "x", "Content-Type": "image/png"}, {}, POLICY)
    assert (chosen.setting, chosen.top_k, chosen.deadline_ms, chosen.seed) == ("fast", 3, None, None)


def test_headers_of_any_case_and_fields() -> None:
    headers = {"X-METASTABLE-Setting": "none", "x-metastable-deadline-ms": "250"}
    chosen = options.parse(headers, {"top_k": "10", "seed": "18446744073709551615"}, OPEN)
    assert (chosen.setting, chosen.top_k, chosen.deadline_ms, chosen.seed) == ("none", 10, 250, 2**64 - 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"setting": "magic"}, "setting must be one of none, fast"),
        ({"seed": "1"}, "does not let clients"),
        ({"top_k": "0"}, "from 1 to 10"),
        ({"top_k": "11"}, "from 1 to 10"),
        ({"top_k": "1.5"}, "whole number"),
        ({"deadline_ms": "-5"}, "deadline_ms"),
        ({"deadline_ms": "600001"}, "deadline_ms"),
        ({"deadline_ms": "١"}, "deadline_ms"),  # a digit, but not ours
    ],
)
def test_a_bad_value_is_named(fields: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        options.parse({}, fields, POLICY)


def test_conflicts_and_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidOption, match="twice"):
        options.parse({"X-Metastable-Setting": "fast"}, {"setting": "none"}, POLICY)
    with pytest.raises(InvalidOption, match="unknown name"):
        options.parse({"X-Metastable-Speed": "9"}, {}, POLICY)
    assert options.parse({"X-Metastable-Setting": "none"}, {"setting": "none"}, POLICY).setting == "none"


def test_body_and_form() -> None:
    assert options.split_body({"body": bytearray(b"png")}) == (b"png", {})
    row = {"image": bytearray(b"png"), "setting": bytearray(b"fast")}
    assert options.split_body(row) == (b"png", {"setting": "fast"})


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"image": b"a", "data": b"b"},
        {"body": {"a": 1}},
        {"body": "text"},
        {"image": b"a", "setting": b"\xff"},
        {"image": b"a", "setting": b"x" * 101},
        {"image": b"a", "other": b"b"},
    ],
)
def test_bad_bodies_are_refused(row: dict[str, object]) -> None:
    with pytest.raises((MalformedRequest, InvalidOption)):
        options.split_body(row)


VALUES = st.one_of(st.binary(max_size=8), st.text(max_size=8), st.none(), st.integers())


ROWS = st.dictionaries(st.sampled_from(["image", "body", "setting", "top_k", "seed", "x"]), VALUES)
HEADERS = st.dictionaries(st.text(max_size=8).map("X-Metastable-{}".format), st.text(max_size=8))


@given(ROWS, HEADERS)
def test_nothing_but_request_errors(row: dict[str, object], headers: dict[str, str]) -> None:
    try:
        _, fields = options.split_body(row)
        chosen = options.parse(headers, fields, OPEN)
    except RequestError:
        return
    assert chosen.setting in OPEN.settings
    assert 1 <= chosen.top_k <= 10
