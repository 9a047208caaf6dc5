"""One request and its reply over HTTP: bounded in bytes and, as a whole, in seconds.

The deadlines of httpx start anew with every byte, so that a server which trickles would never meet one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from metastable.client.answer import Answer
from metastable.client.failure import DISCONNECTED, GARBAGE, REFUSED, TIMEOUT, ServerError, loaded, refusal
from metastable.client.retrying import seconds_after

OCTETS = {"Content-Type": "application/octet-stream"}
MOST_BYTES = 16 << 20
"""Of a reply: the verdict of a bundle with 32 768 classes that lists them all has about half of them."""


@dataclass(frozen=True)
class Reply:
    """A whole reply; `server` is what sentences call the server."""

    server: str
    status: int
    headers: httpx.Headers
    body: bytes


def opened(*, proxies: bool) -> httpx.AsyncClient:
    """Connections to a server: redirects are not followed, and the only deadlines are those of each request.

    Args:
        proxies: whether those of the environment are used.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    # Bytes as they were sent: what a few packed ones become has no bound that is known before.
    plain = {"Accept-Encoding": "identity"}
    return httpx.AsyncClient(timeout=None, limits=limits, headers=plain, trust_env=proxies)


async def exchange(
    http: httpx.AsyncClient,
    method: str,
    url: httpx.URL,
    *,
    timeout: float,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
    most: int = MOST_BYTES,
    server: str = "",
) -> Reply:
    """The reply to one request, whatever its status.

    Args:
        timeout: seconds for all of it.
        most: bytes of the reply.
        server: what sentences call the server, if not by the whole address.

    Raises ServerError with one of the codes `refused`, `disconnected`, `timeout` and `garbage`; its status is
    0 unless a reply had begun.
    """
    status = 0
    try:
        async with (
            asyncio.timeout(timeout),
            http.stream(method, url, content=content, headers=headers) as reply,
        ):
            status = reply.status_code
            body = bytearray()
            if reply.headers.get("content-encoding", "identity") != "identity":
                raise _none(server or url, "it sent a packed reply, which was not asked for", GARBAGE, status)
            async for piece in reply.aiter_raw():
                body += piece
                if len(body) > most:
                    raise _none(server or url, f"it sent more than {most} bytes", GARBAGE, status)
            return Reply(server or str(url), status, reply.headers, bytes(body))
    except TimeoutError:
        raise _none(server or url, f"it took longer than {timeout:.3g} s", TIMEOUT, status) from None
    except (httpx.ConnectError, httpx.ProxyError) as error:
        sentence = f"no server answers at {server or url} ({error}): run `make serve` first"
        raise ServerError(sentence, REFUSED) from None
    except httpx.RemoteProtocolError as error:
        # h11 reports a connection that ended before any reply, and bytes that are not HTTP, alike.
        gone = "disconnected" in str(error) or "closed" in str(error)
        raise _none(server or url, str(error), DISCONNECTED if gone else GARBAGE, status) from None
    except httpx.TransportError as error:
        why = str(error) or type(error).__name__
        raise _none(server or url, why, DISCONNECTED, status) from None


def _none(server: object, why: str, code: str, status: int) -> ServerError:
    return ServerError(f"no answer from {server}: {why}", code, status)


def json_of(reply: Reply, key: str | None = None) -> Any:
    """What a reply of status 200 says as JSON, None if it says none; ServerError for another status.

    Args:
        key: that the error must not repeat, should the reply do so.
    """
    if reply.status != 200:
        headers = reply.headers
        after = seconds_after(headers.get("retry-after"), headers.get("date"), time.time())
        said = reply.status, reply.body
        raise refusal(reply.server, *said, request_id=_id(reply), retry_after=after, key=key)
    return loaded(reply.body)


def answer_of(reply: Reply, key: str | None = None) -> Answer:
    """The verdict in a reply; ServerError, which does not repeat the key, for one that is none."""
    try:
        return Answer.of(json_of(reply, key))
    except ValueError:
        raise stranger(reply) from None


def stranger(reply: Reply) -> ServerError:
    """For a reply of status 200 that is not what it should be."""
    return ServerError(f"what answers at {reply.server} is no Metastable server", GARBAGE, reply.status)


def _id(reply: Reply) -> str:
    found: str = reply.headers.get("x-request-id", "")
    return found
