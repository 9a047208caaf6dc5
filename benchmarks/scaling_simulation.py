"""Many replicas behind a router, on a simulated clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.scaling_costs import Recorded
from benchmarks.scaling_replica import Ended, Replica
from benchmarks.scaling_requests import Mix, Requests, poisson
from metastable.engine.engine import EngineLimits
from metastable.errors import Overloaded

Router = Callable[[Sequence[Replica]], Replica]
ANSWERED, REFUSED, FAILED = "answered", "refused", "failed"


def two_choices(rng: random.Random, load: Callable[[Replica], float]) -> Router:
    """Of two replicas that are drawn, the one with less load."""

    def route(replicas: Sequence[Replica]) -> Replica:
        return min(rng.sample(replicas, min(2, len(replicas))), key=load)

    return route


def in_turn(rng: random.Random) -> Router:
    """One after the other."""
    count = iter(range(1 << 62))
    return lambda replicas: replicas[next(count) % len(replicas)]


ROUTERS: dict[str, Callable[[random.Random], Router]] = {
    "requests": lambda rng: two_choices(rng, lambda one: one.ongoing),
    "backlog": lambda rng: two_choices(rng, lambda one: one.backlog),
    "turn": in_turn,
}
"""Power of two choices by ongoing requests, as Ray Serve has it, or by seconds of work; round robin."""


@dataclass(frozen=True)
class Fleet:
    """
    Attributes:
        recorded: what every replica's machine takes.
        mix: what is asked.
        limits: of every engine.
    """

    recorded: Recorded
    mix: Mix
    limits: EngineLimits = field(default_factory=EngineLimits)


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        at: when it ended; for a refusal, which comes at once, when it came.
        chains: of its answer; 0 without one.
        retry_after: seconds, of a refusal.
    """

    what: str
    at: float
    chains: int = 0
    retry_after: float | None = None


def simulate(
    fleet: Fleet, replicas: int, rate: float, router: str, seconds: float, seed: int
) -> dict[str, Any]:
    """The figures of the last three quarters of a Poisson stream of `rate` requests a second.

    Nobody who is refused comes again.
    """
    requests = poisson(fleet.mix, rate, seconds, seed)
    settings = [setting for setting, _ in fleet.mix.settings]
    members = [Replica(fleet.recorded, settings, fleet.limits) for _ in range(replicas)]
    outcomes = run(members, requests, ROUTERS[router](random.Random(seed)))
    begun = seconds / 4
    chosen = [(at, one) for at, one in zip(requests.at.tolist(), outcomes, strict=True) if at >= begun]
    answered = [(at, one) for at, one in chosen if one.what == ANSWERED]
    took = [one.at - at for at, one in answered] or [float("nan")]
    refused = [one for _, one in chosen if one.what == REFUSED]
    again = [one.retry_after for one in refused if one.retry_after is not None]
    busy = sum(
        max(min(to, seconds) - max(since, begun), 0.0) for member in members for since, to in member.busy
    )
    ended = sum(one.what == ANSWERED and begun <= one.at < seconds for one in outcomes)
    return {
        "replicas": replicas,
        "router": router,
        "rate": rate,
        "requests": len(chosen),
        "goodput": ended / (seconds - begun),
        "p50_ms": 1e3 * float(np.quantile(took, 0.5)),
        "p99_ms": 1e3 * float(np.quantile(took, 0.99)),
        "refused": len(refused) / max(len(chosen), 1),
        "without_retry_after": len(refused) - len(again),
        "retry_after_s": float(np.median(again)) if again else None,
        "failed": sum(one.what == FAILED for _, one in chosen),
        "busy": busy / (replicas * (seconds - begun)),
        "chains": float(np.mean([one.chains for _, one in answered])) if answered else None,
    }


def run(members: Sequence[Replica], requests: Requests, route: Router) -> list[Outcome]:
    """Send each request to the replica that the router names, and see all to their ends: N outcomes."""
    outcomes: dict[int, Outcome] = {}
    # (when, order, replica, what its turn ended): a turn ends before what comes at the same time.
    events: list[tuple[float, int, Replica, list[Ended]]] = []
    orders = iter(range(1 << 62))

    def begin(member: Replica, now: float) -> None:
        ended = member.turn(now)
        assert member.ready is not None
        heapq.heappush(events, (member.ready, next(orders), member, ended))

    def until(now: float) -> None:
        """Let all turns end that end by `now`."""
        while events and events[0][0] <= now:
            at, _, member, ended = heapq.heappop(events)
            for one in ended:
                assert one.number not in outcomes, "one request, one outcome"
                what = FAILED if one.chains is None else ANSWERED
                outcomes[one.number] = Outcome(what, one.at, one.chains or 0)
                member.ongoing -= 1
            member.ready = None
            if not member.idle:
                begin(member, at)

    for number, at in enumerate(requests.at.tolist()):
        until(at)
        member = route(members)
        try:
            member.admit(number, requests.settings[number], requests.margins[number])
        except Overloaded as error:
            outcomes[number] = Outcome(REFUSED, at, retry_after=error.retry_after)
            continue
        if member.ready is None:
            begin(member, at)
    until(float("inf"))
    return [outcomes[number] for number in range(len(requests.at))]
