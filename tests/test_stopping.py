import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from benchmarks import stopping_simulation as simulation
from metastable.stopping import EFFECT_VARIANCE, UNSEEN, Decision, Stopping, critical, decide, next_round

STOPPING = Stopping(delta=0.01, least=6)


def draw(seed: int, n: int, classes: int, lead: float = 1.0) -> torch.Tensor:
    """Logits of n chains, standard normal, with `lead` more for class 0."""
    outputs = torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    outputs[:, 0] += lead
    return outputs


REQUESTS = st.builds(draw, st.integers(0, 10**6), st.integers(2, 60), st.integers(2, 10), st.floats(0, 5))


def same(a: Decision, b: Decision) -> bool:
    """Whether two decisions agree in all but which class is which."""
    numbers = [(d.margin, d.standard_error, max(d.bound, -1e9)) for d in (a, b)]
    return numbers[0] == pytest.approx(numbers[1], rel=1e-6, abs=1e-9) and a.needed == b.needed


@given(REQUESTS, st.integers(0, 10**6))
def test_names_and_order_of_classes_do_not_matter(outputs: torch.Tensor, seed: int) -> None:
    order = torch.randperm(outputs.shape[1], generator=torch.Generator().manual_seed(seed))
    plain, shuffled = decide(outputs, STOPPING), decide(outputs[:, order], STOPPING)
    assert same(plain, shuffled)
    assert order[[shuffled.label, shuffled.runner_up]].tolist() == [plain.label, plain.runner_up]


@given(REQUESTS, st.floats(-100, 100), st.floats(0.01, 100))
def test_shifting_a_chains_logits_or_scaling_all_changes_no_label(
    outputs: torch.Tensor, shift: float, scale: float
) -> None:
    plain = decide(outputs, STOPPING)
    moved = decide(outputs + shift * torch.arange(len(outputs)).unsqueeze(1), STOPPING)
    assert same(plain, moved)
    scaled = decide(outputs * scale, STOPPING)
    assert (scaled.label, scaled.decided, scaled.needed) == (plain.label, plain.decided, plain.needed)
    assert scaled.margin == pytest.approx(plain.margin * scale)


@pytest.mark.slow
@given(REQUESTS, st.floats(1e-6, 0.5), st.integers(2, 30))
def test_asking_for_more_certainty_or_chains_never_decides_sooner(
    outputs: torch.Tensor, delta: float, least: int
) -> None:
    loose = decide(outputs, Stopping(delta, least))
    assert decide(outputs, Stopping(delta / 2, least)).bound <= loose.bound
    assert decide(outputs, Stopping(delta, least + 1)).bound <= loose.bound
    assert loose.decided == (not loose.needed)
    assert list(loose.needed) == sorted(loose.needed)
    assert all(total > len(outputs) for total in loose.needed)


@given(REQUESTS)
def test_the_bound_is_that_of_the_worst_rival(outputs: torch.Tensor) -> None:
    decision = decide(outputs, STOPPING)
    margins = outputs[:, [decision.label]] - outputs
    rivals = [j for j in range(outputs.shape[1]) if j != decision.label]
    n = len(outputs)
    factor = critical(n, STOPPING.delta / len(rivals)) / math.sqrt(n) if n >= STOPPING.least else math.inf
    bounds = [float(margins[:, j].mean() - factor * margins[:, j].std()) for j in rivals]
    assert decision.bound == pytest.approx(min(bounds))
    assert decision.margin == pytest.approx(float(margins[:, decision.runner_up].mean()))
    error = float(margins[:, decision.runner_up].std()) / math.sqrt(n)
    assert decision.standard_error == pytest.approx(error)


