"""The reference defense: replicate, purify, classify, average.  Short, slow, obviously right.

F(x) = E[f(T(x))] (Hill, Mitchell and Zhu 2021, section 3.2), estimated with H chains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metastable import noise
from metastable.dynamics import ScoreFunction
from metastable.dynamics.base import Adaptation, Dynamics, Row, columns
from metastable.dynamics.gaussian import inject
from metastable.pixels import at_most, most_pixels
from metastable.settings import Average, Setting

Classifier = Callable[[Tensor], Tensor]
CHAINS_AT_ONCE = 64  # bounds memory; results do not depend on it


@dataclass(frozen=True)
class Defended:
    """What the chains of N images say.

    Attributes:
        outputs: [N, H, classes], what each chain says, as averaged (see `as_averaged`).
        purified: [N, C, H, W], the mean purified image.
        steps: int64 [N, H], updates that each chain took.
        average: what `outputs` are.
    """

    outputs: Tensor
    purified: Tensor
    steps: Tensor
    average: Average

    @property
    def mean(self) -> Tensor:
        """F_H(x), [N, classes]."""
        return self.outputs.mean(dim=1)

    @property
    def labels(self) -> Tensor:
        """argmax of F_H, int64 [N]."""
        return self.mean.argmax(dim=1)

    @property
    def probabilities(self) -> Tensor:
        """[N, classes]: softmax of the mean (log-softmax of) logits, or the mean of the chains' softmax."""
        return self.mean if self.average == "softmax" else self.mean.softmax(dim=1)

    def margins(self) -> tuple[Tensor, Tensor]:
        """How far the label leads the runner-up in the mean, and the standard error of that: [N], [N].

        The error is of the paired difference over chains; it is not known (nan) from one chain.
        """
        top = self.mean.topk(2, dim=1).indices
        leader, rival = (
            self.outputs.gather(2, i.view(-1, 1, 1).expand(-1, self.outputs.shape[1], 1))
            for i in top.unbind(1)
        )
        difference = (leader - rival).squeeze(2)  # [N, H]
        chains = difference.shape[1]
        error = torch.full_like(difference[:, 0], torch.nan)
        if chains > 1:
            error = difference.std(dim=1) / chains**0.5
        return difference.mean(dim=1), error


def as_averaged(logits: Tensor, average: Average) -> Tensor:
    """What a defense averages over chains of logits [.., classes] (Hill 2021, section 3.2), same shape."""
    if average == "softmax":
        return logits.softmax(dim=-1)
    return logits.log_softmax(dim=-1) if average == "log_softmax" else logits


def begin(x: Tensor, keys: Sequence[noise.ChainKey], dynamics: Dynamics, flagged: Sequence[bool]) -> Tensor:
    """Where chains start from images x [B, C, H, W]: with the noise that their dynamics injects, if any."""
    levels = [dynamics.injects(flag) for flag in flagged]
    given = [level for level in levels if level is not None]
    if not given:
        return x
    return inject(x, torch.tensor(given).to(x), noise.normal(keys, 0, tuple(x.shape[1:]), x.device).to(x))


def walk(
    x: Tensor,
    keys: Sequence[noise.ChainKey],
    dynamics: Dynamics,
    score: ScoreFunction,
    flagged: Sequence[bool],
    *,
    first: int = 0,
    steps: int | None = None,
    hold: bool = False,
) -> tuple[Tensor, Tensor]:
    """Some steps (None: all) of chains x [B, C, H, W] from step `first` on: states; steps made, int64 [B]."""
    kind = dynamics.kind
    if kind is None:
        return x, torch.zeros(len(x), dtype=torch.int64)
    draws, drawn = kind.draws, noise.stream(keys, tuple(x.shape[1:]), x.device)
    given, last = _columns(x, dynamics.row, flagged), _columns(x, dynamics.last, flagged)
    made = torch.zeros(len(x), device=x.device)
    kept = x
    for t in range(first, first + (dynamics.steps if steps is None else steps)):

        def normal(draw: int, t: int = t) -> Tensor:
            return drawn(t * draws + draw).to(kept)

        here = last if last is not None and t == dynamics.steps - 1 else given
        assert here is not None, "every dynamics has a row"
        x, moved = kind.step(x, score, here, normal, Adaptation(hold=hold))
        made += moved.detach()
        if kind.stops and not moved.any():
            break
    return x, made.long().cpu()


