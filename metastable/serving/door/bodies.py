"""A request's body, whole: bounded for itself and for all that are being read or answered together."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from metastable.errors import MalformedRequest, Overloaded, TooLarge, UnsupportedImage

ENCODINGS = ("gzip", "deflate", "identity")
_PIECE = 2**16
_MEMBERS = 1000


class Budget:
    """Bytes of bodies that are held together, for one event loop.

    Args:
        total: of them; what goes above is refused.
    """

    def __init__(self, total: int) -> None:
        self._total, self.held = total, 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """One body's part; it comes back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held -= share.bytes

    def take(self, count: int) -> None:
        """Raises Overloaded above the total."""
        if self.held + count > self._total:
            raise Overloaded(
                f"the server holds {self.held} bytes of other requests, of {self._total}: try again", 1.0
            )
        self.held += count


class Share:
    """What one body takes of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self.bytes = budget, 0

    def take(self, count: int) -> None:
        self._budget.take(count)
        self.bytes += count


def check_length(length: str | None, limit: int) -> None:
    """TooLarge where a Content-Length says more than the limit, before any of it is read."""
    if length is not None and length.isdecimal() and int(length) > limit:
        raise _too_large(limit)


async def read(pieces: AsyncIterator[bytes], share: Share, limit: int) -> bytes:
    """The pieces together; TooLarge above the limit of bytes, and what `Share.take` raises."""
    body = bytearray()
    async for piece in pieces:
        if len(body) + len(piece) > limit:
            raise _too_large(limit)
        share.take(len(piece))
        body += piece
    return bytes(body)


def plain(body: bytes, encoding: str, share: Share, limit: int) -> bytes:
    """The body without its Content-Encoding.

    Raises TooLarge above `limit` bytes, UnsupportedImage for an encoding that is not of ENCODINGS, and
    MalformedRequest for a damaged body.
    """
    encoding = encoding.strip().lower() or "identity"
    if encoding not in ENCODINGS:
        raise UnsupportedImage(f"the Content-Encoding is not supported: use {' or '.join(ENCODINGS)}")
    if encoding == "identity":
        return body
    found, at, members = bytearray(), 0, 0
    try:
        while at < len(body):
            if (members := members + 1) > _MEMBERS:
                raise MalformedRequest(f"the body has more than {_MEMBERS} {encoding} streams: send one")
            reader = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
            while not reader.eof:
                given = reader.unconsumed_tail or body[at : at + _PIECE]
                if not given:
                    raise zlib.error("truncated")
                at += 0 if reader.unconsumed_tail else len(given)
                piece = reader.decompress(given, _PIECE)
                share.take(len(piece))
                found += piece
                if len(found) > limit:
                    raise _too_large(limit)
            at -= len(reader.unused_data)  # gzip files may follow one another
    except zlib.error:
        raise MalformedRequest(f"the body is no whole {encoding} stream: send it again") from None
    return bytes(found)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is above {limit} bytes: send a smaller image, or fewer at once")
