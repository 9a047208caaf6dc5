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

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from metastable.dynamics import ScoreFunction
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
