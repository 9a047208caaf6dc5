"""How often early answers agree with those of all chains, and what they save: replays of recorded outputs.

    python -m benchmarks.stopping_simulation natural.pt attacked.pt

Each file holds one tensor [N, H, classes], `Defended.outputs` of N images with H chains, 150 or more
(written by torch.save).  A replay gives each image its recorded chains in order, round by round, and
stops where the test says so, at the latest at `REFERENCE`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import t as student
from torch import Tensor

from metastable.evaluation.stats import wilson
from metastable.stopping import UNSEEN, Decision, Stopping, decide, next_round

REFERENCE = 150
"""H of the answer that an early one has to agree with, and the cap of every replay."""
Settled = Callable[[Tensor], bool]
"""Outputs [n, classes] of a request's first n chains -> whether to stop."""


@dataclass(frozen=True)
class Replay:
    """What became of N requests: label, chains used, whether the test was ever sure; each [N]."""

    labels: Tensor
    chains: Tensor
    decided: Tensor

    def row(self, reference: Tensor) -> dict[str, float | int]:
        """Chains used and agreement with the labels int64 [N], with a Wilson 95 % interval."""
        used, agreed = self.chains.double(), int((self.labels == reference).sum())
        low, high = wilson(agreed, len(used))
        return {
            "n": len(used),
            "mean": float(used.mean()),
            "median": float(used.quantile(0.5)),
            "p90": float(used.quantile(0.9)),
            "decided": float(self.decided.double().mean()),
            "agreement": agreed / len(used),
            "low": low,
            "high": high,
            "wrong": int((self.decided & (self.labels != reference)).sum()),
        }


def looks(first: int, size: int, cap: int = REFERENCE) -> list[int]:
    """Totals of chains after each round: `first`, then `size` more at a time, and `cap` at last."""
    return [*range(min(first, cap), cap, size), cap]


def replay(outputs: Tensor, settled: Settled, totals: Sequence[int]) -> Replay:
    """Stop each request of outputs [N, H, classes] at the first of the ascending totals that is settled."""
    if outputs.ndim != 3 or outputs.shape[1] < totals[-1]:
        raise ValueError(f"outputs must be [N, {totals[-1]} or more, classes], not {list(outputs.shape)}")
    rows = []
    for request in outputs.double():
        at = next((n for n in totals if settled(request[:n])), None)
        used = totals[-1] if at is None else at
        rows.append((int(request[:used].mean(0).argmax()), used, at is not None))
    labels, chains, decided = zip(*rows, strict=True)
    return Replay(torch.tensor(labels), torch.tensor(chains), torch.tensor(decided))


def replay_rounds(
    outputs: Tensor, stopping: Stopping, seconds: Callable[[int], float], cap: int = REFERENCE
) -> tuple[Replay, Tensor]:
    """As `replay` with the test of `decide`, rounds as `next_round` chooses; and the seconds of each [N]."""
    spent: list[float] = []
    rows = []
    for request in outputs:
        taken, cost, needed = 0, 0.0, UNSEEN
        while size := next_round(needed, taken, cap, seconds):
            taken, cost = taken + size, cost + seconds(size)
            decision = _first_decision(request, taken - size, taken, stopping)
            if decision.decided:
                break
            needed = decision.needed
        rows.append((decision.label, taken, decision.decided))
        spent.append(cost)
    labels, chains, decided = zip(*rows, strict=True)
    return Replay(torch.tensor(labels), torch.tensor(chains), torch.tensor(decided)), torch.tensor(spent)


def _first_decision(outputs: Tensor, before: int, after: int, stopping: Stopping) -> Decision:
    """As the engine judges a round: by the first number of chains that decides, or by all."""
    for n in range(before + 1, after + 1):
        decision = decide(outputs[:n], stopping)
        if decision.decided:
            break
    return decision


def _margins(outputs: Tensor) -> tuple[Tensor, int]:
    """Margins [n, classes - 1] of the leader over each rival, and how many rivals there are."""
    order = outputs.mean(0).argsort(descending=True, stable=True)
    return outputs[:, order[:1]] - outputs[:, order[1:]], outputs.shape[1] - 1


def t_mixture(stopping: Stopping) -> Settled:
    """The product's test."""
    return lambda outputs: decide(outputs, stopping).decided


def asymptotic(stopping: Stopping, rho2: float = 0.3) -> Settled:
    """One-sided asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021)."""

    def settled(outputs: Tensor) -> bool:
        margins, rivals = _margins(outputs)
        n, level = len(margins), stopping.delta / rivals
        if n < stopping.least:
            return False
        grown = n * rho2 + 1
        factor = math.sqrt(2 * grown / (n**2 * rho2) * math.log1p(math.sqrt(grown) / (2 * level)))
        return bool((margins.mean(0) > factor * margins.std(0)).all())

    return settled


def spent_t(stopping: Stopping) -> Settled:
    """Student's t at n = least, 2 least, 4 least, ..., look k at delta / (k (k + 1)): rounds of one chain."""

    def settled(outputs: Tensor) -> bool:
        margins, rivals = _margins(outputs)
        n = len(margins)
        look = math.log2(n / stopping.least) + 1
        if look < 1 or look != int(look):
            return False
        factor = student.isf(stopping.delta / rivals / (look * (look + 1)), n - 1) / n**0.5
        return bool((margins.mean(0) > factor * margins.std(0)).all())

    return settled


