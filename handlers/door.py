"""What a worker keeps for the door: permits whose request is yet to come, and requests given up.

    token = door.admit("fast", owner)       # the control channel's threads
    door.cancel("job 7")
    claim = door.claim(request.headers)     # the service, in its step
    door.given_up()

Any thread may call any of it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from metastable.bundle import Bundle
from metastable.engine.admission import Permit
from metastable.engine.engine import Engine
from metastable.errors import InvalidOption
from metastable.serving import judging
from metastable.serving.control import (
    JOB_HEADER,
    PERMIT_HEADER,
    SENT_HEADER,
    described,
)
from metastable.settings import Setting

KEPT = 60.0
"""Seconds that a permit waits for its request, and that the name of one given up is remembered.

Longer than the work that may wait before it, 30 s.  The door gives back what it does not use: this is for
what it forgets.
"""
LONGEST_WAIT = 600.0  # seconds that a request may have been under way before it came here


@dataclass(frozen=True)
class Claim:
    """What a request brought for the service alone.

    Attributes:
        headers: all others.
        permit: of its token, its own from now on; None where it has none or came too late.
        job: by which `cancel` names it.
        waited: seconds since the door sent it.
    """

    headers: Mapping[str, str]
    permit: Permit | None = None
    job: str | None = None
    waited: float = 0.0

    def release(self) -> None:
        """Give the permit back, if there is one and no job has taken it over."""
        if self.permit is not None:
            self.permit.release()

    def permit_for(self, setting: Setting) -> Permit | None:
        """The permit if it is for this setting; one for another is given back."""
        if self.permit is not None and self.permit.setting != setting:
            self.release()
            return None
        return self.permit


@dataclass(frozen=True)
class _Kept:
    permit: Permit
    owner: object
    until: float


class Door:
    """See the module.

    Args:
        allow_seed: whether clients may set the seed.
        runner: what runs the networks.
        window: requests that TorchServe may hold, those in its queue among them.
        clock: seconds, monotonic, the same for all processes of the machine.
        looked: called when the door looks how things stand, some times a second: permits come and go
            between the service's steps.
    """

    def __init__(
        self,
        engine: Engine,
        bundle: Bundle,
        allow_seed: bool,
        runner: str,
        window: int,
        clock: Callable[[], float] = time.monotonic,
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._settings = engine, bundle.settings.by_name
        self._served = judging.served_of(bundle, allow_seed=allow_seed, runner=runner)
        self._window, self._clock, self._looked = window, clock, looked
        self._kept: dict[str, _Kept] = {}
        self._gone: dict[str, float] = {}  # jobs given up, and until when that is remembered
        self._lock = threading.Lock()

    # --- what the control channel asks ---------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        return {"served": described(self._served), "window": self._window}

    def admit(self, setting: str, owner: object) -> dict[str, Any]:
        """The token of a permit that is kept for `owner`, and the backlog with it.

        Raises InvalidOption for an unknown setting, and what `Engine.admit` raises.
        """
        self.expire()
        permit = self._engine.admit(self._setting(setting))
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[token] = _Kept(permit, owner, self._clock() + KEPT)
        return {"token": token, "backlog": self._engine.backlog}

    def release(self, token: str) -> None:
        """Give the permit of a token back; nothing for one that a request has claimed."""
        with self._lock:
            kept = self._kept.pop(token, None)
        if kept is not None:
            kept.permit.release()

    def disown(self, owner: object) -> None:
        """Give all permits back that are kept for `owner`."""
        for token in [token for token, kept in self._snapshot() if kept.owner is owner]:
            self.release(token)

    def cancel(self, job: str) -> None:
        """The service gives this request up at its next step, or when it comes."""
        with self._lock:
            self._gone[job] = self._clock() + KEPT

    def state(self) -> dict[str, Any]:
        """Backlog in seconds, permits out, and of each setting the price and why it would be refused now."""
        self.expire()
        self._looked()
        return judging.state_of(self._engine, self._settings)

    # --- what the service asks -----------------------------------------------------------------

    def claim(self, headers: Mapping[str, str]) -> Claim:
        """The door's own headers taken out of a request's; a token counts once."""
        names = {name.lower() for name in (PERMIT_HEADER, JOB_HEADER, SENT_HEADER)}
        own = {name.lower(): value for name, value in headers.items() if name.lower() in names}
        with self._lock:
            kept = self._kept.pop(own.get(PERMIT_HEADER.lower(), ""), None)
        return Claim(
            {name: value for name, value in headers.items() if name.lower() not in names},
            None if kept is None else kept.permit,
            own.get(JOB_HEADER.lower()),
            self._since(own.get(SENT_HEADER.lower())),
        )

    def given_up(self) -> frozenset[str]:
        """Names of requests that nobody wants any more, for a while: some are still to come."""
        self.expire()
        with self._lock:
            return frozenset(self._gone)

    def expire(self) -> None:
        """Give back what has been kept too long."""
        if not (self._kept or self._gone):
            return
        now = self._clock()
        for token in [token for token, kept in self._snapshot() if kept.until <= now]:
            self.release(token)
        with self._lock:
            self._gone = {job: until for job, until in self._gone.items() if until > now}

    def _snapshot(self) -> list[tuple[str, _Kept]]:
        with self._lock:
            return list(self._kept.items())

    def _setting(self, name: str) -> Setting:
        if name not in self._settings:
            raise InvalidOption(f"setting must be one of {', '.join(self._settings)}")
        return self._settings[name]

    def _since(self, sent: str | None) -> float:
        try:
            waited = self._clock() - float(sent or "nan")
        except ValueError:
            return 0.0
        return waited if 0 <= waited <= LONGEST_WAIT else 0.0
