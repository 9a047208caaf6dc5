"""The runner on CUDA graphs: a step of a hundred chains is short work and dear to launch.

For every kind and size of batches there is a lane (`cuda_lanes`): buffers that stay where they are, and
graphs of one step and of a segment of steps on them.  States, keys, steps and parameters are what the
buffers hold, so a graph is recorded once and serves every request that comes.  Noise is drawn inside the
graph (`cuda_noise`).  Its normals are not NumPy's: with one seed a chain takes another path than on
the CPU's runners, of the same distribution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from metastable.dynamics.base import Kind
from metastable.engine.precision import AHEAD
from metastable.engine.runners import Abilities, Batch
from metastable.engine.runners.cuda_graphs import LARGEST, SIZES, Recording, fitting
from metastable.engine.runners.cuda_lanes import Lane, Pass
from metastable.engine.runners.cuda_networks import (
    STILL,
    CudaPrecision,
    Network,
    as_it_is,
    compiled,
    forward,
    scoring,
)
from metastable.engine.runners.exported import CLASSIFIER
from metastable.engine.runners.stepping import Stepper

SLOTS = 4 * SIZES[-1]  # chains that an engine should hold at a time


class CudaRunner:
    """See `metastable.engine.runners.Runner`.

    Args:
        networks: the purifying networks by name; each has a method `score`.
        classifier: images to logits.  One that says that it is not `capturable` runs as it is, on the CPU.
        device: a CUDA device; on `cpu` the same work runs without graphs and kernels, as the reference.
        precision: of convolutions; `f16` is that of energies, beside which other networks have bfloat16.
            States, noise and the arithmetic of a step are float32.
        tune: let cuDNN time its algorithms for every size: faster steps, and a second or so more for
            every recording.
        fuse: let `torch.compile` join what lies between convolutions.  Needs a C compiler and some
            seconds a network at the first use.
        piece: of `f16`: chains that our own kernels of an energy's score work on together (`cuda_energy`);
            0 takes the library's kernels.
        sizes: of batches that graphs are recorded for, rising; a batch takes the least that holds it.

    The modules given are not changed.  Raises ValueError for a precision that is not there, RuntimeError
    where a network or the kernels fail.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        classifier: nn.Module,
        *,
        device: str = "cuda",
        precision: CudaPrecision = "tf32",
        tune: bool = False,
        fuse: bool = False,
        piece: int = 0,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        if precision not in get_args(CudaPrecision):
            raise ValueError(f"precision must be one of {get_args(CudaPrecision)}, not {precision!r}")
        if piece and precision != "f16":
            raise ValueError(f"our own kernels compute in f16, not in {precision}")
        self.name = f"cuda-{precision}"
        self.device, self._precision = torch.device(device), precision
        self.abilities = Abilities(precision == "f32", self.device, SIZES)
        self._tune, self._sizes = tune, tuple(sizes)
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        wrap = compiled if fuse else as_it_is
        self._networks = {"": STILL}
        for name, network in networks.items():
            self._networks[name] = scoring(network, self.device, precision, wrap, piece)
        self._uncaptured: nn.Module | None = None
        if getattr(classifier, "capturable", True):
            self._networks[CLASSIFIER] = forward(classifier, self.device, precision, wrap)
        else:
            self._uncaptured = copy.deepcopy(classifier).eval()
        self._plain = Stepper(torch.zeros_like)  # of kinds that no graph can hold, and that have no score
        self._lanes: dict[tuple[Kind, int], Lane] = {}
        self._passes: dict[tuple[str, int], Pass] = {}

    @torch.inference_mode()
    def advance(self, kind: Kind, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        if kind.differentiates:
            raise RuntimeError(
                f"runner {self.name} has no derivative of a score, which {kind.name} needs: "
                "choose the runner torch"
            )
        if not kind.captures:
            x, moved = self._plain.advance(kind, batch, steps, batch.x.to(self.device))
            return x.to(batch.x.device), moved
        done = []
        for start in range(0, len(batch.x), LARGEST):
            part = batch.part(start, LARGEST)
            lane = self.lane(kind, part.x)
            lane.load(part)
            lane.run(steps)
            done.append(lane.read(len(part.x), batch.x.device))
        if len(done) == 1:
            return done[0]
        return torch.cat([x for x, _ in done]), torch.cat([moved for _, moved in done])

    @torch.inference_mode()
    def score(self, network: str, x: Tensor) -> Tensor:
        return self._forward(network, x, x.device)

    @torch.inference_mode()
    def classify(self, x: Tensor) -> Tensor:
        if self._uncaptured is not None:
            logits: Tensor = self._uncaptured(x.cpu())
            return logits
        return self._forward(CLASSIFIER, x, torch.device("cpu"))

    @property
    def recordings(self) -> int:
        """Graphs recorded so far."""
        return len(self._passes) + sum(lane.recordings for lane in self._lanes.values())

    def lane(self, kind: Kind, x: Tensor) -> Lane:
        """The lane of batches like x [B, C, H, W], made at the first use."""
        key = kind, fitting(len(x), self._sizes)
        if key not in self._lanes:
            network, blank = self._known(kind.network), self._blank(key[1], x)
            self._lanes[key] = Lane(kind, network, self._ahead, blank, self._record)
        return self._lanes[key]

    def _forward(self, name: str, x: Tensor, device: torch.device) -> Tensor:
        network, done = self._known(name), []
        for part in torch.split(x, LARGEST):
            key = name, fitting(len(part), self._sizes)
            if key not in self._passes:
                self._passes[key] = Pass(network, self._blank(key[1], part), self._record)
            done.append(self._passes[key](part, device))
        return done[0] if len(done) == 1 else torch.cat(done)

    def _known(self, name: str) -> Network:
        if name not in self._networks:
            raise RuntimeError(f"runner {self.name} has no network {name!r}, only {sorted(self._networks)}")
        return self._networks[name]

    def _blank(self, size: int, like: Tensor) -> Tensor:
        return torch.zeros(size, *like.shape[1:], device=self.device).contiguous(
            memory_format=torch.channels_last
        )

    @property
    def _ahead(self) -> float | None:
        """As `precision.ahead_of`: tf32 has 10 bits behind the point, too few for ADP's own distance."""
        return None if self._precision == "f32" else AHEAD

    def _record(self, work: Callable[[], None]) -> Recording:
        # A graph keeps the algorithms that cuDNN chose when it was recorded.
        tf32 = self._precision != "f32"
        with torch.backends.cudnn.flags(enabled=True, benchmark=self._tune, allow_tf32=tf32):
            return Recording(work, self.device, self._pool)