def empirical_bernstein(stopping: Stopping) -> Settled:
    """Predictable plug-in (Waudby-Smith and Ramdas 2024, Theorem 2); for outputs in [0, 1] only."""

    def settled(outputs: Tensor) -> bool:
        margins, rivals = _margins(outputs)
        x = (margins + 1) / 2
        level = math.log(rivals / stopping.delta)
        t = torch.arange(1, len(x) + 1, dtype=x.dtype).unsqueeze(1)
        mean = (0.5 + x.cumsum(0)) / (t + 1)
        variance = (0.25 + (x - mean).square().cumsum(0)) / (t + 1)
        mean_before = torch.cat([torch.full_like(mean[:1], 0.5), mean[:-1]])
        variance_before = torch.cat([torch.full_like(mean[:1], 0.25), variance[:-1]])
        bet = (2 * level / (variance_before * t * torch.log1p(t))).sqrt().clamp_max(0.75)
        loss = ((x - mean_before).square() * (-torch.log1p(-bet) - bet)).sum(0)
        bound = ((bet * x).sum(0) - level - loss) / bet.sum(0)
        return bool((bound > 0.5).all())

    return settled


def betting(stopping: Stopping) -> Settled:
    """Capital prod(1 + lambda margin), uniform over lambda in (0, 1); for outputs in [0, 1] only.

    A martingale where the true margin is 0 (Waudby-Smith and Ramdas 2024, section 4).
    """
    stakes = torch.linspace(0.025, 0.975, 20, dtype=torch.float64)

    def settled(outputs: Tensor) -> bool:
        margins, rivals = _margins(outputs)
        capital = torch.log1p(stakes * margins.unsqueeze(2)).sum(0).exp().mean(1)
        return bool((capital >= rivals / stopping.delta).all())

    return settled


TESTS: Mapping[str, Callable[[Stopping], Settled]] = {
    "t mixture": t_mixture,
    "asymptotic": asymptotic,
    "t, doubling looks": spent_t,
    "empirical Bernstein": empirical_bernstein,
    "betting": betting,
}
BOUNDED = ("empirical Bernstein", "betting")


def truths(n: int, chains: int, seed: int = 0) -> dict[str, Tensor]:
    """Outputs [n, chains, 2] of classes whose true means are known; class 0 leads in all of them.

    `two modes`: 75 % of the chains lean to class 1 by 1, 25 % to class 0 by 4, spread 0.2.
    """
    rng = torch.Generator().manual_seed(seed)
    shape = (n, chains)
    normal = torch.randn(shape, generator=rng)
    wide = torch.randn((3, *shape), generator=rng).square().sum(0) / 3
    share = torch.rand(shape, generator=rng)
    margins = {
        "normal, effect 0.02": normal + 0.02,
        "normal, effect 0.2": normal + 0.2,
        "t with 3 degrees, effect 0.02": normal / wide.sqrt() / 3**0.5 + 0.02,
        "skewed to the leader, effect 0.02": -share.log() - 1 + 0.02,
        "skewed to the rival, effect 0.02": share.log() + 1 + 0.02,
        "two modes, effect 0.11": torch.where(share < 0.75, -1.0, 4.0) + 0.2 * normal,
    }
    return {name: torch.stack([m, torch.zeros(shape)], 2) for name, m in margins.items()}


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compare(name: str, outputs: Tensor, stopping: Stopping, size: int) -> list[dict[str, object]]:
    """Every test on logits [N, H, classes] and, as is averaged by `softmax` settings, on their softmax."""
    rows: list[dict[str, object]] = []
    for average, values in (("logits", outputs), ("softmax", outputs.softmax(2))):
        reference = values[:, :REFERENCE].double().mean(1).argmax(1)
        for test, make in TESTS.items():
            if average == "logits" and test in BOUNDED:
                continue
            result = replay(values, make(stopping), looks(stopping.least, size))
            rows.append({"recording": name, "average": average, "test": test, **result.row(reference)})
    return rows


def errors(stopping: Stopping, n: int = 500, chains: int = 100) -> list[dict[str, object]]:
    """Share of n requests that each test decides wrongly, looking after every chain, by kind of margin."""
    totals = looks(stopping.least, 1, chains)
    rows: list[dict[str, object]] = []
    for kind, outputs in truths(n, chains).items():
        row: dict[str, object] = {"margins": kind}
        for test in TESTS:
            if test not in BOUNDED:
                result = replay(outputs, TESTS[test](stopping), totals)
                row[test] = float((result.decided & (result.labels == 1)).double().mean())
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recordings", type=Path, nargs="*")
    parser.add_argument("--delta", type=float, default=Stopping.delta)
    parser.add_argument("--least", type=int, default=Stopping.least)
    parser.add_argument("--size", type=int, default=1, help="chains a round after the first")
    given = parser.parse_args()
    stopping = Stopping(given.delta, given.least)
    rows = [r for p in given.recordings for r in compare(p.stem, torch.load(p), stopping, given.size)]
    if rows:
        print(table(rows), end="\n\n")
    print(table(errors(stopping)))


if __name__ == "__main__":
    main()
