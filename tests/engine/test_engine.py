import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metastable.bundle import Bundle
from metastable.defense import defend
from metastable.engine import costs
from metastable.engine.engine import Engine, EngineLimits
from metastable.engine.job import Answer, Failure, Job, Segment
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import Cancelled, DeadlineExceeded, Draining, EngineFailure, Overloaded
from tests.engine.worlds import ADP, LONG, NONE, SETTINGS, SHORT, job, run_out, world


def answers(engine: Engine) -> dict[str, Answer]:
    found = engine.collect()
    assert all(isinstance(outcome, Answer) for outcome in found)
    return {outcome.job.id: outcome for outcome in found if isinstance(outcome, Answer)}


def test_every_setting_gives_what_the_reference_gives(tiny: Bundle) -> None:
    """Real networks: the same seeds, mixed in one engine, agree with `defend` one image at a time."""
    runner = TorchRunner(tiny.networks, tiny.classifier)
    kinds = {kind for s in tiny.settings.by_name.values() if (kind := s.dynamics.kind)}
    ticks = iter(range(1_000_000))

    def clock() -> float:
        return 1e-3 * next(ticks)

    curve = costs.measure(runner, kinds, tiny.shape, (1, 2, 4), clock)
    engine = Engine(runner, curve, tiny.shape, clock)
    torch.manual_seed(1)
    images = torch.rand(2, *tiny.shape)
    jobs = [
        Job(f"{name}{i}", images[i], setting, 1000 + i, flagged=bool(i))
        for name, setting in tiny.settings.by_name.items()
        for i in range(2)
    ]
    for one in jobs:
        engine.submit(one)
    run_out(engine)
    found = answers(engine)
    assert set(found) == {one.id for one in jobs}
    for one in jobs:
        wanted = defend(
            one.image[None],
            [one.seed],
            one.setting,
            classifier=tiny.classifier,
            scores=tiny.scores,
            flagged=torch.tensor([one.flagged]),
        )
        got = found[one.id].result
        torch.testing.assert_close(got.mean, wanted.mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(got.purified, wanted.purified, rtol=1e-3, atol=1e-4)
        assert got.average == wanted.average
        assert got.steps.sum() == wanted.steps.sum()
        assert sum(found[one.id].seconds.values()) > 0


@pytest.mark.slow
@given(st.randoms(use_true_random=False), st.integers(1, 16))
@settings(max_examples=15, deadline=None)
def test_an_answer_does_not_depend_on_company_or_order(rng: random.Random, slots: int) -> None:
    every = (*SETTINGS, replace(SHORT, name="early", chains=40, delta=0.05))
    jobs = [job(f"{s.name}{k}", s, seed=k, value=0.1 * k) for s in every for k in range(3)]
    alone = {}
    for one in jobs:
        engine, *_ = world()
        engine.submit(one)
        run_out(engine)
        alone |= answers(engine)
    rng.shuffle(jobs)
    engine, *_ = world(EngineLimits(slots=max(slots, 4), segment=rng.choice([0.004, 0.03, 0.3])))
    for one in jobs:
        engine.submit(one)
        for _ in range(rng.randrange(4)):
            engine.advance()
    run_out(engine)
    for id, answer in answers(engine).items():
        torch.testing.assert_close(answer.result.outputs, alone[id].result.outputs)
        torch.testing.assert_close(answer.result.purified, alone[id].result.purified)


def test_chains_of_different_requests_share_a_batch() -> None:
    engine, runner, _ = world()
    for i in range(4):
        engine.submit(job(f"r{i}", SHORT.moving(tau=0.1 + 0.1 * i), seed=i))
    run_out(engine)
    assert max(size for _, size, _ in runner.batches) > SHORT.chains
    spreads = [a.result.outputs[0, :, 0].std() for _, a in sorted(answers(engine).items())]
    assert spreads[0] < spreads[-1]  # each kept its own tau


def test_a_job_that_cannot_be_taken_is_refused() -> None:
    engine, *_ = world()
    engine.submit(job("a"))
    with pytest.raises(ValueError, match="already held"):
        engine.submit(job("a"))
    with pytest.raises(ValueError, match="shape"):
        engine.submit(Job("b", torch.zeros(3, 2, 2), SHORT, 0))
    with pytest.raises(ValueError, match="seed"):
        engine.submit(job("c", seed=-1))
    run_out(engine)
    assert set(answers(engine)) == {"a"}


def test_work_beyond_the_backlog_is_refused_with_a_time() -> None:
    engine, _, clock = world(EngineLimits(backlog=1.0, few=1))
    engine.submit(job("small"))  # 4 * (2 * 1 ms + 2 ms) = 0.016 s
    engine.submit(job("first", LONG))  # 60 * (20 * 1 ms + 2 ms) = 1.32 s
    with pytest.raises(Overloaded, match=r"try again in 0\.3 s") as refused:
        engine.submit(job("second", LONG))
    until = clock.now + refused.value.retry_after
    while clock.now < until:
        engine.advance()
    engine.submit(job("second", LONG))
    run_out(engine)
    assert set(answers(engine)) == {"first", "small", "second"}
    assert engine.backlog == 0


def test_a_job_larger_than_the_backlog_is_taken_where_none_goes_before_it() -> None:
    engine, *_ = world(EngineLimits(backlog=0.001, few=1))
    engine.submit(job("only", LONG))
    run_out(engine)
    assert set(answers(engine)) == {"only"}


def test_a_deadline_gives_the_best_answer_so_far_or_fails() -> None:
    engine, *_ = world(EngineLimits(segment=0.1))
    engine.submit(job("hopeless", LONG, deadline=0.01))
    engine.submit(job("partial", LONG, deadline=0.7))
    engine.submit(job("easy", SHORT, deadline=1e6))
    run_out(engine)
    found = {outcome.job.id: outcome for outcome in engine.collect()}
    hopeless, partial, easy = found["hopeless"], found["partial"], found["easy"]
    assert isinstance(hopeless, Failure)
    assert isinstance(hopeless.error, DeadlineExceeded)
    assert isinstance(partial, Answer)
    assert partial.late
    assert 2 <= partial.result.outputs.shape[1] < LONG.chains
    assert isinstance(easy, Answer)
    assert not easy.late
    assert engine.chains.used == 0


def test_cancelling_frees_the_slots() -> None:
    engine, *_ = world()
    engine.submit(job("a", LONG))
    engine.submit(job("b"))
    engine.advance()
    assert engine.chains.used > 0
    assert engine.cancel("a")
    assert not engine.cancel("a")
    run_out(engine)
    outcomes = {outcome.job.id: outcome for outcome in engine.collect()}
    cancelled = outcomes["a"]
    assert isinstance(cancelled, Failure)
    assert isinstance(cancelled.error, Cancelled)
    assert isinstance(outcomes["b"], Answer)
    assert engine.chains.used == 0


def test_a_failing_batch_fails_its_own_requests_only() -> None:
    engine, runner, _ = world()
    runner.break_on = lambda batch: any(seed == 13 for seed, _ in batch.keys)
    engine.submit(job("fine before", ADP, seed=1))
    engine.submit(job("bad", SHORT, seed=13))
    run_out(engine)
    engine.submit(job("fine after", SHORT, seed=2))
    run_out(engine)
    outcomes = {outcome.job.id: outcome for outcome in engine.collect()}
    bad = outcomes.pop("bad")
    assert isinstance(bad, Failure)
    assert isinstance(bad.error, EngineFailure)
    assert "device is gone" not in str(bad.error)
    assert isinstance(bad.error.__cause__, RuntimeError)
    assert all(isinstance(outcome, Answer) for outcome in outcomes.values())
    assert engine.chains.used == 0


def test_each_request_of_a_failing_batch_has_an_error_of_its_own() -> None:
    engine, runner, _ = world()
    runner.break_on = lambda batch: True
    for i in range(3):
        engine.submit(job(f"r{i}", seed=i))
    run_out(engine)
    errors = [outcome.error for outcome in engine.collect() if isinstance(outcome, Failure)]
    assert len({id(error) for error in errors}) == 3
    assert engine.counters.failures == 3


def test_a_nan_chain_is_drawn_again_once() -> None:
    engine, runner, _ = world()
    runner.poison = lambda batch: [i for i, key in enumerate(batch.keys) if key == (7, 2)]
    engine.submit(job("a", seed=7))
    run_out(engine)
    answer = answers(engine)["a"]
    assert (answer.redrawn, engine.chains.redrawn) == (1, 1)
    assert answer.result.outputs.shape[1] == SHORT.chains
    assert bool(answer.result.outputs.isfinite().all())


def test_a_chain_that_is_nan_twice_fails_its_request_only() -> None:
    engine, runner, _ = world()
    runner.poison = lambda batch: [i for i, (seed, _) in enumerate(batch.keys) if seed == 7]
    engine.submit(job("a", seed=7))
    engine.submit(job("b", seed=8))
    run_out(engine)
    outcomes = {outcome.job.id: outcome for outcome in engine.collect()}
    assert isinstance(outcomes["a"], Failure)
    assert isinstance(outcomes["b"], Answer)
    assert engine.chains.used == 0


@pytest.mark.slow
def test_deciding_early_spends_fewer_chains_where_the_answer_is_clear() -> None:
    clear = replace(SHORT, chains=60, delta=0.01)
    engine, *_ = world()
    engine.submit(job("clear", clear, value=5.0))
    engine.submit(job("tie", replace(clear, name="tie"), value=0.0, seed=1))
    run_out(engine)
    found = answers(engine)
    assert found["clear"].decision.decided
    assert not found["clear"].capped
    assert found["clear"].result.outputs.shape[1] < 12
    assert found["tie"].result.outputs.shape[1] == 60
    assert found["tie"].capped
    assert engine.counters.capped == 1


def test_prices_follow_what_requests_really_need() -> None:
    clear = replace(SHORT, chains=60, delta=0.01)
    engine, *_ = world()
    before = engine.admission.price(clear)
    for i in range(30):
        engine.submit(job(f"r{i}", clear, value=5.0, seed=i))
        run_out(engine)
    assert engine.admission.price(clear) < 0.4 * before


def test_a_draining_engine_finishes_what_it_can_in_time() -> None:
    engine, *_ = world()
    engine.submit(job("short"))
    engine.submit(job("long", LONG))
    engine.drain(0.2)
    with pytest.raises(Draining):
        engine.submit(job("new"))
    run_out(engine)
    outcomes = {outcome.job.id: outcome for outcome in engine.collect()}
    assert isinstance(outcomes["short"], Answer)
    assert not outcomes["short"].late
    late = outcomes["long"]
    assert isinstance(late, Failure) or late.late
    assert engine.held == engine.chains.used == 0


def test_no_setting_waits_for_another_kind_for_ever() -> None:
    engine, *_ = world(EngineLimits(slots=8))
    engine.submit(job("long", LONG))
    for i in range(3):
        engine.submit(job(f"adp{i}", ADP, seed=i))
        engine.submit(job(f"none{i}", NONE))
    run_out(engine)
    assert len(answers(engine)) == 7


def test_a_watcher_is_told_of_every_segment() -> None:
    engine, runner, _ = world(EngineLimits(segment=25e-3))  # a step and a look of 8 chains
    seen: list[Segment] = []
    engine.watch = seen.append
    runner.poison = lambda batch: [0] if len(runner.batches) == 1 else []
    for id in "ab":
        engine.submit(job(id, seed=ord(id)))
    assert not seen
    run_out(engine)
    assert len(answers(engine)) == 2
    assert seen[0] == Segment(jobs=2, chains=8, width=8, redrawn=1)
    assert sum(segment.redrawn for segment in seen) == engine.chains.redrawn == 1
    assert len(seen) == engine.counters.segments > 1
    assert all(0 < segment.chains <= segment.width for segment in seen)


def test_a_batch_has_no_more_room_than_there_are_slots() -> None:
    engine, _, _ = world(EngineLimits(segment=1.0, slots=4))
    seen: list[Segment] = []
    engine.watch = seen.append
    engine.submit(job("a"))
    engine.advance()
    assert seen == [Segment(jobs=1, chains=4, width=4, redrawn=0)]
