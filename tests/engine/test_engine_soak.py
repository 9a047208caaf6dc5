"""Ten thousand requests of every kind and fate through one engine."""

import gc
import random
from collections import Counter
from dataclasses import replace

import pytest

from metastable.engine.engine import EngineLimits
from metastable.engine.job import ActiveJob, Failure
from metastable.errors import Overloaded
from metastable.settings import Setting
from tests.engine.worlds import SETTINGS, SHORT, job, run_out, world

pytestmark = pytest.mark.slow


def shorter(setting: Setting, chains: int) -> Setting:
    short = replace(setting, chains=chains)
    return short.moving(steps=min(setting.steps, 4)) if setting.purifies else short


@pytest.mark.timeout(600)
def test_soak_every_request_has_one_outcome_and_nothing_is_left() -> None:
    rng = random.Random(5)
    engine, runner, clock = world(EngineLimits(slots=32, backlog=0.5, few=1, jobs=40))
    runner.poison = lambda batch: [i for i, (seed, _) in enumerate(batch.keys) if seed % 97 == 3]
    runner.break_on = lambda batch: any(seed % 499 == 7 for seed, _ in batch.keys)
    small = [shorter(s, chains=rng.randrange(1, 7)) for s in SETTINGS]
    small += [replace(SHORT, name="early", chains=24, delta=0.05)]
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    refused = 0
    for i in range(10_000):
        deadline = clock.now + rng.choice([0.01, 0.05, 1.0]) if rng.random() < 0.2 else None
        try:
            engine.submit(job(str(i), rng.choice(small), seed=i, value=rng.uniform(-1, 1), deadline=deadline))
        except Overloaded:
            refused += 1
            outcomes[str(i)] += 1
        if rng.random() < 0.05:
            engine.cancel(str(rng.randrange(max(0, i - 20), i + 1)))
        if rng.random() < 0.6:
            engine.advance()
        for outcome in engine.collect():
            outcomes[outcome.job.id] += 1
            kinds[type(outcome.error).__name__ if isinstance(outcome, Failure) else "answer"] += 1
    run_out(engine)
    outcomes.update(outcome.job.id for outcome in engine.collect())
    assert len(outcomes) == 10_000
    assert set(outcomes.values()) == {1}
    assert refused > 0
    assert {"answer", "Cancelled", "DeadlineExceeded", "EngineFailure"} <= set(kinds)
    assert engine.held == engine.chains.used == engine.backlog == 0
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is ActiveJob]
