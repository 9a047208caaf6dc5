"""What goes in and out, for /openapi.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from metastable.serving.door.parts import ClassifyBody
from metastable.serving.door.tensors import InferenceRequest
from metastable.serving.options import MAX_DEADLINE_MS, MAX_SEED


class Shaped(BaseModel):
    """Fields without a default are always there, and no others."""

    model_config = ConfigDict(extra="forbid")


class Named(Shaped):
    label: int = Field(ge=0, description="index of a class")
    class_name: str = Field(alias="class")


class Likely(Named):
    probability: float = Field(ge=0, le=1)


class Margin(Shaped):
    """How far the label leads the runner-up in the mean over chains."""

    value: float
    standard_error: float | None = Field(description="over chains; null from one chain")
    of: str = Field(description="what is averaged: logits, log-softmax or softmax")
    runner_up: str


class Shift(Shaped):
    """The prediction shift, from 0 to 1; what is null has no threshold for this setting."""

    value: float = Field(ge=0, le=1)
    threshold: float | None
    false_positive_rate: float | None
    flagged: bool | None


class Anomaly(Shaped):
    """The score norm of the image as it came, and the prediction shift."""

    score: float
    threshold: float
    false_positive_rate: float
    flagged: bool
    shift: Shift


class Picture(Shaped):
    format: str
    original_size: list[int] = Field(min_length=2, max_length=2, description="width and height as sent")
    resized: bool
    notes: list[str] = Field(description="what was changed")


class Model(Shaped):
    name: str
    version: str
    digest: str


class First(Named, Shaped):
    """What the setting said whose flag sent the image to a stronger one."""

    setting: str
    chains: int
    decided: bool


class FlagPolicy(Shaped):
    """What became of an image because it is flagged."""

    action: Literal["mark", "stronger"]
    first: First | None = Field(None, description="where the action is stronger")


class Verdict(Named, Shaped):
    """What is said of one image; docs/http-api.md explains every field."""

    top: list[Likely]
    margin: Margin
    setting: str
    chains: int
    steps: float
    decided: bool
    delta: float | None
    late: bool
    unpurified: Named
    anomaly: Anomaly
    image: Picture
    model: Model
    runner: str
    request_id: str
    timings_ms: dict[str, float]
    arm: str | None = Field(None, description="of the operator's split, where the request is in one")
    flag_policy: FlagPolicy | None = Field(None, description="where the operator has a rule for this flag")


class Fault(Shaped):
    code: str = Field(description="stable, for programs")
    message: str = Field(description="what was wrong and what to do, for people")


class Error(Shaped):
    error: Fault
    request_id: str | None


class Results(Shaped):
    """Of several images, each with its own outcome, in the order in which they were sent."""

    results: list[Verdict | Error]
    request_id: str


class Live(Shaped):
    status: str


class Alive(Shaped):
    live: bool


class Ready(Shaped):
    ready: bool


class ServerMetadata(Shaped):
    name: str
    version: str
    extensions: list[str]


class V2Error(Shaped):
    """As the protocol has errors, with a stable code beside it."""

    error: str
    code: str
    request_id: str | None


def _error(text: str, *, retry: bool = False) -> dict[str, Any]:
    shown: dict[str, Any] = {"model": Error, "description": text}
    if retry:
        wait = {"description": "seconds until it is worth trying again", "schema": {"type": "integer"}}
        shown["headers"] = {"Retry-After": wait}
    return shown


NOT_READY: dict[int | str, dict[str, Any]] = {503: _error("not ready: starting, or stopping", retry=True)}

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Verdict | Results, "description": "a verdict, or one outcome for each of `images`"},
    400: _error("no image, more than one, or a damaged file or form"),
    401: _error("the token is missing or wrong"),
    408: _error("the request took too long to arrive"),
    413: _error("more bytes or more pixels than the limits allow"),
    415: _error("not PNG, JPEG, WebP or .npy, or an unknown Content-Encoding"),
    422: _error("an unknown option, a value outside its range, or an image that is flagged and so refused"),
    429: _error("this client has too much under way", retry=True),
    500: _error("a fault of the server"),
    503: _error("too much work is waiting, or the server is starting or stopping", retry=True),
    504: _error("the deadline passed before there was an answer"),
}

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_OPTIONS = {
    "setting": {"type": "string"},
    "top_k": {"type": "integer", "minimum": 1},
    "deadline_ms": {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS},
    "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
}
_FORM = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "format": "binary"},
        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
        **_OPTIONS,
    },
    "additionalProperties": False,
}
BODY = {
    "required": True,
    "description": "one image as it is, or a form or JSON object with one or several",
    "content": {
        "application/octet-stream": _IMAGE,
        "image/png": _IMAGE,
        "image/jpeg": _IMAGE,
        "image/webp": _IMAGE,
        "multipart/form-data": {"schema": _FORM},
        "application/json": {"schema": ClassifyBody.model_json_schema()},
    },
}
PARAMETERS = [
    {"name": f"X-Metastable-{name.title().replace('_', '-')}", "in": "header", "schema": schema}
    for name, schema in _OPTIONS.items()
] + [{"name": name, "in": "query", "schema": schema} for name, schema in _OPTIONS.items()]

V2_ERRORS: dict[int | str, dict[str, Any]] = {
    status: shown | {"model": V2Error} for status, shown in RESPONSES.items() if status != 200
} | {404: {"model": V2Error, "description": "no such model"}}
V2_BODY = {
    "required": True,
    "content": {"application/json": {"schema": InferenceRequest.model_json_schema()}},
}
