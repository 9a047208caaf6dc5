"""One prediction as HTTP to TorchServe: what is sent, and what its answer means."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import httpx
import numpy as np
import torch

from metastable.engine.engine import LATE
from metastable.engine.reply import of_image
from metastable.errors import DeadlineExceeded, MetastableError, Unavailable
from metastable.images import DecodedImage
from metastable.serving.backends.base import Judged, Question
from metastable.serving.control import JOB_HEADER, PERMIT_HEADER, SENT_HEADER, error_of
from metastable.serving.options import MAX_DEADLINE_MS

SECONDS = ("anomaly", "queue", "purify", "classify")
BACK_IN = 3.0
"""Seconds until a worker that was killed answers again, about."""
_ITS_OWN = "the model server failed at this request and recovers: try again"
_PASSING = frozenset({404, 429, 500, 502, 503, 507})
"""TorchServe's own statuses while it starts, is full, or lost the worker that had the request."""


def exact(pixels: torch.Tensor) -> bytes:
    """A .npy file that is decoded to these pixels, float32 [C, H, W] in [0, 1], bit for bit.

    It has one byte a sample where all are whole 255ths, else four.  Channels come last: then no shape can be
    read in two ways.
    """
    planes = pixels.detach().cpu().numpy()
    levels = np.rint(planes * np.float32(255)).astype(np.uint8)
    whole = np.array_equal(levels.astype(np.float32) / np.float32(255), planes)
    samples = np.moveaxis(levels if whole else planes.astype(np.float32), 0, -1)
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(samples[..., 0] if len(planes) == 1 else samples))
    return buffer.getvalue()


def headers(question: Question, job: str, token: str | None) -> dict[str, str]:
    """Of the prediction; raises DeadlineExceeded if there is no time left."""
    now, options = time.monotonic(), question.options
    found = {
        "Content-Type": "application/octet-stream",
        "X-Metastable-Setting": options.setting,
        "X-Metastable-Top-K": str(options.top_k),
        JOB_HEADER: job,
        SENT_HEADER: repr(now),
    }
    if question.deadline is not None:
        left = int(1e3 * (question.deadline - now))
        if left < 1:
            raise DeadlineExceeded(LATE)
        found["X-Metastable-Deadline-Ms"] = str(min(left, MAX_DEADLINE_MS))
    if options.seed is not None:
        found["X-Metastable-Seed"] = str(options.seed)
    if token is not None:
        found[PERMIT_HEADER] = token
    return found


class Exchange:
    """Predictions over one unix socket.

    Args:
        socket: TorchServe's inference address.
        model: its name there.
        patience: seconds without an answer after which there will be none.
    """

    def __init__(self, socket: str, model: str, patience: float) -> None:
        # The transport alone: a client's cookies, redirects and proxies cost time and are of no use here.
        self._transport = httpx.AsyncHTTPTransport(
            uds=socket, limits=httpx.Limits(max_connections=None, max_keepalive_connections=None)
        )
        self._url = httpx.URL(f"http://torchserve/predictions/{model}")
        self._timeouts = {"connect": 5.0, "read": patience, "write": 30.0, "pool": None}

    async def predict(self, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """The JSON answer.

        Raises the error that the worker answered with; Unavailable where TorchServe or its worker broke off;
        MetastableError for an answer that makes no sense.
        """
        request = httpx.Request(
            "POST", self._url, headers=headers, content=body, extensions={"timeout": self._timeouts}
        )
        try:
            response = await self._transport.handle_async_request(request)
            try:
                data = await response.aread()
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            raise Unavailable(_ITS_OWN, BACK_IN) from error
        return _read(response.status_code, response.headers.get("Retry-After"), data)

    async def close(self) -> None:
        await self._transport.aclose()


def _read(status: int, retry_after: str | None, data: bytes) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except ValueError:
        said = None
    if status == 200 and isinstance(said, dict) and "label" in said:
        return said
    error = said.get("error") if isinstance(said, dict) else None
    if isinstance(error, dict) and "code" in error:  # the worker's, not TorchServe's
        after = float(retry_after) if retry_after and retry_after.isdigit() else None
        raise error_of(str(error["code"]), str(error.get("message")), after)
    if status in _PASSING:
        raise Unavailable(_ITS_OWN, BACK_IN)
    raise MetastableError(f"the model server answered {status}, with nothing that can be read")


def judged(said: dict[str, Any], image: DecodedImage) -> Judged:
    """A worker's answer as the door's: the image is the one that the door decoded."""
    spent = said.pop("timings_ms", {})
    said.pop("request_id", None)
    said["image"] = of_image(image)
    return Judged(said, {stage: 1e-3 * spent[stage] for stage in SECONDS if stage in spent})
