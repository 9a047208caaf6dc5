"""The client: sends items when they are due, takes down what becomes of each, and watches its own lag."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from loadtest import outcome
from loadtest.items import Item
from loadtest.outcome import Reply
from loadtest.schedule import Load, Times
from metastable.client import ServerError, address
from metastable.client.exchange import OCTETS, answer_of, exchange, opened
from metastable.errors import MetastableError

MOST_UNDER_WAY = 1000  # each holds a socket; systems commonly allow 1024
MAX_REPLY = 1 << 20  # bytes that are read of a reply
ARM_HEADER = "X-Metastable-Arm"  # docs/operating.md
_BEAT = 0.01  # seconds between two looks at the event loop's lag


@dataclass(frozen=True)
class Address:
    """Where requests go.  Raises MetastableError unless the address is http(s) with a host.

    Attributes:
        clients: a header that names another client in every request; empty for none.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    clients: str = ""

    def __post_init__(self) -> None:
        address.checked(self.url)


def require_loopback(url: str) -> None:
    """MetastableError if the host of a URL is, or has an address, outside the loopback range."""
    host = httpx.URL(url).host
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise MetastableError(f"the host {host!r} has no address: {error}") from None
    if not all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found):
        raise MetastableError(
            f"{host!r} is another machine: load it only with its owner's leave, and pass --allow-remote"
        )


@dataclass(frozen=True)
class Exchange:
    """One request.  Times are seconds from the block's start.

    Attributes:
        number: place in the block's items.
        due: when it should have left; in a closed loop, when it left.
        sent: when the client got round to it.
        done: when the reply was whole, or the request was given up.
        outcome: a name of loadtest.outcome.
        arm: in which the server says the request is; None where it says none.
    """

    number: int
    due: float
    sent: float
    done: float
    outcome: str
    verdict: Reply | None
    arm: str | None = None

    @property
    def latency(self) -> float:
        """Seconds from when the request was due, so that waiting to be sent counts."""
        return self.done - self.due


@dataclass(frozen=True)
class Played:
    """A block as it happened.

    Attributes:
        exchanges: in order of `number`; items that time did not suffice for are missing.
        beats: seconds by which the client's event loop woke late, once every 10 ms.
        busy: share of the block's time that the client spent on the processor.
        seconds: from the start to the last outcome.
    """

    exchanges: list[Exchange]
    beats: list[float]
    busy: float
    seconds: float


async def play(
    target: Address,
    items: Sequence[Item],
    load: Load,
    due: Times | None,
    tick: Callable[[], object] = lambda: None,
) -> Played:
    """Send the items as the load says and wait for every outcome.

    Args:
        due: seconds at which the items leave, at most as many as items; None for a closed loop.
        tick: called once for every request that has ended.
    """
    async with opened(proxies=False) as client:
        block = _Block(client, target, items, load, tick)
        beats: list[float] = []
        watch = asyncio.create_task(_watch(beats))
        cpu, start = time.process_time(), block.start
        try:
            await (block.closed() if due is None else block.open(due))
        finally:
            watch.cancel()
        seconds = time.perf_counter() - start
    done = sorted(block.exchanges, key=lambda exchange: exchange.number)
    return Played(done, beats, (time.process_time() - cpu) / max(seconds, 1e-9), seconds)


class _Block:
    """The requests of one block."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        target: Address,
        items: Sequence[Item],
        load: Load,
        tick: Callable[[], object],
    ) -> None:
        self._client, self._items, self._load, self._tick = client, items, load, tick
        self._url, self._headers = httpx.URL(target.url), OCTETS | target.headers
        self._clients = target.clients
        self.exchanges: list[Exchange] = []
        self.start = time.perf_counter()

    def _now(self) -> float:
        return time.perf_counter() - self.start

    async def open(self, due: Times) -> None:
        """Every request at its time, whatever became of those before it."""
        under_way: set[asyncio.Task[None]] = set()
        for number, at in enumerate(due.tolist()):
            await asyncio.sleep(max(0.0, at - self._now()))
            if len(under_way) >= MOST_UNDER_WAY:
                self._end(number, at, self._now(), outcome.UNSENT, None, None)
                continue
            task = asyncio.create_task(self._one(number, at))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    async def closed(self) -> None:
        """So many workers, each with its next request as soon as its last one has ended."""
        numbers = iter(range(len(self._items)))
        await asyncio.gather(*(self._worker(numbers) for _ in range(self._load.at_once)))

    async def _worker(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            if self._now() >= self._load.seconds:
                return
            await self._one(number, None)

    async def _one(self, number: int, due: float | None) -> None:
        sent = self._now()
        name, verdict, arm = await self._ask(self._items[number].body)
        self._end(number, sent if due is None else due, sent, name, verdict, arm)

    def _end(
        self, number: int, due: float, sent: float, name: str, verdict: Reply | None, arm: str | None
    ) -> None:
        self.exchanges.append(Exchange(number, due, sent, self._now(), name, verdict, arm))
        self._tick()

    async def _ask(self, body: bytes) -> tuple[str, Reply | None, str | None]:
        """Once, whatever happens: a load test measures what the client's retries would hide."""
        another = {self._clients: secrets.token_hex(8)} if self._clients else {}
        arm = None
        try:
            reply = await exchange(
                self._client,
                "POST",
                self._url,
                timeout=self._load.timeout,
                headers=self._headers | another,
                content=body,
                most=MAX_REPLY,
            )
            arm = reply.headers.get(ARM_HEADER)
            return outcome.ANSWER, Reply.of(answer_of(reply)), arm
        except ServerError as error:
            return outcome.named(error), None, arm


async def _watch(beats: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_BEAT)
        beats.append(time.perf_counter() - before - _BEAT)
