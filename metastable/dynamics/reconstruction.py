"""Reconstruction purification (Mitchell 2020, section 3.3): the sample of a short-run model nearest to x.

K Langevin steps from a start z are a generator M(z).  Gradient descent on z brings M(z) near the image,
and what the generator cannot make, the attack among it, is left behind.  "Rolling" takes the result for
the image of another reconstruction.

The gradient goes back through all K steps, one step at a time from a checkpoint, so that memory holds K
states and the activations of one evaluation.  A network like EnergyNetwork (LeakyReLU, scalar output) has a
score that is constant between kinks: there the gradient of M is the identity, and none of this is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from metastable.dynamics import ScoreFunction
from metastable.dynamics.base import (
    PUBLISHED,
    Adaptation,
    Dynamics,
    Kind,
    Network,
    Normal,
    Row,
    real,
    whole,
    wide,
)
from metastable.dynamics.langevin import langevin_step
from metastable.errors import NoGradient


def reconstruct(
    x: Tensor,
    score: ScoreFunction,
    *,
    walk: int,
    iterations: int,
    rate: float | Tensor,
    tau: float | Tensor,
    noise: Callable[[int], Tensor],
    eta: float | Tensor = 1.0,
    rolls: int = 1,
) -> Tensor:
    """M(z) for the z that `iterations` steps of gradient descent find for the images x [B, C, H, W].

    L(z) = |x - M(z)|^2 (eq. 3.1) and z <- z - rate dL/dz (eq. 3.2), from z uniform in [0, 1]; then the
    same for M(z) in the place of x, `rolls` times in all.

    Args:
        walk: K, the Langevin steps of M.
        rate, tau, eta: numbers, or tensors that fit x.
        noise: t to normals [B, C, H, W].  A roll uses K + 1 of them: the first gives its start, the others
            are those of M, which stay the same for all iterations, so that M is a function.

    Raises NoGradient where autograd asks for the gradient of the result: attack it by BPDA.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise NoGradient("a reconstruction has no gradient with respect to its image: use BPDA")
    # Under inference mode there would be no gradient, so it is left; what came in has to be copied for that.
    with torch.inference_mode(False):
        state = x.clone().detach()
        rate, tau, eta = (value.clone() if isinstance(value, Tensor) else value for value in (rate, tau, eta))
        for roll in range(rolls):
            kicks = [noise(roll * (walk + 1) + t) for t in range(walk + 1)]
            generate = _generator(score, kicks[1:], tau, eta)
            z = torch.special.ndtr(kicks[0])
            for _ in range(iterations):
                with torch.enable_grad():
                    z.requires_grad_(True)
                    loss = (state - generate(z)).square().sum()
                    (gradient,) = torch.autograd.grad(loss, z)
                z = (z - rate * gradient).detach()
            with torch.no_grad():
                state = generate(z)
    return state


def _generator(
    score: ScoreFunction, kicks: Sequence[Tensor], tau: float | Tensor, eta: float | Tensor
) -> Callable[[Tensor], Tensor]:
    """M: as many Langevin steps as there are kicks, each a checkpoint of its own."""

    def step(state: Tensor, kick: Tensor) -> Tensor:
        return langevin_step(state, score(state), tau, kick, eta)

    def generate(z: Tensor) -> Tensor:
        for kick in kicks:
            z = checkpoint(step, z, kick, use_reentrant=False, preserve_rng_state=False)
        return z

    return generate


@dataclass(frozen=True)
class Rolls(Kind):
    """Chains of reconstructions, one a step; their parameters are rate, tau and eta.

    Attributes:
        walk: Langevin steps of the generator.
        iterations: of gradient descent.
    """

    walk: int
    iterations: int
    name: ClassVar[str] = "reconstruction"
    probe: ClassVar[Row] = (1e-3, 1e-3, 1e-3)
    differentiates: ClassVar[bool] = True

    @property
    def draws(self) -> int:  # type: ignore[override]
        return self.walk + 1

    def step(
        self,
        x: Tensor,
        score: ScoreFunction,
        columns: Sequence[Tensor],
        normal: Normal,
        adapt: Adaptation = PUBLISHED,
    ) -> tuple[Tensor, Tensor]:
        rate, tau, eta = map(wide, columns)
        walk, iterations = self.walk, self.iterations
        end = reconstruct(
            x, score, walk=walk, iterations=iterations, rate=rate, tau=tau, eta=eta, noise=normal
        )
        return end, torch.ones_like(columns[0])


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Dynamics):
    """A reconstruction, rolled `steps` times.

    Attributes:
        network: that gives the score.
        steps: how often it is rolled.
        walk: Langevin steps from noise to a reconstruction (M of eq. 3.1).
        iterations: gradient steps of a reconstruction (eq. 3.2).
        rate: size of these gradient steps.
        tau, eta: step and noise factor of the Langevin steps.
    """

    network: Network = "score"
    steps: int = 0
    walk: int = 15
    iterations: int = 240
    rate: float = 0.1
    tau: float = 0.005
    eta: float = 1.0
    name: ClassVar[str] = "reconstruction"
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("walk", whole(self.walk) and 1 <= self.walk <= 1000, "a whole number from 1 to 1000")
        bounded = whole(self.iterations) and 1 <= self.iterations <= 10_000
        self.require("iterations", bounded, "a whole number from 1 to 10000")
        self.require("rate", real(self.rate) and 0 < self.rate <= 10, "in (0, 10]")
        self.require("tau", real(self.tau) and 0 < self.tau <= 1, "in (0, 1]")
        self.require("eta", real(self.eta) and 0 <= self.eta <= 100, "in [0, 100]")

    @property
    def kind(self) -> Kind:
        return Rolls(self.network, self.walk, self.iterations)

    def row(self, flagged: bool) -> Row:
        return (self.rate, self.tau, self.eta)
