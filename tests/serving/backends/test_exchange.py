"""What TorchServe is sent is what the door decoded, bit for bit."""

from __future__ import annotations

import dataclasses
import io
import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prometheus_client import CollectorRegistry

from handlers.requests import Request
from metastable.bundle import Bundle
from metastable.errors import DeadlineExceeded
from metastable.images import STRETCH, DecodedImage, Fit, decode
from metastable.serving.backends.base import Follow, Question
from metastable.serving.backends.exchange import exact, headers, judged
from metastable.serving.options import RequestOptions
from tests.handlers.test_service import service


@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    fit=st.sampled_from([STRETCH, Fit("crop", 0.875, "bilinear")]),
    whole=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_pixels_arrive_as_they_were(
    channels: int, height: int, width: int, fit: Fit, whole: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    shape = (channels, height, width)
    if whole:
        pixels = torch.from_numpy(random.integers(0, 256, shape).astype(np.float32) / np.float32(255))
    else:
        pixels = torch.from_numpy(random.random(shape, np.float32))
    arrived = decode(exact(pixels), size=(height, width), channels=channels, fit=fit)
    assert torch.equal(arrived.pixels, pixels)
    assert not arrived.resized


def test_whole_levels_take_a_byte_each() -> None:
    levels = torch.arange(3 * 32 * 32, dtype=torch.float32).reshape(3, 32, 32) % 256 / 255
    assert len(exact(levels)) == 3 * 32 * 32 + 128
    assert len(exact(levels * 0.999)) == 4 * 3 * 32 * 32 + 128


def test_no_time_left_is_not_sent() -> None:
    image = DecodedImage(torch.zeros(3, 2, 2), "PNG", (2, 2), False, ())
    question = Question("q", image, RequestOptions("fast", 1, None, None), time.monotonic())
    with pytest.raises(DeadlineExceeded):
        headers(question, "job", None)


def test_a_trace_goes_on_with_the_prediction() -> None:
    image = DecodedImage(torch.zeros(3, 2, 2), "PNG", (2, 2), False, ())
    question = Question("q", image, RequestOptions("fast", 1, None, None), None)
    assert "traceparent" not in headers(question, "job", None)
    followed = dataclasses.replace(question, follow=Follow("00-trace"))
    assert headers(followed, "job", None)["traceparent"] == "00-trace"


@pytest.mark.slow
def test_the_answer_is_that_of_the_picture_itself(tiny: Bundle) -> None:
    served = service(tiny, CollectorRegistry(), allow_seed=True, sizes=(1, 4))
    pixels = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for format, size in (("PNG", (32, 32)), ("JPEG", (50, 40))):  # as it is, and scaled to floats
        buffer = io.BytesIO()
        Image.fromarray(pixels[: size[1], : size[0]]).save(buffer, format)
        options = {"X-Metastable-Setting": "fast", "X-Metastable-Seed": "11", "X-Metastable-Top-K": "10"}
        [direct] = served.answer([Request(format, options, {"body": buffer.getvalue()})])

        image = decode(buffer.getvalue(), fit=tiny.fit)
        question = Question("q", image, RequestOptions("fast", 10, None, 11), None)
        sent = headers(question, "job", None)
        served.open(window=4)
        [reply] = served.answer([Request(f"{format} again", sent, {"body": exact(image.pixels)})])
        served._door = None

        body = json.loads(direct.body)
        spent = body.pop("timings_ms")
        body.pop("request_id")
        found = judged(json.loads(reply.body), image)
        assert found.body == body
        assert set(found.seconds) == set(spent) - {"decode", "total"}
        assert body["image"]["format"] == format
