"""Ways to make a Langevin step on a GPU, from the published code to CUDA graphs.

Each is made for one batch size as a call that makes `STEPS` steps on states that stay on the device.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metastable import cuda_noise
from metastable.bundle import Bundle
from metastable.dynamics.drift import Drift
from metastable.dynamics.langevin import langevin_step
from metastable.engine.runners import Batch
from metastable.engine.runners.cuda_energy import PIECE
from metastable.engine.runners.cuda_lanes import SEGMENT
from metastable.engine.runners.cuda_networks import CudaPrecision, compiled
from metastable.engine.runners.cuda_runner import CudaRunner
from metastable.engine.runners.stepping import Call

TAU = 0.005
STEPS = SEGMENT
NETWORK = "energy"
EAGER = "eager autograd"
Steps = Callable[[], object]


class Contenders:
    """Makers by name; what they compile is kept for the next batch size.

    Args:
        bundle: its networks on the device.
        sizes: the numbers of chains that will be asked for: graphs are recorded for these, not for larger
            ones.
        backend: of `torch.compile`.
    """

    def __init__(
        self, bundle: Bundle, device: torch.device, sizes: Sequence[int], backend: str = "inductor"
    ) -> None:
        self._bundle, self._device, self._backend = bundle, device, backend
        self._sizes = tuple(sorted(sizes))
        self._runners: dict[tuple[str, bool, int], CudaRunner] = {}
        self._kept: dict[str, Call] = {}
        self.makers: dict[str, Callable[[int], Steps]] = {
            EAGER: self.published,
            "eager explicit": self.explicit,
            "torch.compile": self.compiled,
            "AOTInductor": self.packaged,
            "graphs f32": lambda size: self.graphs(size, "f32"),
            "graphs tf32": lambda size: self.graphs(size, "tf32"),
            "graphs bf16": lambda size: self.graphs(size, "bf16"),
            "graphs f16": lambda size: self.graphs(size, "f16"),
            "graphs tf32 fused": lambda size: self.graphs(size, "tf32", fuse=True),
            "graphs bf16 fused": lambda size: self.graphs(size, "bf16", fuse=True),
            "graphs f16 fused": lambda size: self.graphs(size, "f16", fuse=True),
            "own kernels": lambda size: self.graphs(size, "f16", piece=PIECE),
            "own kernels, 192 at a time": lambda size: self.graphs(size, "f16", piece=192),
            "graphs f16 from and to the host": self.hosted,
        }

    def published(self, size: int) -> Steps:
        """One autograd.grad a step in PyTorch's default layout, as Hill's code has it."""
        network, x = self._bundle.networks[NETWORK], self._states(size).contiguous()

        def work() -> None:
            state = x
            for _ in range(STEPS):
                state = state.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(network(state).sum(), state)
                state = state.detach() - 0.5 * TAU**2 * gradient + TAU * torch.randn_like(state)

        return work

    def explicit(self, size: int) -> Steps:
        """The forward graph of the score, kernel by kernel."""
        score = self._bundle.scores[NETWORK]
        return self._repeat(size, lambda x: _step(x, score(x)))

    def compiled(self, size: int) -> Steps:
        """The same step through torch.compile, one compilation for all sizes but one chain."""
        if "compiled" not in self._kept:
            score = self._bundle.scores[NETWORK]
            self._kept["compiled"] = compiled(lambda x: _step(x, score(x)), self._backend)
        return self._repeat(size, self._kept["compiled"])

    def packaged(self, size: int) -> Steps:
        """An AOTInductor package of the score, which takes contiguous images; noise by the kernel."""
        if "package" not in self._kept:
            self._kept["package"] = self.package()
        score, x = self._kept["package"], self._states(size)
        rows, factors = self._keys(size)

        def work() -> None:
            for t in range(STEPS):
                cuda_noise.update(x, score(x.contiguous()), factors, rows, t)

        return work

    def graphs(self, size: int, precision: CudaPrecision, *, fuse: bool = False, piece: int = 0) -> Steps:
        """The lane of the CUDA runner; a call replays one graph."""
        x, runner = self._states(size), self._runner(precision, fuse, piece)
        with torch.inference_mode():
            lane = runner.lane(Drift(NETWORK), x)
            lane.load(self._batch(x))
        return torch.inference_mode()(lambda: lane.run(STEPS))

    def hosted(self, size: int) -> Steps:
        """The whole call of the runner, copies and keys included."""
        batch, runner = self._batch(self._states(size).cpu()), self._runner("f16")
        return lambda: runner.advance(Drift(NETWORK), batch, STEPS)

    def _repeat(self, size: int, step: Call) -> Steps:
        x = self._states(size)

        @torch.inference_mode()
        def work() -> None:
            state = x
            for _ in range(STEPS):
                state = step(state)

        return work

    def _runner(self, precision: CudaPrecision, fuse: bool = False, piece: int = 0) -> CudaRunner:
        key = precision, fuse, piece
        if key not in self._runners:
            networks = {NETWORK: self._bundle.networks[NETWORK]}
            self._runners[key] = CudaRunner(
                networks,
                self._bundle.classifier,
                device=str(self._device),
                precision=precision,
                tune=True,
                fuse=fuse,
                piece=piece,
                sizes=self._sizes,
            )
        return self._runners[key]

    def package(self) -> Call:
        """The score as AOTInductor's package, loaded: images [B, C, H, W] of any B, contiguous."""
        from torch._inductor import aoti_load_package  # takes seconds

        from export import aot  # needs onnx, which is not on every machine
        from export.graphs import Scored

        made = aot.package(Scored(self._bundle.networks[NETWORK]), self._bundle.shape)
        run: Call = aoti_load_package(io.BytesIO(made))
        return run

    def _states(self, size: int) -> Tensor:
        x = torch.rand(size, *self._bundle.shape, generator=torch.Generator().manual_seed(size))
        return x.to(self._device).contiguous(memory_format=torch.channels_last)

    def _batch(self, x: Tensor) -> Batch:
        return Batch(x, [(1 << 100, c) for c in range(len(x))], [0] * len(x), [(0.5 * TAU**2, TAU)] * len(x))

    def _keys(self, size: int) -> tuple[Tensor, Tensor]:
        rows = cuda_noise.pack([(1 << 100, c) for c in range(size)], [0] * size)
        factors = torch.tensor([[0.5 * TAU**2], [TAU]]).expand(2, size).contiguous()
        return rows.to(self._device), factors.to(self._device)


def _step(x: Tensor, score: Tensor) -> Tensor:
    b, c, h, w = x.shape
    # Drawn in the order in which channels-last images lie in memory.
    noise = torch.randn(b, h, w, c, device=x.device).permute(0, 3, 1, 2)
    return langevin_step(x, score, TAU, noise)
