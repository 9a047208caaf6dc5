"""One prediction as HTTP to TorchServe: what is sent, and what its answer means."""

from __future__ import annotations

import asyncio
import io
import json
import time
from typing import Any

import h11
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
BACK_IN = 20.0
"""Seconds until a worker that was killed answers again, about, until one has been seen to."""
_PIECE = 65_536
_ITS_OWN = "the model server failed at this request and recovers: try again"
_PASSING = frozenset({404, 429, 500, 502, 503, 507})
"""TorchServe's own statuses while it starts, is full, or lost the worker that had the request."""


def samples_of(pixels: torch.Tensor) -> np.ndarray[Any, Any]:
    """The samples [C, H, W] of pixels in [0, 1]: uint8 where all are whole 255ths, else float32."""
    planes = pixels.detach().cpu().numpy()
    levels = np.rint(planes * np.float32(255)).astype(np.uint8)
    whole = np.array_equal(levels.astype(np.float32) / np.float32(255), planes)
    return levels if whole else planes.astype(np.float32)


def pixels_of(samples: np.ndarray[Any, Any]) -> torch.Tensor:
    """The inverse of `samples_of`, bit for bit: float32 [C, H, W] in [0, 1]."""
    planes = samples.astype(np.float32)
    return torch.from_numpy(planes / np.float32(255) if samples.dtype == np.uint8 else planes)


def exact(pixels: torch.Tensor) -> bytes:
    """A .npy file that is decoded to these pixels, float32 [C, H, W] in [0, 1], bit for bit.

    Channels come last: then no shape can be read in two ways.
    """
    planes = samples_of(pixels)
    samples = np.moveaxis(planes, 0, -1)
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
    if question.follow.traceparent is not None:
        found["traceparent"] = question.follow.traceparent
    return found


class Exchange:
    """Predictions over one unix socket, whose connections are kept.

    A general client spends a millisecond on a request; parsing alone, which h11 does, takes a fifth of that.

    Args:
        socket: TorchServe's inference address.
        model: its name there.
        patience: seconds without an answer after which there will be none.

    Attributes:
        key: that TorchServe asks for; empty where it asks for none.
    """

    def __init__(self, socket: str, model: str, patience: float) -> None:
        self._socket, self._target, self._patience = socket, f"/predictions/{model}", patience
        self._idle: list[_Connection] = []
        self.key = ""

    async def predict(self, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """The JSON answer.

        Raises the error that the worker answered with; Unavailable where TorchServe or its worker broke off;
        MetastableError for an answer that makes no sense.
        """
        if self.key:
            headers = {**headers, "Authorization": f"Bearer {self.key}"}
        try:
            async with asyncio.timeout(self._patience):
                connection = await self._connection()
                try:
                    response, data = await connection.post(self._target, headers, body)
                finally:
                    if connection.reusable():
                        self._idle.append(connection)
                    else:  # it ended with this, or nobody has waited for its answer
                        connection.close()
        except (OSError, TimeoutError, h11.ProtocolError) as error:
            raise Unavailable(_ITS_OWN, BACK_IN) from error
        after = dict(response.headers).get(b"retry-after", b"").decode("ascii", "replace")
        return _read(response.status_code, after, data)

    def close(self) -> None:
        """Leave connections on which nothing is under way."""
        while self._idle:
            self._idle.pop().close()

    async def _connection(self) -> _Connection:
        while self._idle:
            if (kept := self._idle.pop()).reusable():
                return kept
            kept.close()  # TorchServe has left meanwhile
        return _Connection(*await asyncio.open_unix_connection(self._socket))


class _Connection:
    """One HTTP/1.1 connection, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.CLIENT)

    async def post(self, target: str, headers: dict[str, str], body: bytes) -> tuple[h11.Response, bytes]:
        """Status with headers, and the body; OSError or h11.ProtocolError where the other side breaks off."""
        http = self._http
        named = {"Host": "torchserve", "Content-Length": str(len(body))} | headers
        request = h11.Request(method="POST", target=target, headers=list(named.items()))
        for part in (request, h11.Data(data=body), h11.EndOfMessage()):
            self._writer.write(http.send(part) or b"")
        await self._writer.drain()
        response: h11.Response | None = None
        parts: list[bytes] = []
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(await self._reader.read(_PIECE))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("it left without an answer")
        if http.our_state is h11.DONE and http.their_state is h11.DONE:
            http.start_next_cycle()
        assert response is not None, "h11 lets no body come before it"
        return response, b"".join(parts)

    def reusable(self) -> bool:
        """Whether the next request can go this way."""
        return self._http.our_state is h11.IDLE and not self._reader.at_eof()

    def close(self) -> None:
        self._writer.close()


def _read(status: int, retry_after: str, data: bytes) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except ValueError:
        said = None
    if status == 200 and isinstance(said, dict) and "label" in said:
        return said
    error = said.get("error") if isinstance(said, dict) else None
    if isinstance(error, dict) and "code" in error:  # the worker's, not TorchServe's
        after = float(retry_after) if retry_after.isdigit() else None
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
