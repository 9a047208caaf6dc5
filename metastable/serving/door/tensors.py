"""Requests and answers of the Open Inference Protocol, version 2, over REST.

The source is the protocol's required REST API and its binary tensor data extension: with the header
Inference-Header-Content-Length the body is that many bytes of JSON, and then the tensors of its inputs.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metastable.errors import InvalidOption, MalformedRequest, TooLarge
from metastable.serving.backends.base import Served
from metastable.serving.options import NAMES

FLOATS: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "UINT8": np.dtype("u1"),
}
BYTES = "BYTES"
OUTPUTS = {
    "label": ("INT64", "index of the class"),
    "class": (BYTES, "its name"),
    "probabilities": ("FP32", "of all classes"),
    "flagged": ("BOOL", "whether one of the anomaly statistics is above its threshold"),
    "score": ("FP32", "the score norm"),
    "shift": ("FP32", "the prediction shift"),
    "decided": ("BOOL", "whether the chains settle the label"),
    "chains": ("INT32", "that the answer is from"),
    "setting": (BYTES, "that answered"),
    "action": (BYTES, "what became of a flagged image: answer, mark or stronger"),
}
MOST_JSON = 4_000_000
"""Bytes: as numbers in memory JSON takes some thirty times as much."""


class Loose(BaseModel):
    """Fields that are not known here are left alone, as the protocol wants it."""

    model_config = ConfigDict(extra="ignore")


class Input(Loose):
    name: str = Field(max_length=100)
    shape: list[int] = Field(min_length=1, max_length=4)
    datatype: str = Field(max_length=10)
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class Wanted(Loose):
    name: str = Field(max_length=100)


class InferenceRequest(Loose):
    """Images as a tensor [N, C, H, W], floats in [0, 1] or UINT8, or their files as BYTES [N]."""

    id: str | None = Field(None, max_length=200)
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[Input] = Field(min_length=1, max_length=1)
    outputs: list[Wanted] | None = Field(None, max_length=len(OUTPUTS))


class Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class Output(Tensor):
    data: list[Any]


class InferenceResponse(BaseModel):
    model_name: str
    model_version: str
    id: str
    outputs: list[Output]
    parameters: dict[str, str] | None = Field(None, description="`arm`, where the request is in one")


class Metadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def metadata(served: Served, name: str, versions: list[str]) -> dict[str, Any]:
    """What the protocol says of a model; `versions` are all that it has under this name."""
    sizes = {"probabilities": [-1, len(served.classes)]}
    return {
        "name": name,
        "versions": versions,
        "platform": f"metastable_{served.runner}",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, *served.shape]}],
        "outputs": [
            {"name": one, "datatype": kind, "shape": sizes.get(one, [-1])}
            for one, (kind, _) in OUTPUTS.items()
        ],
    }


def read(body: bytes, header_length: str | None) -> tuple[InferenceRequest, bytes]:
    """The JSON of a request, and the bytes of tensors after it.

    Raises MalformedRequest for what is no such request.
    """
    end = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or len(header_length) > 12 or int(header_length) > len(body):
            raise MalformedRequest("Inference-Header-Content-Length is no length within the body")
        end = int(header_length)
    if end > MOST_JSON:
        raise TooLarge(f"the JSON is above {MOST_JSON} bytes: send the tensor in binary form")
    try:
        return InferenceRequest.model_validate_json(body[:end]), body[end:]
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        known = {*InferenceRequest.model_fields, *Input.model_fields}
        where = ".".join(str(one) for one in fault["loc"] if isinstance(one, int) or one in known)
        raise MalformedRequest(
            f"the body is no inference request of the protocol: {where or 'JSON'}: {fault['msg']}"
        ) from None


def options_in(asked: InferenceRequest) -> dict[str, str]:
    """Our options among the parameters; others are the protocol's, and left alone.

    Raises InvalidOption for one that is neither a text nor a number.
    """
    found = {}
    for name in NAMES:
        value = asked.parameters.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InvalidOption(f"the parameter {name} must be a text or a whole number")
        found[name] = str(value)
    return found


def files(asked: InferenceRequest, binary: bytes, served: Served, most: int) -> list[bytes]:
    """Each image of a request as a file: as it was sent, or a tensor's as .npy.

    Args:
        most: images of one request.

    Raises MalformedRequest for shapes and data that do not fit each other or the model.
    """
    [given] = asked.inputs
    count = given.shape[0]
    if given.name != "image":
        raise MalformedRequest("the input must be called image")
    if count < 1:
        raise MalformedRequest("the first number of the shape must be that of the images, from 1")
    if count > most:
        raise TooLarge(f"there are {count} images in the request: send at most {most}")
    wanted = ", ".join(map(str, served.shape))
    if given.datatype == BYTES:
        if len(given.shape) != 1:
            raise MalformedRequest("an input of BYTES must have the shape [N], one file each")
        return _texts(given, binary, count)
    if given.datatype not in FLOATS:
        raise MalformedRequest(f"the datatype must be one of {', '.join((*FLOATS, BYTES))}")
    if len(given.shape) != 4 or given.shape[1] not in (1, 3) or min(given.shape) < 1:
        raise MalformedRequest(f"the tensor must have the shape [N, {wanted}], or other height and width")
    if max(given.shape) > 65_535:
        raise TooLarge("a side of the tensor is above 65535")
    array = _array(given, binary)
    return [_npy(one) for one in array]


def _array(given: Input, binary: bytes) -> np.ndarray:
    kind, size = FLOATS[given.datatype], math.prod(given.shape)
    if (bytes_there := _binary_size(given, binary)) is not None:
        if bytes_there != size * kind.itemsize:
            raise MalformedRequest(f"the tensor has {bytes_there} bytes, not those of its shape and datatype")
        found = np.frombuffer(binary, kind).reshape(given.shape)
        return found if given.datatype == "UINT8" else _single(found)
    flat = _flat(given.data or [], size)
    try:
        if len(flat) != size or not all(type(one) in (int, float) for one in flat):
            raise ValueError
        exact = np.array(flat, np.float64)
    except (ValueError, OverflowError):
        raise MalformedRequest("the data are no numbers, or not as many as the shape says") from None
    if given.datatype == "UINT8":
        if not ((exact >= 0) & (exact <= 255) & (exact == np.floor(exact))).all():
            raise MalformedRequest("data of UINT8 must be whole numbers from 0 to 255")
        return exact.astype(np.uint8).reshape(given.shape)
    return _single(exact).reshape(given.shape)


def _single(found: np.ndarray) -> np.ndarray:
    """As float32; what is beyond becomes infinite, and is refused with all that is not in [0, 1]."""
    with np.errstate(over="ignore"):
        return found.astype(np.float32)


def _flat(data: list[Any], most: int) -> list[Any]:
    """Nested lists as one; the protocol allows both."""
    found: list[Any] = []
    stack: list[Any] = [data]
    while stack:
        one = stack.pop()
        if isinstance(one, list):
            stack.extend(reversed(one))
        else:
            found.append(one)
        if len(found) > most:
            break
    return found


def _binary_size(given: Input, binary: bytes) -> int | None:
    """Bytes of the tensor after the JSON; None where the JSON has the data."""
    size = given.parameters.get("binary_data_size")
    if size is None:
        if given.data is None:
            raise MalformedRequest("the input has no data")
        return None
    if type(size) is not int or size != len(binary):
        raise MalformedRequest(f"binary_data_size must be that of what follows the JSON, {len(binary)}")
    return size


def _texts(given: Input, binary: bytes, count: int) -> list[bytes]:
    size = _binary_size(given, binary)
    if size is None:
        raise MalformedRequest("files of BYTES must come in binary form: see Inference-Header-Content-Length")
    found: list[bytes] = []
    at = 0
    while at < size and len(found) <= count:
        if at + 4 > size:
            break
        [length] = struct.unpack_from("<I", binary, at)
        found.append(binary[at + 4 : at + 4 + length])
        at += 4 + length
    if at != size or len(found) != count:
        raise MalformedRequest("the files of BYTES are not as many, or not as long, as is said")
    return found


def _npy(image: np.ndarray) -> bytes:
    """An image [C, H, W] as a file of exact pixels: [H, W], or [H, W, 3], which cannot be misread."""
    plain = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(plain))
    return file.getvalue()


def answer(
    asked: InferenceRequest, verdicts: list[dict[str, Any]], served: Served, name: str, id: str
) -> dict[str, Any]:
    """Verdicts, whose `top` lists all classes, as tensors; raises what `check_outputs` raises."""
    found = {one: [_value(one, verdict) for verdict in verdicts] for one in check_outputs(asked)}
    return {
        "model_name": name,
        "model_version": served.version,
        "id": asked.id or id,
        "outputs": [
            {
                "name": one,
                "datatype": OUTPUTS[one][0],
                "shape": [len(verdicts), *([len(served.classes)] if one == "probabilities" else [])],
                "data": [v for row in values for v in row] if one == "probabilities" else values,
            }
            for one, values in found.items()
        ],
    }


def check_outputs(asked: InferenceRequest) -> list[str]:
    """Names of the outputs that are wanted; MalformedRequest for an unknown one."""
    wanted = [one.name for one in asked.outputs or ()] or list(OUTPUTS)
    if not set(wanted) <= OUTPUTS.keys():
        raise MalformedRequest(f"an output has an unknown name: use {', '.join(OUTPUTS)}")
    return wanted


def _value(name: str, verdict: dict[str, Any]) -> Any:
    anomaly = verdict["anomaly"]
    if name == "probabilities":
        return [p for _, p in sorted((one["label"], one["probability"]) for one in verdict["top"])]
    ours = {
        "flagged": bool(anomaly["flagged"] or anomaly["shift"]["flagged"]),
        "score": anomaly["score"],
        "shift": anomaly["shift"]["value"],
        "action": verdict.get("flag_policy", {}).get("action", "answer"),
    }
    return ours[name] if name in ours else verdict[name]
