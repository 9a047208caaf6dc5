from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks.asking import FAILED, Asker
from metastable.errors import MetastableError

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(head: bytes, seen: list[bytes]) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(65_536):
            seen.append(request)
            writer.write(b"HTTP/1.1 " + head + b"\r\n\r\n")
            if b"close" in head:
                break
        writer.close()

    return serve


async def asked(serve: Serve, times: int) -> tuple[list[str], int]:
    """The statuses that one asker gets, and how many connections it made."""
    made: list[asyncio.Task[None] | None] = []

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(asyncio.current_task())
        await serve(reader, writer)
        await writer.wait_closed()

    async with await asyncio.start_server(counting, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        asker = Asker(f"http://127.0.0.1:{port}/classify?setting=x", b"image", {"X-A": "b"}, patience=5.0)
        found = [(await asker()).status for _ in range(times)]
        await asker.close()
        await asyncio.gather(*(one for one in made if one is not None))
    return found, len(made)


def test_it_keeps_its_connection() -> None:
    seen: list[bytes] = []
    assert asyncio.run(asked(answering(b"200 OK\r\nContent-Length: 0", seen), 3)) == (["200"] * 3, 1)
    assert seen[0].startswith(b"POST /classify?setting=x HTTP/1.1\r\n")
    assert seen[0].endswith(b"\r\n\r\nimage")


def test_it_makes_another_one_where_the_server_closes_it() -> None:
    head = b"503 Busy\r\nContent-Length: 0\r\nConnection: close"
    assert asyncio.run(asked(answering(head, []), 3)) == (["503"] * 3, 3)


@pytest.mark.parametrize("what", [b"nonsense", b"200 OK\r\nContent-Length: 5\r\nConnection: close"])
def test_what_is_no_whole_answer_is_none(what: bytes) -> None:
    assert asyncio.run(asked(answering(what, []), 1))[0] == [FAILED]


def test_nobody_there(tmp_path: Path) -> None:
    asker = Asker("http://x/", b"", {}, socket=tmp_path / "none.sock")
    assert asyncio.run(asker()).status == FAILED
    with pytest.raises(MetastableError, match="no answer"):
        asyncio.run(asker.seconds())
