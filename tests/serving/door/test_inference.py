"""The Open Inference Protocol as a client of another project speaks it, and as it can be got wrong."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tritonclient.utils import InferenceServerException

from metastable.errors import InvalidOption, MalformedRequest, RequestError, TooLarge
from metastable.images import Fit
from metastable.serving.backends.base import Served
from metastable.serving.door import tensors
from tests.serving.door.running import PATIENCE, Running

pytestmark = pytest.mark.slow

OPTIONS = {"seed": "7", "setting": "fast"}
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def client(served: Running) -> Any:
    with triton.InferenceServerClient(f"127.0.0.1:{served.port}") as found:
        yield found


def tensor(pixels: np.ndarray, kind: str, *, binary: bool) -> triton.InferInput:
    made = triton.InferInput("image", list(pixels.shape), kind)
    made.set_data_from_numpy(pixels, binary_data=binary)
    return made


def test_a_client_of_triton_finds_its_way(client: triton.InferenceServerClient, served: Running) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "metastable"
    for name in ("metastable", "tiny"):
        assert client.is_model_ready(name)
        assert client.is_model_ready(name, "1.2")
        found = client.get_model_metadata(name)
        assert found["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 32, 32]}]
        assert found["versions"] == ["1.2"]
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("tiny", "3")


@pytest.mark.parametrize("binary", [False, True])
def test_tensors_and_files_have_the_answers_of_classify(
    client: triton.InferenceServerClient, served: Running, binary: bool
) -> None:
    levels = tensor(PIXELS, "UINT8", binary=binary)
    floats = tensor((PIXELS / np.float32(255)).astype(np.float32), "FP32", binary=binary)
    files = triton.InferInput("image", [2], "BYTES")
    files.set_data_from_numpy(np.array([png_of(one) for one in PIXELS], dtype=np.object_), binary_data=True)
    wanted = [classify(served, png_of(one)) for one in PIXELS]
    for given_ in (levels, floats, files):
        found = client.infer("metastable", [given_], request_id="mine", parameters=OPTIONS)
        assert found.get_response()["id"] == "mine"
        assert found.as_numpy("label").tolist() == [one["label"] for one in wanted]
        assert found.as_numpy("chains").tolist() == [3, 3]
        names = [one.decode() if isinstance(one, bytes) else one for one in found.as_numpy("class")]
        assert names == [one["class"] for one in wanted]
        probabilities = found.as_numpy("probabilities")
        assert probabilities.shape == (2, 10)
        top = [one["top"][0]["probability"] for one in wanted]
        np.testing.assert_allclose(probabilities.max(1), top, atol=1e-5)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-4)
        assert found.as_numpy("flagged").dtype == bool


def test_outputs_that_are_asked_for(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("label"), triton.InferRequestedOutput("score")]
    found = client.infer("metastable", [tensor(PIXELS, "UINT8", binary=True)], outputs=wanted)
    assert [one["name"] for one in found.get_response()["outputs"]] == ["label", "score"]


def test_one_image_at_fault_is_told_of_all(client: triton.InferenceServerClient) -> None:
    pixels = np.full((2, 3, 32, 32), 2, np.float32)
    with pytest.raises(InferenceServerException, match=r"\[0, 1\]|0 to 1|between") as caught:
        client.infer("metastable", [tensor(pixels, "FP32", binary=True)])
    assert caught.value.status() == "400"


def png_of(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def classify(served: Running, file: bytes) -> dict[str, Any]:
    answer = httpx.post(
        served.url + "/classify", content=file, params=OPTIONS, timeout=PATIENCE, trust_env=False
    )
    found: dict[str, Any] = answer.json()
    return found


def plain(**changes: Any) -> dict[str, Any]:
    one = {"name": "image", "shape": [1, 3, 1, 1], "datatype": "FP32", "data": [0.5, 0.5, 0.5]} | changes
    return {"inputs": [one]}


WRONG: dict[str, tuple[Any, int, str]] = {
    "a list": ([], 400, "JSON"),
    "no inputs": ({}, 400, "inputs"),
    "two inputs": ({"inputs": [plain()["inputs"][0]] * 2}, 400, "inputs"),
    "no data": (plain(data=None), 400, "no data"),
    "too few": (plain(data=[0.5]), 400, "as many as the shape"),
    "too many": (plain(data=[0.5] * 4), 400, "as many as the shape"),
    "texts": (plain(data=["a"] * 3), 400, "no numbers"),
    "another input": (plain(name="x"), 400, "must be called image"),
    "truths": (plain(data=[True] * 3), 400, "no numbers"),
    "a number that is a text": (plain(data=["0.5"] * 3), 400, "no numbers"),
    "more than float32": (plain(data=[1e300] * 3), 400, ""),
    "much JSON": (plain(data=[[]] * 2_000_000), 413, "in binary form"),
    "a number beyond all": (plain(data=[10**400] * 3), 400, "no numbers"),
    "a datatype": (plain(datatype="INT64"), 400, "datatype must be one of"),
    "a shape": (plain(shape=[1, 3]), 400, "shape"),
    "no images": (plain(shape=[0, 3, 1, 1]), 400, "from 1"),
    "fewer than none": (plain(shape=[-1, 3, 1, 1]), 400, "from 1"),
    "many images": (plain(shape=[33, 3, 1, 1]), 413, "33 images in the request"),
    "a huge shape": (plain(shape=[1, 3, 60_000, 60_000]), 400, "as many as the shape"),
    "a negative side": (plain(shape=[1, 3, -1, -1]), 400, "shape"),
    "fractions of levels": (plain(datatype="UINT8", data=[0.5] * 3), 400, "whole numbers"),
    "levels above": (plain(datatype="UINT8", data=[256] * 3), 400, "whole numbers"),
    "files as text": (plain(datatype="BYTES", shape=[1], data=["x"]), 400, "binary form"),
    "a size that is no number": (plain(parameters={"binary_data_size": "1"}), 400, "binary_data_size"),
    "a size beyond the body": (plain(parameters={"binary_data_size": 12}), 400, "binary_data_size"),
    "an unknown output": (plain() | {"outputs": [{"name": "x"}]}, 400, "unknown name: use label"),
    "a wrong option": (plain() | {"parameters": {"setting": []}}, 422, "setting must be a text"),
    "an unknown setting": (plain() | {"parameters": {"setting": "x"}}, 422, "setting must be one of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_as_the_protocol_says_it(name: str, served: Running) -> None:
    body, status, message = WRONG[name]
    answer = httpx.post(served.url + "/v2/models/metastable/infer", json=body, trust_env=False)
    found = answer.json()
    assert answer.status_code == status, found
    assert set(found) == {"error", "code", "request_id"}
    assert message in found["error"]


@pytest.mark.parametrize("length", ["-1", "x", "9999", "1" * 30])
def test_a_wrong_length_of_the_json(length: str, served: Running) -> None:
    answer = httpx.post(
        served.url + "/v2/models/metastable/infer",
        content=json.dumps(plain()),
        headers={"Inference-Header-Content-Length": length},
        trust_env=False,
    )
    assert answer.status_code == 400
    assert "Content-Length" in answer.json()["error"]


SERVED = Served("m", "1", "d", (3, 8, 8), Fit(), ("a", "b"), ("none",), "none", False, "torch")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
INPUT = st.fixed_dictionaries(
    {
        "name": st.text(max_size=3) | JSON,
        "shape": st.lists(st.integers(-3, 70_000), max_size=5) | JSON,
        "datatype": st.sampled_from(["FP32", "UINT8", "BYTES", "FP16", "FP64", "x"]) | JSON,
    },
    optional={"data": JSON, "parameters": st.fixed_dictionaries({"binary_data_size": JSON}) | JSON},
)


@given(st.fixed_dictionaries({"inputs": st.lists(INPUT, max_size=2) | JSON}), st.binary(max_size=64), JSON)
def test_whatever_comes_is_files_or_a_refusal(body: Any, binary: bytes, more: Any) -> None:
    text = json.dumps(body | {"parameters": more}).encode()
    try:
        asked, rest = tensors.read(text + binary, str(len(text)))
        tensors.check_outputs(asked)
        tensors.options_in(asked)
        found = tensors.files(asked, rest, SERVED, 4)
    except (MalformedRequest, InvalidOption, TooLarge):
        return
    assert 1 <= len(found) <= 4


def test_files_of_bytes_must_fill_their_size() -> None:
    packed = struct.pack("<I", 3) + b"abc" + struct.pack("<I", 0)
    header = plain(datatype="BYTES", shape=[2], data=None, parameters={"binary_data_size": len(packed)})
    text = json.dumps(header).encode()
    asked, binary = tensors.read(text + packed, str(len(text)))
    assert tensors.files(asked, binary, SERVED, 4) == [b"abc", b""]
    with pytest.raises(RequestError, match="not as many"):
        tensors.files(asked, binary[:3] + b"\xff" + binary[4:], SERVED, 4)
