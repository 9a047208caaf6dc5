"""One update of Algorithm 2 (Hill 2021) with everything on the device, so that it can be one CUDA graph.

`energy.train_energy_ml` draws, copies and steps from the host, which on a GPU costs a quarter of an update
and more.  Here images, bank, random numbers and a ring of the last figures lie on the device, the chains run
on a prepared score, and nothing is read back while an update runs.  The same code runs on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metastable.engine.runners.cuda_energy import FusedScore, fits
from metastable.networks.energy import EnergyNetwork
from metastable.networks.energy_prepared import PreparedScore
from metastable.training.energy import EnergyMlConfig

FIGURES = ("d", "strength", "spread")
"""What the ring holds of an update: mean U(data) - mean U(samples), the mean |grad U| of the chains' last
step, and the standard deviation of U over the data."""


@dataclass(frozen=True)
class DeviceConfig(EnergyMlConfig):
    """Settings of the trainer on the device; as EnergyMlConfig, with other defaults and these.

    A defense needs basins that hold an image for some thousand steps, not samples from noise: so chains start
    from data, and a share of them starts again at every visit.

    `anchor` adds score matching at the data noise to every update, in nats an image.  The density of noisy
    data is the best in that as in likelihood, so it changes no aim: it holds the gradient near data while
    chains correct what is far from them.

    Attributes:
        rejuvenation: chance that a chain starts again from data when its turn comes.
        anchor: weight of score matching beside the likelihood.
        held: the last training images, which are not trained on: chains of the checks start from the first of
            them.
        warm: updates of score matching before the first.
        warm_lr: Adam's greatest rate in these, for the folded network f.
        warm_low: least noise of these, in [0, 1] image units.
        warm_high: greatest noise of these.
        half: on a GPU, chains run on a float16 score.
        kernels: and that of our own Triton kernels (`cuda_energy`), where they are written for the network.
        check_s: seconds between checks.
        check_images: held-out images that the chains of a check start from.
        check_steps: Langevin steps of these chains.
        bundle: folder of the bundle whose classifier says whether chains have kept their class.
        accuracy: at which a run may stop.

    When a run goes on, its length, `switch` and both rates may change, and what says how it is computed and
    watched: `half`, `kernels`, `report_every`, the checks and `accuracy`.
    """

    updates: int = 40_000
    switch: int = 10_000
    batch: int = 400
    steps: int = 50
    tau: float = 0.015
    data_noise: float = 0.03
    sgd_lr: float = 2e-3
    bank: int = 4_000
    bank_init: str = "data"
    rejuvenation: float = 0.02
    anchor: float = 0.0
    held: int = 1_000
    warm: int = 4_000
    warm_lr: float = 1e-3
    warm_low: float = 0.02
    warm_high: float = 0.06
    half: bool = True
    kernels: bool = False
    check_s: float = 60.0
    check_images: int = 256
    check_steps: int = 1_500
    bundle: str = "model_store/cifar10"
    accuracy: float = 0.8

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no run can have."""
        super().__post_init__()
        if self.bank % self.batch or self.bank == 0:
            raise ValueError(f"a bank of {self.bank} chains is no multiple of a batch of {self.batch}")
        if not 1 <= self.check_images <= self.held:
            raise ValueError("check_images must be at least 1 and not above held")
        if not 0 <= self.rejuvenation <= 1 or not 0 < self.warm_low <= self.warm_high:
            raise ValueError("rejuvenation must lie in [0, 1], and warm_low above 0 and not above warm_high")


