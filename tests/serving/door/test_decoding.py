from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
import torch

from metastable.errors import DeadlineExceeded, InvalidImage, Overloaded
from metastable.images import Fit, ImageLimits, decode, pixels_of
from metastable.serving.backends.base import Served
from metastable.serving.door import decoding
from metastable.serving.door.decoding import Decoder
from tests.serving.door.conftest import png

SERVED = Served("m", "1", "d", (3, 8, 8), Fit(), ("a", "b"), ("none",), "none", False, "torch")
LIMITS = ImageLimits(1_000_000, 1_000_000)


def test_it_is_what_decode_makes() -> None:
    data = png(3, (20, 30))

    async def run() -> None:
        for alone in (1, 10**9):
            found = await Decoder(LIMITS, threads=2, alone=alone)(data, SERVED, None)
            assert torch.equal(found.pixels, decode(data, size=(8, 8)).pixels)
            with pytest.raises(InvalidImage):
                await Decoder(LIMITS, threads=1, alone=alone)(data[:-30], SERVED, None)

    asyncio.run(run())


def test_large_images_come_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones go by; those that nobody waits for keep their turn until they end; too many are refused."""
    under_way, most = 0, 0

    def slow(data: bytes, **how: object) -> object:
        nonlocal under_way, most
        large = pixels_of(data) > 2000
        under_way += large
        most = max(most, under_way)
        time.sleep(0.1 if large else 0)
        under_way -= large
        return len(data)

    monkeypatch.setattr(decoding, "decode", slow)
    small, large = png(), png(0, (64, 64))

    async def run() -> None:
        decoder = Decoder(LIMITS, threads=4, alone=2000, waiting=2)
        tasks = [asyncio.create_task(decoder(large, SERVED, None)) for _ in range(4)]
        await decoder(small, SERVED, None)
        refused = [task for task in tasks if task.done()]
        assert len(refused) == 1
        with pytest.raises(Overloaded, match="2 other images as large"):
            await refused[0]
        tasks[0].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tasks[0]
        await asyncio.gather(*(task for task in tasks[1:] if task not in refused))

    asyncio.run(run())
    assert most == 1


def test_a_deadline_is_not_waited_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "decode", lambda data, **how: time.sleep(0.3))

    async def run() -> None:
        for alone in (1, 10**9):
            decoder = Decoder(LIMITS, threads=1, alone=alone)
            with pytest.raises(DeadlineExceeded, match="before the image was decoded"):
                await decoder(png(), SERVED, time.monotonic() + 0.02)

    asyncio.run(run())
