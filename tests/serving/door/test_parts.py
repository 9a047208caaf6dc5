from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastable.errors import MalformedRequest, RequestError, TooLarge
from metastable.serving.door import parts
from metastable.serving.door.parts import Parts

TOKEN = st.text("abcxyz0123456789", min_size=1, max_size=20)
FORM = "multipart/form-data; boundary={}"


def form(boundary: str, fields: list[tuple[str, bytes]]) -> bytes:
    pieces = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
        for name, value in fields
    ]
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


@given(TOKEN, st.binary(max_size=200), TOKEN)
def test_bytes_of_a_form_are_what_was_sent(boundary: str, image: bytes, setting: str) -> None:
    if f"--{boundary}".encode() in image:
        return
    body = form(boundary, [("image", image), ("setting", setting.encode())])
    assert parts.of_body(body, FORM.format(boundary), 1) == Parts([image], False, {"setting": setting})


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=3))
def test_several(images: list[bytes]) -> None:
    text = json.dumps({"images": [base64.b64encode(one).decode() for one in images]}).encode()
    assert parts.of_body(text, "application/json", 3) == Parts(images, True)
    marked = [b"x" + one.replace(b"-", b"") for one in images]
    body = form("bound", [("images", one) for one in marked])
    assert parts.of_body(body, FORM.format("bound"), 3) == Parts(marked, True)
    if len(images) > 1:
        with pytest.raises(TooLarge, match="send at most 1"):
            parts.of_body(text, "application/json", 1)


@given(
    st.binary(min_size=1, max_size=300), st.sampled_from(["", "image/png", "text/plain", "x", "a/b; c=\xff"])
)
def test_what_is_no_form_is_an_image(body: bytes, kind: str) -> None:
    assert parts.of_body(body, kind, 1) == Parts([body], False)


PIECES = st.lists(
    st.sampled_from(
        [b"--b", b"--", b"\r\n", b"\n", b"\r", b":", b"Content-Disposition: form-data", b'; name="image"']
    )
    | st.binary(max_size=10),
    max_size=30,
).map(b"".join)


@given(
    PIECES | st.binary(max_size=100),
    st.sampled_from([FORM.format("b"), FORM.format(""), "multipart/form-data"]),
)
def test_a_damaged_form_is_refused_or_read(body: bytes, kind: str) -> None:
    try:
        found = parts.of_body(body, kind, 4)
    except RequestError:
        return
    assert 1 <= len(found.images) <= 4


@given(
    st.binary(max_size=100)
    | st.recursive(st.none() | st.integers(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_damaged_json_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        parts.of_body(body, "application/json; charset=utf-8", 4)


@pytest.mark.parametrize(
    "text",
    [
        '{"image": "AA==", "image": "AQ=="}',
        '{"image": "AA==", "setting": "a", "setting": "b"}',
        '{"image": "AA==", "top_k": true}',
        '{"image": "AA==", "top_k": "3"}',
        '{"image": "AA==", "top_k": 3.0}',
        '{"image": "AA==", "seed": ' + "9" * 5000 + "}",
        '{"image": "\\ud800"}',
        '{"image": NaN}',
    ],
)
def test_json_that_others_read_otherwise_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parts.of_body(text.encode(), "application/json", 1)
    assert caught.value.status in (400, 422)
    assert len(str(caught.value)) < 200


def test_a_part_has_one_disposition() -> None:
    line = b'Content-Disposition: form-data; name="image"\r\n'
    with pytest.raises(MalformedRequest, match="header twice"):
        parts.of_body(b"--b\r\n" + line + line + b"\r\nx\r\n--b--\r\n", FORM.format("b"), 1)


def test_deep_json_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="no JSON object"):
        parts.of_body(b"[" * 1_000_000, "application/json", 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([("x", b"")] * 65, "more than 64 parts|unknown name"),
        ([("images", b"x")] * 65, "more than 64 parts"),
        ([("image", b"x"), ("setting", b"\xff")], "not a short text"),
        ([("image", b"x"), ("setting", b"a" * 101)], "not a short text"),
    ],
)
def test_forms_are_bounded(fields: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parts.of_body(form("b", fields), FORM.format("b"), 64)


def test_a_long_header_of_a_part_is_refused() -> None:
    body = b"--b\r\nX: " + b"a" * 5000 + b"\r\n\r\nx\r\n--b--\r\n"
    with pytest.raises(MalformedRequest, match="damaged"):
        parts.of_body(body, FORM.format("b"), 1)
