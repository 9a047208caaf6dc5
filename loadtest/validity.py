"""Whether a run may be believed, and if not, why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadtest import outcome
from loadtest.arms import Arm
from loadtest.figures import ArmFigures, Client

ALLOWED_UNANSWERED = 0.01  # share of requests
LAG_MS = 10.0  # of the client, p99; or a tenth of the arm's median latency where that is more
BUSY = 0.9  # share of a core that the client may use


def reasons(arms: Sequence[Arm], summaries: Sequence[ArmFigures]) -> list[str]:
    """Why the run is INVALID, a sentence each; empty for a VALID one."""
    return [
        f"{arm.name}: {reason}"
        for arm, summary in zip(arms, summaries, strict=True)
        for reason in _of_arm(arm, summary)
    ]


def _of_arm(arm: Arm, summary: ArmFigures) -> Iterator[str]:
    n, answered, outcomes = summary.n, summary.answered, summary.outcomes
    if not n:
        yield "no request was measured; the time ended during the warm-up"
        return
    if n - answered > ALLOWED_UNANSWERED * n:
        told = ", ".join(f"{name} {count}" for name, count in outcomes.items() if name != outcome.ANSWER)
        yield f"{n - answered} of {n} requests got no answer ({told})"
    if outcomes.get(outcome.GARBAGE):
        yield f"{outcomes[outcome.GARBAGE]} replies could not be read"
    identity, client = summary.identity, summary.client
    for what in ("model", "runner", "setting"):
        answered_by: list[str] = getattr(identity, what)
        if len(answered_by) > 1:
            yield f"the {what} changed under way: {', '.join(answered_by)}"
    if arm.setting and identity.setting and identity.setting != [arm.setting]:
        yield f"the setting {arm.setting} was asked for and {', '.join(identity.setting)} answered"
    yield from _client(client, outcomes, summary.latency_ms["p50"].value)


def _client(client: Client, outcomes: dict[str, int], median: float | None) -> Iterator[str]:
    """What the client itself could not do."""
    allowed = max(LAG_MS, (median or 0.0) / 10)
    for lag, what in ((client.send_lag_p99_ms, "sent requests late"), (client.wake_lag_p99_ms, "woke late")):
        if lag > allowed:
            yield f"the client was the bottleneck: it {what} (p99 {lag} ms, allowed {allowed:.1f})"
    if client.busy > BUSY:
        yield f"the client was the bottleneck: it used {100 * client.busy:.0f} % of a core"
    if outcomes.get(outcome.UNSENT):
        yield f"the client was the bottleneck: {outcomes[outcome.UNSENT]} requests could not be sent"
