from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from metastable.client import Answer, AsyncClient, ServerError
from tests.client.servers import GOOD, Act, refusing, serving


def test_it_is_asked_from_many_tasks() -> None:
    async def ask(url: str) -> list[Answer]:
        async with AsyncClient(url) as client:
            return list(await asyncio.gather(*(client.classify(b"image") for _ in range(20))))

    with serving(GOOD) as served:
        found = asyncio.run(ask(served.url))
        assert len(served.seen) == 20
    assert {one.label for one in found} == {3}


def test_everything_can_be_asked() -> None:
    async def ask(url: str) -> tuple[Any, ...]:
        async with AsyncClient(url, "the-key", retries=0) as client:
            all_of_them = await client.classify_all([b"1", b"2"], progress=None)
            return repr(client), all_of_them, await client.ready(), await client.live()

    with serving(GOOD, refusing(), GOOD, GOOD) as served:
        shown, (first, second), ready, live = asyncio.run(ask(served.url))
    assert shown == f"<AsyncClient of {served.url}, with a key>"
    assert isinstance(first, Answer)
    assert isinstance(second, ServerError)
    assert ready
    assert live


@pytest.mark.parametrize("many", [False, True])
def test_cancelling_hangs_up(many: bool) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url) as client:
            work: Coroutine[Any, Any, Any]
            work = client.classify_all([b"x"] * 9, progress=None) if many else client.classify(b"x")
            task = asyncio.create_task(work)
            while not served.seen:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == {asyncio.current_task()}

    with serving(Act(then="hang")) as served:
        asyncio.run(ask(served.url))
        assert 1 <= len(served.seen) <= 4


def test_a_failing_progress_is_the_callers_fault() -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url) as client:
            await client.classify_all([b"x"] * 3, progress=lambda done, total: 1 // 0)

    with serving(GOOD) as served, pytest.raises(ZeroDivisionError):
        asyncio.run(ask(served.url))
