"""How clients misbehave in a soak; none of them waits for an answer that it has no claim to."""

from __future__ import annotations

import asyncio
import struct
import zlib
from urllib.parse import urlsplit

TIMEOUT = 60.0


async def half_a_head(url: str, image: bytes) -> None:
    await _send(url, b"POST /classify HTTP/1.1\r\nHo", end=True)


async def half_a_body(url: str, image: bytes) -> None:
    await _send(url, _head(len(image)) + image[: len(image) // 2], stay=1.0)


async def gone_at_once(url: str, image: bytes) -> None:
    """Asks for what is dear, and hangs up."""
    await _send(url, _head(len(image), "X-Metastable-Setting: accurate\r\n") + image)


async def half_closed(url: str, image: bytes) -> None:
    """Ends its side after the request, and reads the answer."""
    await _send(url, _head(len(image)) + image, end=True)


async def no_http(url: str, image: bytes) -> None:
    await _send(url, image + b"\r\n\r\n", end=True)


async def no_image(url: str, image: bytes) -> None:
    await _send(url, _head(9) + b"not a png", end=True)


async def huge_by_its_header(url: str, image: bytes) -> None:
    """A PNG of 50 000 x 50 000 pixels, without them."""
    content = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + content
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    await _send(url, _head(len(png)) + png, end=True)


async def slow(url: str, image: bytes) -> None:
    """A byte every tenth of a second, for three seconds."""
    _reader, writer = await _open(url)
    try:
        for byte in _head(len(image))[:30]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.1)
    finally:
        writer.close()


MANNERS = (half_a_head, half_a_body, gone_at_once, half_closed, no_http, no_image, huge_by_its_header, slow)


def _head(length: int, more: str = "") -> bytes:
    return f"POST /classify HTTP/1.1\r\nHost: a\r\n{more}Content-Length: {length}\r\n\r\n".encode()


async def _open(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    at = urlsplit(url)
    return await asyncio.open_connection(at.hostname, at.port, local_addr=("127.0.4.1", 0))


async def _send(url: str, data: bytes, *, end: bool = False, stay: float = 0.0) -> None:
    """Write, perhaps end that side and read to the end, or stay for so long, and hang up."""
    reader, writer = await _open(url)
    try:
        writer.write(data)
        await writer.drain()
        if end:
            writer.write_eof()
            async with asyncio.timeout(TIMEOUT):
                await reader.read()
        await asyncio.sleep(stay)
    finally:
        writer.close()
