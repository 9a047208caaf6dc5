"""The steps of a setting as one ONNX graph, for programs that are not this server.

Everything that is random or chosen is an input, so one graph serves every seed and noise level:

    langevin-<network>-<S>: x, tau [batch], noise [S, batch, C, H, W]                          -> y
    adp-<network>-<S>:      x, noise [batch, C, H, W], sigma, fraction, low, high, stop [batch] -> y, moved

x and y are states [batch, C, H, W] in units of [0, 1] (Langevin's are not clipped), noise is standard normal,
and `moved` [batch] counts the updates until the chain stopped.  ADP injects sigma times the noise first; with
sigma 0 a chain goes on from where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export import graphs
from metastable.bundle import Bundle
from metastable.dynamics.adp import Ascent
from metastable.dynamics.base import Dynamics, Kind, wide
from metastable.dynamics.drift import Drift
from metastable.dynamics.gaussian import inject
from metastable.dynamics.langevin import Langevin, langevin_step

LONGEST = 8
"""The most steps in a graph, which are unrolled; a setting of more calls its graph again."""
STATE = "y"


class LangevinSteps(nn.Module):
    """`steps` unrolled Langevin steps (Hill 2021, eq. 3)."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network, self.steps = network, steps

    def forward(self, x: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
        """x [B, C, H, W] in [0, 1], tau [B], standard normal noise [steps, B, C, H, W] -> x."""
        for z in noise.unbind(0):
            x = langevin_step(x, self.network.score(x), wide(tau), z)  # type: ignore[operator]
        return x


class AdpSteps(nn.Module):
    """ADP whole: the noise, then `steps` updates (Yoon, Hwang and Lee 2021, Algorithm 1)."""

    def __init__(self, network: nn.Module, steps: int, *, adaptive: bool) -> None:
        super().__init__()
        self.network, self.steps, self.kind = network, steps, Ascent("", adaptive=adaptive)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        sigma: Tensor,
        fraction: Tensor,
        low: Tensor,
        high: Tensor,
        stop: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See the module; each number is a column [B]."""
        x = inject(x, sigma, noise)
        moved = torch.zeros_like(sigma)
        for _ in range(self.steps):
            x, going = self.kind.step(x, self.network.score, [fraction, low, high, stop])  # type: ignore[arg-type]
            moved = moved + going
        return x, moved


def planned(bundle: Bundle) -> dict[str, tuple[Kind, int]]:
    """The kind of chains and the number of steps of every graph, by its name.

    One for each way that a setting of the bundle walks, and Langevin on the energy network in any case.
    """
    walks = {
        (kind, min(setting.steps, LONGEST))
        for setting in bundle.settings.by_name.values()
        if (kind := _exported(setting.dynamics)) is not None
    }
    if "energy" in bundle.networks and not any(isinstance(kind, Drift) for kind, _ in walks):
        walks.add((Drift("energy"), LONGEST))
    named = {_name(kind, steps): (kind, steps) for kind, steps in walks}
    return dict(sorted(named.items()))


def module(network: nn.Module, kind: Kind, steps: int) -> nn.Module:
    """The steps of a network as a module."""
    if isinstance(kind, Ascent):
        return AdpSteps(network, steps, adaptive=kind.adaptive)
    return LangevinSteps(network, steps)


def inputs(
    kind: Kind, steps: int, shape: tuple[int, int, int], batch: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Inputs of a graph by name, in its order: random states and noise, and parameters as settings have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, *shape, generator=generator)

    def column(value: float) -> Tensor:
        return torch.full((batch,), value)

    if isinstance(kind, Drift):
        noise = torch.randn(steps, batch, *shape, generator=generator)
        return {graphs.INPUT: x, "tau": column(0.005), "noise": noise}
    noise = torch.randn(batch, *shape, generator=generator)
    numbers = {"sigma": 0.1, "fraction": 0.6, "low": 1e-3, "high": 2.0, "stop": 1e-3}
    return {graphs.INPUT: x, "noise": noise} | {name: column(value) for name, value in numbers.items()}


def axis(kind: Kind, name: str) -> int:
    """Which axis of the input `name` counts the chains."""
    return 1 if name == "noise" and isinstance(kind, Drift) else 0


def build(bundle: Bundle) -> dict[str, bytes]:
    """The bundle's graphs of fused steps by name; equal bundles give equal bytes."""
    made = {}
    for name, (kind, steps) in planned(bundle).items():
        examples = {
            key: (value, {axis(kind, key): graphs.BATCH})
            for key, value in inputs(kind, steps, bundle.shape).items()
        }
        outputs = [STATE] if isinstance(kind, Drift) else [STATE, "moved"]
        made[name] = graphs.traced(module(bundle.networks[kind.network], kind, steps), examples, outputs)
    return made


def _name(kind: Kind, steps: int) -> str:
    way = "langevin"
    if isinstance(kind, Ascent):
        way = kind.name if kind.adaptive else f"{kind.name}-fixed"
    return f"{way}-{kind.network}-{steps}"


def _exported(dynamics: Dynamics) -> Kind | None:
    """The kind of a dynamics whose steps have graphs; None for another, and for Langevin at other eta."""
    kind = dynamics.kind
    if isinstance(kind, Ascent):
        return kind
    return kind if isinstance(dynamics, Langevin) and dynamics.eta == 1.0 else None