@pytest.mark.parametrize(("n", "level"), [(5, 0.01 / 9), (8, 0.01 / 9), (40, 0.2)])
def test_the_critical_value_by_integrating_the_noncentral_t(n: int, level: float) -> None:
    t = critical(n, level)
    half_normal = stats.halfnorm(scale=math.sqrt(EFFECT_VARIANCE))
    mixed, _ = integrate.quad(
        lambda effect: half_normal.pdf(effect) * stats.nct.pdf(t, n - 1, math.sqrt(n) * effect),
        0,
        40,
        limit=200,
    )
    assert mixed / stats.t.pdf(t, n - 1) == pytest.approx(1 / level, rel=1e-3)


def test_the_critical_value_exceeds_that_of_a_single_look_and_needs_chains() -> None:
    level = 0.01 / 9
    assert critical(1, level) == critical(4, level) == math.inf
    for n in (5, 8, 30, 1000):
        assert stats.t.isf(level, n - 1) < critical(n, level) < math.inf
    shares = [critical(n, level) / math.sqrt(n) for n in range(5, 500)]
    assert shares == sorted(shares, reverse=True)  # `decide` searches them by bisection


@pytest.mark.slow
def test_looking_after_every_chain_at_a_tie_errs_no_more_than_promised() -> None:
    level, requests, chains = 0.05, 20_000, 200
    margins = torch.randn(requests, chains, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    n = torch.arange(1, chains + 1, dtype=torch.float64)
    mean = margins.cumsum(1) / n
    variance = ((margins.square().cumsum(1) - n * mean.square()) / (n - 1)).clamp_min(0)
    bounds = torch.tensor([critical(int(i), level) for i in n], dtype=torch.float64)
    crossed = mean * n.sqrt() > bounds * variance.sqrt()
    errors = int(crossed[:, 1:].any(1).sum())
    assert errors <= level * requests + 3 * math.sqrt(requests * level * (1 - level))
    assert errors > level * requests / 10  # the promise is not kept by never deciding
    once = mean * n.sqrt() > torch.tensor(stats.t.isf(level, n - 1)) * variance.sqrt()
    assert int(once[:, 5:].any(1).sum()) > 3 * level * requests  # what looks at a plain t test would do


@pytest.mark.slow
def test_five_nearly_tied_classes_are_rarely_decided_wrongly() -> None:
    requests, delta = 200, 0.1
    rng = torch.Generator().manual_seed(2)
    outputs = torch.randn(requests, 60, 5, generator=rng) + torch.tensor([0.1, 0.0, 0.0, -0.1, -0.5])
    settled = simulation.t_mixture(Stopping(delta, least=4))
    result = simulation.replay(outputs, settled, simulation.looks(4, 2, 60))
    wrong = int((result.decided & (result.labels != 0)).sum())
    assert wrong <= delta * requests + 3 * math.sqrt(requests * delta * (1 - delta))


@pytest.mark.slow
def test_margins_that_are_not_normal() -> None:
    """Tails do no harm; a mode that is not seen does, and `least` is what stands against it."""
    kinds = simulation.truths(200, 40)

    def wrong(kind: str, least: int) -> float:
        settled = simulation.t_mixture(Stopping(0.01, least))
        result = simulation.replay(kinds[kind], settled, simulation.looks(least, 2, 40))
        return float((result.decided & (result.labels == 1)).double().mean())

    # Of 100 000 requests: 0.1 %, 5.4 %, 27 % and 1.3 %; the bounds leave room for 200.
    assert wrong("t with 3 degrees, effect 0.02", 6) < 0.01
    assert wrong("skewed to the leader, effect 0.02", 6) > 0.01  # short runs look surer than they are
    assert wrong("two modes, effect 0.11", 4) > 0.17
    assert wrong("two modes, effect 0.11", 16) < 0.04


def test_equal_chains_decide_but_one_does_not() -> None:
    chain = torch.tensor([[2.0, 1.0, 0.0]])
    alone = decide(chain, STOPPING)
    assert (alone.label, alone.runner_up, alone.margin) == (0, 1, 1.0)
    assert math.isnan(alone.standard_error)
    assert alone.bound == -math.inf
    assert alone.needed == UNSEEN
    assert not decide(chain.expand(5, 3), STOPPING).decided
    settled = decide(chain.expand(6, 3), STOPPING)
    assert settled.decided
    assert (settled.bound, settled.standard_error) == (1.0, 0.0)


def test_a_tie_in_every_chain_is_never_decided() -> None:
    tied = decide(torch.tensor([[1.0, 1.0, 0.0]]).expand(500, 3), STOPPING)
    assert (tied.label, tied.runner_up, tied.decided) == (0, 1, False)
    assert tied.needed[-1] >= 4096


@pytest.mark.parametrize(
    "outputs",
    [
        torch.zeros(0, 3),
        torch.zeros(4, 1),
        torch.zeros(4),
        torch.tensor([[1.0, math.nan]]),
        torch.tensor([[1.0, math.inf]]),
    ],
)
def test_outputs_that_say_nothing_are_refused(outputs: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="output"):
        decide(outputs, STOPPING)


@pytest.mark.parametrize("wrong", [{"delta": 0.0}, {"delta": 1.0}, {"delta": math.nan}, {"least": 1}])
def test_impossible_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Stopping(**wrong)  # type: ignore[arg-type]


def linear(size: int) -> float:
    return 0.003 + 0.0065 * size


def padded(size: int) -> float:
    """A device that runs 64 chains in the time of one."""
    return 0.005 * math.ceil(size / 64)


def test_rounds_are_small_where_chains_cost_time_and_large_where_slots_are_idle() -> None:
    needed = (9, 10, 12, 20, 40)
    assert next_round(needed, 8, 150, linear) <= 4
    assert next_round(needed, 8, 150, padded) == 64
    assert next_round((100,) * 5, 8, 150, linear) == 92
    assert next_round((70,) * 5, 0, 150, padded) == 128
    assert next_round(needed, 8, 150, lambda size: 1.0) == 142


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 4096), min_size=1, max_size=5),
    st.integers(0, 200),
    st.integers(1, 150),
    st.sampled_from([linear, padded]),
)
def test_rounds_stay_within_the_cap(needed: list[int], taken: int, cap: int, seconds: object) -> None:
    size = next_round(needed, taken, cap, seconds)  # type: ignore[arg-type]
    assert size == 0 if taken >= cap else 1 <= size <= cap - taken


