"""One update of `harden`: attack, loss, gradient, optimizer and averaged weights, all of it on the device.

Everything that changes from update to update lies in tensors that stay where they are: images, labels,
random numbers, learning rates, the radius, the weight of the average.  So the same method (`Update.work`)
runs eagerly, and recorded as one CUDA graph that is replayed without any work of the host.  Random numbers
are drawn into their place before, by a generator whose seed is the number of the update.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from metastable.training.harden_config import HardenConfig
from metastable.training.harden_data import Batches
from metastable.training.harden_loss import attack, loss, passes
from metastable.training.harden_pipeline import Pipeline
from metastable.training.run import Ema

RING = ("loss", "attacked", "gradient")
"""What an update leaves in the ring: loss, share of right answers in it, norm of the gradient."""


class DeviceEma(Ema):
    """Ema whose decay is a tensor and whose update is a handful of kernels; it averages buffers too."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, decay)
        live = network.state_dict()
        floating = [name for name, value in live.items() if value.is_floating_point()]
        self._fast, self._slow = [live[n] for n in floating], [self.shadow[n] for n in floating]
        self._whole = [(self.shadow[n], live[n]) for n in live if n not in set(floating)]

    def weight(self, step: int) -> float:
        """The share of the newest weights after update `step`, larger in the beginning."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """Move by `weight` (no dimensions) towards the network's weights."""
        away = torch._foreach_sub(self._fast, self._slow)
        torch._foreach_mul_(away, weight)
        torch._foreach_add_(self._slow, away)
        for slow, fast in self._whole:
            slow.copy_(fast)


