from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastable.client.answer import Answer, Likely, Shift
from metastable.client.description import Description, Tensor
from metastable.client.failure import refusal, shown
from tests.client.servers import verdict

GOOD = verdict()
KEYS = st.sampled_from([*GOOD, *GOOD["anomaly"], "error", "code", "message", "inputs", "shape"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=10,
)


def test_every_field_is_typed() -> None:
    found = Answer.of(GOOD)
    assert (found.label, found.class_name, found.setting, found.request_id) == (3, "class 3", "fast", "r-1")
    assert found.top == (Likely(3, "class 3", 0.8),)
    assert found.anomaly.shift == Shift(0.1, None, None, None)
    assert found.image.original_size == (32, 30)
    assert found.image.notes == ("resized",)
    assert found.margin.runner_up == "class 4"
    assert found.raw is GOOD
    assert not found.flagged
    assert "raw" not in repr(found)


def test_what_a_newer_server_adds_does_no_harm_and_is_kept() -> None:
    said = verdict(novel={"deep": [1]})
    said["anomaly"]["more"] = 1
    assert Answer.of(said).raw["novel"] == {"deep": [1]}


@pytest.mark.parametrize("name", ["delta", "request_id"])
def test_what_an_older_server_leaves_out_is_not_missed(name: str) -> None:
    del (said := verdict())[name]
    assert not getattr(Answer.of(said), name)
    del said["anomaly"]["shift"]
    assert Answer.of(said).anomaly.shift is None


@pytest.mark.parametrize("field", sorted(set(GOOD) - {"delta", "request_id"}))
@pytest.mark.parametrize("value", [None, -1, "x" * 3000, [], {}, float("nan"), float("inf"), 1 << 40])
def test_a_wrong_field_is_no_verdict(field: str, value: Any) -> None:
    if (field, value) in (("timings_ms", {}), ("top", [])) or (field == "steps" and value == 1 << 40):
        return
    with pytest.raises(ValueError, match=r"."):
        Answer.of(verdict() | {field: value})


@given(JSON)
def test_nothing_else_is_a_verdict_or_raises_anything_else(said: Any) -> None:
    for kind in (Answer, Description):
        with pytest.raises(ValueError, match=r"."):
            kind.of(said)


@given(st.integers(1, 2), st.data())
def test_a_verdict_with_one_part_replaced_is_read_or_refused(depth: int, data: st.DataObject) -> None:
    said = json.loads(json.dumps(GOOD))
    place = said
    for _ in range(depth):
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict):
            break
        place = place[key]
    key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(JSON)
    try:
        found = Answer.of(said)
    except ValueError:
        return
    assert isinstance(found.label, int)
    assert isinstance(found.margin.value, float)
    assert all(isinstance(ms, float) for ms in found.timings_ms.values())


@given(st.integers(201, 599), JSON | st.binary(max_size=40))
def test_no_error_reply_raises(status: int, said: Any) -> None:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    error = refusal("http://x", status, body)
    assert error.status == status
    assert error.code == f"status {status}" or error.code in str(said)
    assert str(error).startswith(f"the server at http://x answered {status}: ")
    assert str(error).isprintable()


@given(st.text(max_size=3000))
def test_what_is_shown_is_one_short_line_without_the_key(text: str) -> None:
    found = shown(f"{text} SECRET-KEY {text}", "SECRET-KEY")
    assert found.isprintable()
    assert len(found) <= 500
    assert "SECRET" not in found or "SECRET" in text


def test_an_error_has_the_servers_words() -> None:
    said = {"error": {"code": "too_large", "message": "the image \x1b[31mis\n too large"}, "request_id": "r"}
    error = refusal("http://x", 413, json.dumps(said).encode())
    assert (error.code, error.request_id) == ("too_large", "r")
    assert error.message == "the image [31mis too large"
    old = {"code": 503, "type": "ServiceUnavailableException", "message": "queue is full"}
    assert str(refusal("http://x", 503, json.dumps(old, indent=2).encode())).endswith("503: queue is full")


@pytest.mark.parametrize("code", ["<b>", "x" * 99, "", 5, None, "a\nb", "timeout"])
def test_a_code_that_is_none_is_not_repeated(code: Any) -> None:
    assert refusal("http://x", 500, json.dumps({"error": {"code": code}}).encode()).code == "status 500"


def test_a_description_is_typed() -> None:
    said = {
        "name": "metastable",
        "versions": ["1"],
        "platform": "p",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 32, 32]}],
        "outputs": [],
        "more": 1,
    }
    found = Description.of(said)
    assert found.inputs == (Tensor("images", "FP32", (-1, 3, 32, 32)),)
    assert found.versions == ("1",)
    assert found.raw["more"] == 1