def _columns(x: Tensor, row: Callable[[bool], Row | None], flagged: Sequence[bool]) -> list[Tensor] | None:
    """The parameters of chains x with these flags, each [B]; None where there are none."""
    rows = [one for flag in flagged if (one := row(flag)) is not None]
    return [column.to(x.device) for column in columns(rows, x.dtype)] if rows else None


def purify(
    x: Tensor,
    keys: Sequence[noise.ChainKey],
    setting: Setting,
    score: ScoreFunction,
    flagged: Tensor,
    *,
    hold: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run one chain from each row of x [B, C, H, W]: purified states and steps taken, int64 [B].

    Args:
        keys: (request seed, chain number) of each row.
        flagged: bool [B], the anomaly flag of each row's image.
        hold: take adaptive step sizes for constants where autograd is on (metastable.attacks).
    """
    flags = flagged.tolist()
    x = begin(x, keys, setting.dynamics, flags)
    return walk(x, keys, setting.dynamics, score, flags, hold=hold)


def score_of(scores: Mapping[str, ScoreFunction], setting: Setting) -> ScoreFunction:
    """The score function that moves a setting's chains; one that is zero where no network does."""
    return scores[setting.network] if setting.network else torch.zeros_like


def viewed(x: Tensor, chains: Sequence[int], setting: Setting) -> Tensor:
    """What the classifier sees of states x [B, C, H, W] of chains with these numbers."""
    return mirrored(x, [setting.mirror and chain % 2 == 1 for chain in chains])


def mirrored(x: Tensor, which: Sequence[bool]) -> Tensor:
    """Images [B, C, H, W], those of them mirrored."""
    if not any(which):
        return x
    return torch.where(torch.tensor(which, device=x.device).view(-1, 1, 1, 1), x.flip(3), x)


@torch.inference_mode()
def defend(
    images: Tensor,
    seeds: Sequence[int],
    setting: Setting,
    *,
    classifier: Classifier,
    scores: Mapping[str, ScoreFunction],
    flagged: Tensor,
    between: Callable[[str, float], None] = lambda stage, share: None,
) -> Defended:
    """Purify and classify images [N, C, H, W] in [0, 1] with H = setting.chains chains each.

    Args:
        seeds: one secret seed an image; equal seeds give equal answers, whatever the batch.
        classifier: f, images -> logits.
        scores: the score functions by network name.
        flagged: bool [N], the anomaly flags (they choose the noise of ADP and `noise`).
        between: called as between(stage, share done) after each piece of work, stage `purify` or
            `classify`; it may raise to give up.
    """
    h = setting.most_chains
    owner = torch.arange(len(images)).repeat_interleave(h)
    keys = [(seeds[int(i)], chain) for chain, i in zip(list(range(h)) * len(images), owner, strict=True)]
    made, steps = [], []
    purified = torch.zeros_like(images)
    score = score_of(scores, setting)
    at_once = at_most(CHAINS_AT_ONCE, images.shape, most_pixels(images.device))
    for start in range(0, len(owner), at_once):
        rows = owner[start : start + at_once]
        here = keys[start : start + len(rows)]
        x, taken = purify(images[rows], here, setting, score, flagged[rows])
        share = (start + len(rows)) / len(owner)
        between("purify", share)
        made.append(classifier(viewed(x, [chain for _, chain in here], setting)).float())
        steps.append(taken)
        purified.index_add_(0, rows, x / h)
        between("classify", share)
    logits = torch.cat(made).view(len(images), h, -1)
    outputs = as_averaged(logits, setting.average)
    return Defended(outputs, purified, torch.cat(steps).view(len(images), h), setting.average)