def optimizer_of(pipeline: Pipeline, config: HardenConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum; no decay of norms and biases; rates are tensors on the device.

    Each group names its part and its `factor` of the learning rate.
    """
    groups = []
    for name, part in pipeline.parts().items():
        for decays in (True, False):
            chosen = [p for p in part.parameters() if p.requires_grad and (p.ndim > 1) == decays]
            if chosen:
                factor = config.purifier_lr if name == "purifier" else 1.0
                groups.append(
                    {
                        "params": chosen,
                        "lr": torch.zeros((), device=device),
                        "weight_decay": config.decay if decays else 0.0,
                        "factor": factor,
                    }
                )
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), fused=True, capturable=device.type == "cuda")


def relink(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """After a state dict was loaded: rates on this device again, and what it can record."""
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros((), device=device)
        if "capturable" in group:
            group["capturable"] = device.type == "cuda"


def tensors_of(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    """Moments and counts of an optimizer, in a fixed order."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            for _, value in sorted(optimizer.state[p].items()):
                if isinstance(value, Tensor):
                    yield value


class Update:
    """Updates of one pipeline; see the module.

    Args:
        shape: of an image, (C, H, W).
        steps: of the attack.

    Attributes:
        ring: float32 [log_every, 3], the last updates' RING values; cursor: int64 [1], where the next goes.
        graphed: whether updates are replays of a CUDA graph.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        optimizer: torch.optim.Optimizer,
        average: DeviceEma,
        config: HardenConfig,
        shape: tuple[int, int, int],
        steps: int,
        device: torch.device,
    ) -> None:
        self.pipeline, self.optimizer, self.average = pipeline, optimizer, average
        self.config, self.steps, self.device = config, steps, device
        self.shape = shape
        c, h, w = shape
        b = config.batch
        self.x = torch.zeros(b, c, h, w, device=device).to(memory_format=torch.channels_last)
        self.y = torch.zeros(b, dtype=torch.int64, device=device)
        self._unit = torch.zeros(b, h, w, c, device=device)
        self._noise = torch.zeros(sum(passes(config, steps)), config.noises, b, h, w, c, device=device)
        # Laid out channels last, as images are.
        self.unit = self._unit.permute(0, 3, 1, 2)
        self.noise = self._noise.permute(0, 1, 2, 5, 3, 4)
        self.eps, self.share = (torch.zeros((), device=device) for _ in range(2))
        self.ring = torch.zeros(config.log_every, len(RING), device=device)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self.gradients = [torch.zeros_like(p) for p in pipeline.learners]
        for p, gradient in zip(pipeline.learners, self.gradients, strict=True):
            p.grad = gradient
        self.attacked = self.x
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def graphed(self) -> bool:
        return self._graph is not None

    def load(self, batches: Batches, step: int, *, rate: float, eps: float) -> None:
        """Put the batch and numbers of update `step` in place.

        Args:
            rate: learning rate, before each group's factor.
            eps: radius of the attack.
        """
        x, y = batches.draw(step)
        self.x.copy_(x)
        self.y.copy_(y)
        self._unit.uniform_(-1, 1, generator=batches.rng)
        self._noise.normal_(generator=batches.rng)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate * group["factor"])
        self.eps.fill_(eps)
        self.share.fill_(self.average.weight(step + 1))

    def work(self) -> None:
        """The update of what lies in place."""
        config, pipeline = self.config, self.pipeline
        of_attack, reference, _ = passes(config, self.steps)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16, cache_enabled=False):
            y, moved = self.y, self.x
            if config.mode == "stability":
                pipeline.attacked()
                y = pipeline.clean_logits(self.x).argmax(1)
            if of_attack:
                moved = attack(pipeline, self.x, y, self.unit, self.noise, self.eps, config, self.steps)
            pipeline.learning()
            value, right = loss(pipeline, self.x, moved, y, self.noise[of_attack + reference :], config)
        gradients = torch.autograd.grad(value, pipeline.learners)
        # Copied, so that a gradient has its weight's layout whatever kernel made it.
        torch._foreach_copy_(self.gradients, list(gradients))
        norm = nn.utils.clip_grad_norm_(pipeline.learners, config.clip, foreach=True)
        self.optimizer.step()
        self.average.follow(self.share)
        self.attacked = moved
        row = torch.stack([value.detach(), right, norm]).view(1, -1)
        self.ring.index_copy_(0, self.cursor, row)
        self.cursor.copy_((self.cursor + 1) % len(self.ring))

    def __call__(self) -> None:
        if self._graph is None:
            self.work()
        else:
            self._graph.replay()

    def prepare(self, batches: Batches) -> None:
        """Compile, and on CUDA record, what was asked for; weights and all other state stay as before.

        What fails is said on stderr and left out: the updates are the same without it, only slower.
        """
        with Kept(self):
            if self.config.compile:
                self._try("torch.compile", self._compiled, batches)
            if self.config.graph and self.device.type == "cuda":
                self._try("the CUDA graph", self._recorded, batches)

    def _try(self, what: str, make: Callable[[Batches], None], batches: Batches) -> None:
        try:
            make(batches)
        except Exception as error:
            said = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
            print(f"{what} failed, and updates go on without it: {said}", file=sys.stderr)
            self._graph = None
            if what == "torch.compile":
                self.pipeline.compiled(False)

    def _compiled(self, batches: Batches) -> None:
        self.pipeline.compiled(True)
        self._warm(batches, 2)

    def _recorded(self, batches: Batches) -> None:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._warm(batches, 3)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.work()
        self._graph = graph

    def _warm(self, batches: Batches, count: int) -> None:
        for step in range(count):
            self.load(batches, step, rate=0.0, eps=self.config.eps)
            self.work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Set the optimizer's moments and counts to zero, in place."""
        for value in tensors_of(self.optimizer):
            value.zero_()

    def seconds(self, batches: Batches, count: int) -> float:
        """Measured seconds of an update, by the clock; weights and all other state stay as they are."""
        with Kept(self):
            self._timed(batches, 1)
            return self._timed(batches, count) / count

    def _timed(self, batches: Batches, count: int) -> float:
        began = time.perf_counter()
        for step in range(count):
            self.load(batches, step, rate=0.0, eps=self.config.eps)
            self()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


class Kept:
    """Inside, updates may be made; afterwards weights, averages, optimizer and ring are what they were."""

    def __init__(self, update: Update) -> None:
        self._update = update

    def _tensors(self) -> list[Tensor]:
        u = self._update
        return [*u.pipeline.state_dict().values(), *u.average.shadow.values(), u.ring, u.cursor]

    def __enter__(self) -> None:
        self._before = [value.clone() for value in self._tensors()]
        self._moments = [value.clone() for value in tensors_of(self._update.optimizer)]

    def __exit__(self, *error: object) -> None:
        with torch.no_grad():
            for value, before in zip(self._tensors(), self._before, strict=True):
                value.copy_(before)
            if not self._moments:  # there was no state yet: zero is what it starts from
                self._update.forget()
                return
            for value, before in zip(tensors_of(self._update.optimizer), self._moments, strict=True):
                value.copy_(before)
