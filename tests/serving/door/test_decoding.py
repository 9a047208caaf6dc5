from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest
import torch

from metastable.errors import DeadlineExceeded, InvalidImage, Overloaded, TooLarge
from metastable.images import DecodedImage, Fit, ImageLimits, decode, pixels_of
from metastable.serving.backends.base import Served
from metastable.serving.door import decoding
from metastable.serving.door.decoding import Decoder
from tests.serving.door.conftest import png

SERVED = Served("m", "1", "d", (3, 8, 8), Fit(), ("a", "b"), ("none",), "none", False, "torch")
LIMITS = ImageLimits(1_000_000, 1_000_000)
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SMALL", 40 * 40)
    monkeypatch.setattr(decoding, "LARGE", 60 * 60)


@pytest.mark.parametrize("side", [30, 50, 70])
def test_it_is_what_decode_makes_in_every_lane(side: int) -> None:
    data = png(3, (side, side))

    async def run() -> None:
        decoder = Decoder(LIMITS, threads=2)
        assert torch.equal((await decoder(data, SERVED, None)).pixels, decode(data, size=(8, 8)).pixels)
        with pytest.raises(InvalidImage):
            await decoder(data[:-30], SERVED, None)
        with pytest.raises(TooLarge):
            await decoder(data + bytes(1_000_000), SERVED, None)

    asyncio.run(run())


def test_a_small_image_never_waits_for_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones come one after the other; those that nobody waits for keep their turn; many are refused."""
    open_, real = threading.Event(), decoding.decode
    under_way, most = 0, 0

    def slow(data: bytes, **how: object) -> DecodedImage:
        nonlocal under_way, most
        if pixels_of(data) >= decoding.LARGE:
            under_way += 1
            most = max(most, under_way)
            assert open_.wait(PATIENCE)
            under_way -= 1
        return real(data, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "decode", slow)
    large = png(0, (70, 70))

    async def run() -> None:
        decoder = Decoder(LIMITS, threads=4, patience=2.5)
        tasks = [asyncio.create_task(decoder(large, SERVED, None)) for _ in range(6)]
        await decoder(png(), SERVED, None)
        refused = [task for task in tasks if task.done()]
        assert len(refused) == 3  # 3 s of them wait at first, a second each
        for task in refused:
            with pytest.raises(Overloaded, match=r"3.0 s of other images as large wait") as caught:
                await task
            assert caught.value.retry_after == 3.0
        tasks[0].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tasks[0]
        open_.set()
        await asyncio.gather(*(task for task in tasks[1:] if task not in refused))
        await decoder(large, SERVED, None)

    asyncio.run(run())
    assert most == 1


def test_what_takes_long_lets_fewer_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "decode", lambda data, **how: time.sleep(0.1))

    async def run() -> None:
        decoder = Decoder(LIMITS, threads=1, patience=0.3)
        for _ in range(20):
            await decoder(png(), SERVED, None)
        found = await asyncio.gather(
            *(decoder(png(), SERVED, None) for _ in range(20)), return_exceptions=True
        )
        assert 1 <= sum(one is None for one in found) <= 6
        assert all(one is None or isinstance(one, Overloaded) for one in found)

    asyncio.run(run())


def test_a_deadline_is_not_waited_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "decode", lambda data, **how: time.sleep(0.3))

    async def run() -> None:
        for side in (30, 70):
            decoder = Decoder(LIMITS, threads=1)
            with pytest.raises(DeadlineExceeded, match="before the image was decoded"):
                await decoder(png(0, (side, side)), SERVED, time.monotonic() + 0.02)

    asyncio.run(run())
