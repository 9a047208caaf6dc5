"""The deadline of a connection, and the ways in which it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from metastable.serving.door import identity
from metastable.serving.door.accounts import Account
from metastable.serving.door.exchange import Exchange, Flow
from metastable.serving.door.limits import Limits
from metastable.serving.door.observing import Observer
from metastable.serving.door.refusals import Refusal


class EndingProtocol(H11Protocol):
    """A connection that has one deadline at a time; what it reads and answers is its subclass's.

    Attributes:
        _half: the client has ended its side.
        _ending: nothing more is answered; what comes is dropped.
    """

    cycle: Exchange | None  # type: ignore[assignment]
    flow: Flow

    def __init__(self, *, limits: Limits, observer: Observer | None = None, **given: Any) -> None:
        super().__init__(**given)
        self.limits, self.observer = limits, observer
        self._received = bytearray()  # not yet given to h11
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._ending = self._half = False
        self._dropped = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport, self.loop.time)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ending = True
        self._disarm()
        self._read_again()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.leave(sure=True)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_again()

    def _read_again(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self, seconds: float, expire: Callable[[], None]) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, expire)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _drop(self, data: bytes) -> None:
        self._dropped += len(data)
        if self._dropped > self.limits.linger_bytes:
            self.transport.abort()

    def _close(self) -> None:
        """Send what is still to be sent, if the client takes it soon, and close."""
        self._ending = True
        self.transport.close()
        self._arm(self.limits.linger_seconds, self.transport.abort)

    def _linger(self) -> None:
        """End our side, and read what the client still sends until it ends its own."""
        if self._half:
            return self._close()
        self._ending = True
        self.flow.release()
        self._arm(self.limits.linger_seconds, self.transport.abort)
        try:
            self.transport.write_eof()
        except OSError:  # the client has reset the connection since it was read
            self.transport.abort()

    def _end(self) -> None:
        """After the last answer of a connection: closing while something comes would reset it."""
        coming = self.cycle is not None and self.cycle.more_body
        if coming or self._received or self.conn.trailing_data[0]:
            self._linger()
        else:
            self._close()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer instead of the application, where it has not begun to, and end."""
        state: dict[str, Any] = {}
        head_only = False
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.leave(sure=True)
            if self.cycle.response_started:
                return self._close()
            state, head_only = self.scope["state"], self.scope["method"] == "HEAD"
            state["refusal"] = refusal
        self._tell(refusal, state)
        fields = [*self.server_state.default_headers, *identity.echo(state)]
        self.transport.write(refusal.wire(fields, state.get("request_id"), head_only))
        self._linger()

    def _tell(self, refusal: Refusal, state: dict[str, Any]) -> None:
        """Of a refusal that is not the application's: with the request that it ends, or by itself."""
        account: Account | None = state.get("account")
        if account is not None:
            account.refuse(refusal.status, refusal.code)
        elif "refusal" in state:
            pass  # the application has not begun: `Observed` finds it when it does
        elif self.observer is not None:
            self.observer.refused(refusal.status, refusal.code)