class Trainer:
    """The state of a run on one device, and the work of its updates.

    Args:
        network: on the device; trained in place.
        images: uint8 [N, C, H, W], the training set.
        bank: float16 [bank, C, H, W]; moved to the device.
        rate: multiplies the learning rates.

    Raises ValueError where our own kernels are asked for and not written for the network.
    """

    def __init__(
        self,
        network: EnergyNetwork,
        images: Tensor,
        bank: Tensor,
        config: DeviceConfig,
        device: torch.device,
        rate: float = 1.0,
    ) -> None:
        self.network, self.config, self.rate = network, config, rate
        self._device = device
        self._images = images.to(device)
        self.bank = bank.to(device)
        self._rows = torch.arange(config.batch, device=device)
        self.figures = torch.zeros(config.report_every, len(FIGURES), device=device)
        self._tick = torch.zeros(1, dtype=torch.int64, device=device)
        self.score: PreparedScore | FusedScore
        if config.kernels and not (fits(network) and images.shape[-1] % 8 == 0):
            raise ValueError("our own kernels are not written for this network: leave out --kernels")
        if config.kernels:
            self.score = FusedScore(network, device, config.batch)
        else:
            half = config.half and device.type == "cuda"
            self.score = PreparedScore(network, torch.float16 if half else torch.float32)
        assert network.last.bias is not None
        network.last.bias.requires_grad_(False)  # it shifts U by a constant

    def optimizer(self, *, adam: bool, warm: float = 0.0) -> torch.optim.Optimizer:
        """One that a graph can hold, with the rates of `EnergyMlConfig.learning_rates`.

        With `warm`, that of score matching, at so great a share of its rate.
        """
        config = self.config if not warm else replace(self.config, adam_lr=warm * self.config.warm_lr)
        rates = config.learning_rates["adam" if adam else "sgd"]
        groups = [
            {"params": list(self.network.hidden.parameters()), "lr": self.rate * rates["hidden"]},
            {"params": [self.network.last.weight], "lr": self.rate * rates["last"]},
        ]
        if not adam:
            return torch.optim.SGD(groups)
        # The plain one reads its count of steps back at every step.
        return torch.optim.Adam(groups, fused=True, capturable=self._device.type == "cuda")

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """One update, without a look at anything from the host."""
        config = self.config
        with torch.no_grad():
            self.score.refresh(self.network)
            positive, fresh = self._data(config.data_noise), self._data(config.data_noise)
            again = torch.rand(config.batch, 1, 1, 1, device=self._device) < config.rejuvenation
            start = torch.where(again, fresh, self.bank[self._rows].float())
            negative, strength = self.walk(start, config.steps)
            self.bank.index_copy_(0, self._rows, negative.half())
        energies = self.network(torch.cat([positive, negative]))
        on_data, on_chains = energies.chunk(2)
        difference = on_data.mean() - on_chains.mean()
        optimizer.zero_grad(set_to_none=True)
        difference.backward()
        if config.anchor:
            loss = self._matching(config.data_noise)
            (0.5 * positive[0].numel() * config.anchor * loss).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            row = torch.stack([difference.detach(), strength, on_data.detach().std()])
            self.figures.index_copy_(0, self._tick % len(self.figures), row[None])
            self._tick += 1
            # A bank is visited from end to end: no chain twice in a batch.
            self._rows.add_(config.batch).remainder_(len(self.bank))

    def warm(self, optimizer: torch.optim.Optimizer) -> None:
        """One update of score matching."""
        config = self.config
        with torch.no_grad():
            spread = torch.rand(config.batch, 1, 1, 1, device=self._device)
            sigma = config.warm_low * (config.warm_high / config.warm_low) ** spread
        optimizer.zero_grad(set_to_none=True)
        self._matching(sigma).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def _matching(self, sigma: Tensor | float) -> Tensor:
        """The loss of denoising score matching (Vincent 2011) on data, as `score.dsm_loss` has it."""
        with torch.no_grad():
            clean = self._data(0.0)
            noise = noise_like(clean)
        return (self.network.score(clean + sigma * noise) * sigma + noise).square().mean()

    @torch.no_grad()
    def walk(self, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Langevin steps (eq. 3) from x [B, C, H, W] on the prepared score; the last one's mean |grad U|."""
        tau = self.config.tau
        fused = isinstance(self.score, FusedScore)
        scale = 1.0 if isinstance(self.score, FusedScore) else self.score.scale
        raw = torch.zeros_like(x)
        for _ in range(steps):
            raw = self.score(x if fused else x - 0.5).float()
            x = torch.add(x, raw, alpha=0.5 * tau**2 / scale).add_(noise_like(x), alpha=tau)
        norm = torch.linalg.vector_norm(raw.flatten(1), dim=1).mean()
        return x, norm / scale

    def recent(self) -> dict[str, list[float]]:
        """The figures of the last `report_every` updates, or of as many as there were, the oldest first."""
        done, ring = int(self._tick), self.figures.cpu()
        size = len(ring)
        rows = [ring[i % size] for i in range(max(0, done - size), done)]
        return {name: [float(row[i]) for row in rows] for i, name in enumerate(FIGURES)}

    def _data(self, noise: float) -> Tensor:
        """A batch of training images, with noise: float32 [batch, C, H, W], channels last."""
        pick = torch.randint(0, len(self._images), (self.config.batch,), device=self._device)
        x = self._images[pick].float().div_(255).contiguous(memory_format=torch.channels_last)
        return x.add_(noise_like(x), alpha=noise)


def noise_like(x: Tensor) -> Tensor:
    """Normals for x [B, C, H, W], drawn in the order in which a channels-last x lies in memory.

    A CPU draws what is not contiguous one number at a time, which took a fifth of a step.
    """
    b, c, h, w = x.shape
    return torch.randn(b, h, w, c, device=x.device).permute(0, 3, 1, 2)
