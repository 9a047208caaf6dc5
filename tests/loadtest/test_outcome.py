import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import outcome
from loadtest.items import npy
from tests.loadtest.servers import image, verdict

GOOD = verdict(npy(image(7, 0.25)), "fast")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "error"]), inner),
    max_leaves=8,
)


def test_a_verdict_is_read() -> None:
    name, found = outcome.read(200, json.dumps(GOOD).encode())
    assert name == outcome.ANSWER
    assert found is not None
    assert (found.label, found.score, found.setting, found.chains) == (7, 0.25, "fast", 4)


@given(st.integers(100, 599), JSON | st.binary(max_size=30))
def test_nothing_that_a_server_says_raises(status: int, said: Any) -> None:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    name, found = outcome.read(status, body)
    assert found is None
    assert name
    assert (name == outcome.GARBAGE) == (status == 200)


WRONG = (None, -1, "x" * 1000, [], {}, float("nan"), float("inf"))
FIELDS = ("label", "setting", "chains", "model", "anomaly", "timings_ms", "runner")


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in FIELDS for value in WRONG if (field, value) != ("timings_ms", {})],
)
def test_a_verdict_with_a_wrong_field_is_garbage(field: str, value: Any) -> None:
    said = json.dumps({**GOOD, field: value}).encode()
    assert outcome.read(200, said) == (outcome.GARBAGE, None)


def test_a_verdict_without_timings_is_still_one() -> None:
    name, found = outcome.read(200, json.dumps({**GOOD, "timings_ms": {}}).encode())
    assert name == outcome.ANSWER
    assert found is not None
    assert found.timings_ms == {}


@pytest.mark.parametrize("code", ["<b>", "x" * 99, "", 5, None, "a\nb"])
def test_a_code_that_is_none_is_not_repeated(code: Any) -> None:
    assert outcome.read(500, json.dumps({"error": {"code": code}}).encode())[0] == "status 500"
