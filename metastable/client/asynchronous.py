"""The client for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import TypeAlias, TypeVar, Unpack

from metastable.client import address
from metastable.client.answer import Answer
from metastable.client.description import Description
from metastable.client.exchange import OCTETS, Reply, answer_of, exchange, json_of, opened, stranger
from metastable.client.failure import DISCONNECTED, REFUSED, TIMEOUT, UNREADABLE, ServerError
from metastable.client.images import Image, Images, body_of, listed
from metastable.client.options import Options, deadline_of, headers_of, in_header, of_deadline
from metastable.client.progress import Progress, counted
from metastable.client.retrying import again, check, ends, wait_of

T = TypeVar("T")
Outcome: TypeAlias = Answer | ServerError
RETRIES, PATIENCE, AT_ONCE = 4, 120.0, 4
PROBE = 10.0
"""Seconds in which a server says that it is ready."""


class AsyncClient:
    """A server, asked over HTTP.  It is for one event loop.

        async with AsyncClient("http://127.0.0.1:8080") as client:
            answer = await client.classify("samples/cat.png", setting="fast")

    Args:
        url: address of the server, or whole address at which it predicts.
        key: of a server that asks for one; never shown.
        retries: how often a request is sent again that found no connection, or met 429 or 503.
        timeout: seconds for one image with all that is sent again.

    Raises MetastableError for what is no address, ValueError for numbers that cannot be.
    """

    def __init__(
        self,
        url: str = address.HERE,
        key: str | None = None,
        *,
        retries: int = RETRIES,
        timeout: float = PATIENCE,
    ) -> None:
        check(retries, timeout)
        parsed = address.checked(url)
        self.url, self._key, self._retries, self._timeout = url, key, retries, timeout
        self._predictions = address.of_predictions(parsed)
        self._headers = {} if key is None else {"Authorization": f"Bearer {in_header('a key', key)}"}
        self._http = opened(proxies=not address.is_loopback(parsed))

    async def classify(
        self, image: Image, *, request_id: str | None = None, **options: Unpack[Options]
    ) -> Answer:
        """What the server says of an image.

        Args:
            image: the bytes of a PNG, JPEG, WebP or .npy file, the path of one, or an array [H, W], [H, W, 3]
                or [3, H, W] of uint8, or of floats in [0, 1].
            request_id: by which the server's logs and its reply name the request.
            options: see `Options`.

        Raises ServerError for every end without an answer, OSError for a file that cannot be read, and
        ValueError or TypeError for what can be no image or option.
        """
        headers = headers_of(options, request_id)
        deadline = deadline_of(options)
        body = image if isinstance(image, bytes) else await asyncio.to_thread(body_of, image)

        async def once(passed: float) -> Answer:
            due = {} if deadline is None else of_deadline(deadline - passed)
            left = self._timeout - passed
            sent = OCTETS | headers | due
            return answer_of(await self._send("POST", left, headers=sent, content=body), self._key)

        return await self._insisting(once, ends(self._timeout, deadline))

    async def classify_all(
        self,
        images: Images,
        *,
        at_once: int = AT_ONCE,
        progress: Progress = "bar",
        **options: Unpack[Options],
    ) -> list[Outcome]:
        """What the server says of each image, in order: an Answer, or the ServerError in its place.

        Args:
            images: a list of images, or a folder: all pictures in it, in the order of `pictures(folder)`.
            at_once: requests under way at the same time, 1 or more.
            progress: called with how many are done and how many there are; "bar" shows a bar if tqdm is
                installed, None nothing.
            options: of every image, see `Options`; a deadline counts from when its request is sent.

        Raises DataError for a folder without pictures, ValueError and TypeError as `classify`.
        """
        if at_once < 1:
            raise ValueError(f"at_once must be 1 or more, not {at_once}")
        headers_of(options, None), deadline_of(options)  # before anything is sent
        given = await asyncio.to_thread(listed, images)
        outcomes: dict[int, Outcome] = {}
        places = iter(range(len(given)))
        with counted(progress, len(given)) as tick:

            async def work() -> None:
                for place in places:
                    outcomes[place] = await self._outcome(given[place], options)
                    tick()

            tasks = [asyncio.create_task(work()) for _ in range(min(at_once, len(given)))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return [outcomes[place] for place in range(len(given))]

    async def describe(self) -> Description:
        """The model that answers; ServerError where the server does not say it."""

        async def once(passed: float) -> Description:
            reply = await self._send("GET", self._timeout - passed, "/v2/models/metastable")
            try:
                return Description.of(json_of(reply, self._key))
            except ValueError:
                raise stranger(reply) from None

        return await self._insisting(once, self._timeout)

    async def ready(self) -> bool:
        """Whether an image would be answered now, asked once.

        Raises ServerError where something answers that does not know the question, as TorchServe alone does.
        """
        try:
            json_of(await self._send("GET", min(PROBE, self._timeout), "/readyz"), self._key)
        except ServerError as error:
            if error.status in (429, 503) or error.code in (REFUSED, DISCONNECTED, TIMEOUT):
                return False
            raise
        return True

    async def live(self) -> bool:
        """Whether the server's process says that it lives, asked once; ServerError where nothing answers."""
        return (await self._send("GET", min(PROBE, self._timeout), "/livez")).status == 200

    async def close(self) -> None:
        """End all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.url}{', with a key' if self._key else ''}>"

    async def _outcome(self, image: Image, options: Options) -> Outcome:
        try:
            return await self.classify(image, **options)
        except ServerError as error:
            return error
        except OSError as error:
            return ServerError(f"{error.filename}: {error.strerror}", UNREADABLE)

    async def _send(
        self,
        method: str,
        timeout: float,
        path: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Reply:
        """One exchange, at another path than that of predictions if one is given."""
        url = address.beside(self._predictions, path) if path else self._predictions
        return await exchange(
            self._http,
            method,
            url,
            timeout=timeout,
            headers=self._headers | dict(headers or {}),
            content=content,
            server=self.url,
        )

    async def _insisting(self, once: Callable[[float], Awaitable[T]], end: float) -> T:
        """What `once` gives, called with the seconds that have passed; again after failures that may end.

        No wait lasts beyond `end` seconds from now: the failure is raised in its place.
        """
        start, attempt = time.monotonic(), 0
        while True:
            try:
                return await once(time.monotonic() - start)
            except ServerError as error:
                wait = wait_of(error, attempt)
                late = time.monotonic() - start + wait >= end
                if not again(error) or attempt >= self._retries or late:
                    raise
            attempt += 1
            await asyncio.sleep(wait)
