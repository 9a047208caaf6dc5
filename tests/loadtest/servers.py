"""A small HTTP server for tests that can misbehave, and images whose answer is known.

The class that the server answers is written in an image's first pixel and its score in the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest import items
from loadtest.items import Item
from tests.client import servers

CLASSES = 10


def image(says: int, score: float = 0.0) -> np.ndarray:
    """float32 [3, 4, 4] for which a test server answers the class `says` and the score."""
    pixels = np.zeros((3, 4, 4), np.float32)
    pixels[0, 0, :2] = says / 100, score
    return pixels


def item(says: int, label: int, *, source: str = "clean", row: int = 0, score: float = 0.0) -> Item:
    return Item(items.npy(image(says, score)), label, source, row, row)


def verdict(body: bytes, setting: str) -> dict[str, Any]:
    """What the real server would say."""
    pixels = np.load(io.BytesIO(body), allow_pickle=False)
    says, score = round(100 * float(pixels[0, 0, 0])), float(pixels[0, 0, 1])
    said = servers.verdict(says, setting=setting)
    said["anomaly"] |= {"score": score, "flagged": score > 0.5}
    return said


@dataclass
class Behaviour:
    """How a server answers.

    Attributes:
        service: seconds that each request keeps the server, one after the other.
        stall: (after so many requests, for so many seconds) the server does nothing at all.
        reply: (status line, body) instead of a verdict; raw: bytes instead of HTTP.
        silent: never answer; hang_up: close the connection instead.
        arms: of a split of its own, by the header x-account; each answers as the setting of its name.
        seen: how many requests are being served at the same time, taken at each arrival.
    """

    service: float = 0.0
    stall: tuple[int, float] = (-1, 0.0)
    reply: tuple[str, Any] | None = None
    raw: bytes | None = None
    silent: bool = False
    hang_up: bool = False
    setting: str = ""
    arms: tuple[str, ...] = ()
    seen: list[int] = field(default_factory=list)


class _Server:
    def __init__(self, behaviour: Behaviour) -> None:
        self._how, self._turn, self._count, self._inside = behaviour, asyncio.Lock(), 0, 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await self._request(await servers.read(reader), writer):
            pass

    async def _request(self, request: servers.Request, writer: asyncio.StreamWriter) -> bool:
        self._inside += 1
        self._how.seen.append(self._inside)
        try:
            async with self._turn:
                count, self._count = self._count, self._count + 1
                await asyncio.sleep(self._how.service)
                if count == self._how.stall[0]:
                    await asyncio.sleep(self._how.stall[1])
        finally:
            self._inside -= 1
        if self._how.silent:
            await asyncio.sleep(3600)
        if self._how.hang_up:
            return False
        if self._how.raw is not None:
            writer.write(self._how.raw)
            return False
        setting = self._how.setting or request.headers.get("x-metastable-setting", "default")
        arm = ""
        if self._how.arms:
            account = request.headers.get("x-account", "")
            arm = setting = self._how.arms[zlib.crc32(account.encode()) % len(self._how.arms)]
        status, said = self._how.reply or ("200 OK", verdict(request.body, setting))
        writer.write(servers.reply(status, said, f"X-Metastable-Arm: {arm}\r\n" if arm else ""))
        await writer.drain()
        return True


def serving(behaviour: Behaviour) -> contextlib.AbstractContextManager[str]:
    """A server in a thread of its own; gives its address."""
    return servers.listening(_Server(behaviour).connection)