def test_replays_stop_where_the_test_says_and_at_the_cap() -> None:
    clear = torch.tensor([[5.0, 0.0]]).expand(150, 2)
    tied = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(75, 1)
    outputs = torch.stack([clear, tied])
    result = simulation.replay(outputs, simulation.t_mixture(STOPPING), simulation.looks(6, 4))
    assert result.chains.tolist() == [6, 150]
    assert result.decided.tolist() == [True, False]
    assert result.row(torch.tensor([0, 0]))["agreement"] == 1
    chosen, seconds = simulation.replay_rounds(outputs, STOPPING, padded)
    assert chosen.chains.tolist() == [64, 150]
    assert seconds.tolist() == pytest.approx([0.005, 0.015])
    with pytest.raises(ValueError, match="150"):
        simulation.replay(outputs[:, :149], simulation.t_mixture(STOPPING), [6, 150])


def test_every_candidate_decides_what_is_clear_and_leaves_a_tie() -> None:
    clear = torch.tensor([[9.0, 0.0, 0.0]]).expand(150, 3) + draw(0, 150, 3, 0.0) / 10
    tied = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], dtype=torch.float64).repeat(75, 1)
    rows = simulation.compare("both", torch.stack([clear, tied]), STOPPING, 6)
    assert len(rows) == 8
    assert all((row["decided"], row["agreement"]) == (0.5, 1.0) for row in rows)
    assert simulation.table(rows).count("\n") == 9


def test_the_table_of_errors_has_every_kind_and_test() -> None:
    rows = simulation.errors(STOPPING, n=3, chains=8)
    assert [row["margins"] for row in rows] == list(simulation.truths(1, 1))
    assert all(set(row) == {"margins", "t mixture", "asymptotic", "t, doubling looks"} for row in rows)
