"""The client for programs without asyncio, and for many threads at once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar, Unpack

from metastable.client import address
from metastable.client.answer import Answer
from metastable.client.asynchronous import AT_ONCE, PATIENCE, RETRIES, AsyncClient, Outcome
from metastable.client.description import Description
from metastable.client.images import Image, Images
from metastable.client.options import Options
from metastable.client.progress import Progress

T = TypeVar("T")
_CLOSING = 5.0  # seconds for ending connections


class Client:
    """A server, asked over HTTP, from any number of threads.

        with Client("http://127.0.0.1:8080") as client:
            answer = client.classify("samples/cat.png", setting="fast")

    It is `AsyncClient` on an event loop in a thread of its own, because only there a deadline holds against a
    server that trickles.  `AsyncClient` describes arguments and errors of all methods.
    """

    def __init__(
        self,
        url: str = address.HERE,
        key: str | None = None,
        *,
        retries: int = RETRIES,
        timeout: float = PATIENCE,
    ) -> None:
        self._inside = AsyncClient(url, key, retries=retries, timeout=timeout)
        self._loop = _Loop(self._inside.close)
        self._end = weakref.finalize(self, self._loop.stop)

    @property
    def url(self) -> str:
        return self._inside.url

    def classify(self, image: Image, *, request_id: str | None = None, **options: Unpack[Options]) -> Answer:
        """What the server says of an image."""
        return self._loop.run(self._inside.classify(image, request_id=request_id, **options))

    def classify_all(
        self,
        images: Images,
        *,
        at_once: int = AT_ONCE,
        progress: Progress = "bar",
        **options: Unpack[Options],
    ) -> list[Outcome]:
        """What the server says of each image, in order; `progress` is called in the client's own thread."""
        return self._loop.run(
            self._inside.classify_all(images, at_once=at_once, progress=progress, **options)
        )

    def describe(self) -> Description:
        """The model that answers."""
        return self._loop.run(self._inside.describe())

    def ready(self) -> bool:
        """Whether an image would be answered now."""
        return self._loop.run(self._inside.ready())

    def live(self) -> bool:
        """Whether the server's process says that it lives."""
        return self._loop.run(self._inside.live())

    def close(self) -> None:
        """End all connections; requests of other threads end with RuntimeError."""
        self._end.detach()
        self._loop.stop()
        self._loop.join()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._inside).replace(AsyncClient.__name__, type(self).__name__, 1)


class _Loop:
    """An event loop in a thread; it knows no client, so that one which nobody holds any more can go."""

    def __init__(self, at_end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._loop, self._over = asyncio.new_event_loop(), asyncio.Event()
        self._lock, self._open = threading.Lock(), True
        self._thread = threading.Thread(
            target=self._live, args=(at_end,), name="metastable client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result; the work is cancelled where waiting for it ends otherwise, as by Ctrl-C."""
        with self._lock:  # what is handed over before the loop is stopped, it still sees
            if not self._open or not self._thread.is_alive():
                work.close()
                raise RuntimeError("this client is closed, or was made before a fork: make another one")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RuntimeError("this client was closed before the answer came") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        with self._lock:
            if self._open and self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._over.set)
            self._open = False

    def join(self) -> None:
        self._thread.join(_CLOSING)

    def _live(self, at_end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_over(at_end))

    async def _until_over(self, at_end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await self._over.wait()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await at_end()
