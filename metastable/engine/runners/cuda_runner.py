"""The runner on CUDA graphs: a step of a hundred chains is short work and dear to launch.

For every kind and bucket of batch sizes there is a lane: buffers that stay where they are, and graphs of
one step and of a segment of steps on them.  States, keys, steps and parameters are what the buffers
hold, so a graph is recorded once and serves every request that comes.  Noise is drawn inside the
graph (`cuda_noise`).  Its normals are not NumPy's: with one seed a chain takes another path than on
the CPU's runners, of the same distribution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from metastable import cuda_noise
from metastable.dynamics import ScoreFunction
from metastable.engine.graphs import AHEAD, AdpUpdate
from metastable.engine.runners import Batch, Kind
from metastable.engine.runners.cuda_graphs import LARGEST, Recording, bucket
from metastable.engine.runners.exported import CLASSIFIER
from metastable.engine.runners.stepping import Call, Score

CudaPrecision = Literal["f32", "tf32", "bf16"]
SEGMENT = 16  # steps of the longer graph
SIZES = (1, 8, 32, 128, 512, 2048)  # of batches whose cost an engine should know
SLOTS = 4 * SIZES[-1]  # chains that an engine should hold at a time


class CudaRunner:
    """See `metastable.engine.runners.Runner`.

    Args:
        networks: the purifying networks by name; each has a method `score`.
        classifier: images to logits.
        device: a CUDA device; on `cpu` the same work runs without graphs and kernels, as the reference.
        precision: of convolutions.  States, noise and the arithmetic of a step are float32.
        tune: let cuDNN time its algorithms for every bucket: faster steps, and a second or so more for
            every recording.
        fuse: let `torch.compile` join what lies between convolutions.  Needs a C compiler and some
            seconds a network at the first use.

    The modules given are not changed.  Raises ValueError for another precision, RuntimeError where a
    network or the kernels fail.
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
    ) -> None:
        if precision not in get_args(CudaPrecision):
            raise ValueError(f"precision must be one of {get_args(CudaPrecision)}, not {precision!r}")
        self.name = f"cuda-{precision}"
        self.device, self._precision = torch.device(device), precision
        self._tune, self._fuse = tune, fuse
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        calls = {name: self._call(network, "score") for name, network in networks.items()}
        # Chains of noise have no network: nothing moves them.
        self._calls = calls | {"": torch.zeros_like, CLASSIFIER: self._call(classifier, "forward")}
        self._lanes: dict[tuple[Kind, int], Lane] = {}
        self._passes: dict[tuple[str, int], Pass] = {}

    @torch.inference_mode()
    def advance(self, kind: Kind, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        if kind.differentiates:
            raise RuntimeError(
                f"runner {self.name} has no derivative of a score, which {kind.dynamics} needs: "
                "choose the runner torch"
            )
        done = []
        for start in range(0, len(batch.x), LARGEST):
            here = slice(start, start + LARGEST)
            part = Batch(batch.x[here], batch.keys[here], batch.steps[here], batch.parameters[here])
            lane = self.lane(kind, part.x)
            lane.record(steps)
            lane.load(part)
            lane.run(steps)
            done.append(lane.read(len(part.x)))
        return torch.cat([x for x, _ in done]), torch.cat([moved for _, moved in done])

    @torch.inference_mode()
    def score(self, network: str, x: Tensor) -> Tensor:
        return self._forward(network, x)

    @torch.inference_mode()
    def classify(self, x: Tensor) -> Tensor:
        return self._forward(CLASSIFIER, x)

    @property
    def recordings(self) -> int:
        """Graphs recorded so far."""
        return len(self._passes) + sum(lane.recordings for lane in self._lanes.values())

    def lane(self, kind: Kind, x: Tensor) -> Lane:
        """The lane of batches like x [B, C, H, W], made at the first use."""
        key = kind, bucket(len(x))
        if key not in self._lanes:
            blank = self._blank(key[1], x)
            self._lanes[key] = Lane(kind, self._known(kind.network), self._ahead, blank, self._record)
        return self._lanes[key]

    def _forward(self, name: str, x: Tensor) -> Tensor:
        call, done = self._known(name), []
        for part in torch.split(x, LARGEST):
            key = name, bucket(len(part))
            if key not in self._passes:
                self._passes[key] = Pass(call, self._blank(key[1], part), self._record)
            done.append(self._passes[key](part))
        return torch.cat(done)

    def _known(self, name: str) -> Call:
        if name not in self._calls:
            raise RuntimeError(f"runner {self.name} has no network {name!r}, only {sorted(self._calls)}")
        return self._calls[name]

    def _blank(self, size: int, like: Tensor) -> Tensor:
        return torch.zeros(size, *like.shape[1:], device=self.device).contiguous(
            memory_format=torch.channels_last
        )

    @property
    def _ahead(self) -> float | None:
        """As `graphs.ahead_of`: tf32 has 10 bits behind the point, too few for ADP's own distance."""
        return None if self._precision == "f32" else AHEAD

    def _call(self, module: nn.Module, method: str) -> Call:
        """A copy's `method`, float32 in and out, in the runner's precision."""
        dtype = torch.bfloat16 if self._precision == "bf16" else torch.float32
        own = copy.deepcopy(module).eval().requires_grad_(False).to(self.device, dtype)
        own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        run: Call = getattr(own, method)

        def call(x: Tensor) -> Tensor:
            return run(x.to(dtype)).float()

        # One compilation for all buckets.
        return torch.compile(call, dynamic=True) if self._fuse else call

    def _record(self, work: Callable[[], None]) -> Recording:
        # A graph keeps the algorithms that cuDNN chose when it was recorded.
        tf32 = self._precision != "f32"
        with torch.backends.cudnn.flags(enabled=True, benchmark=self._tune, allow_tf32=tf32):
            return Recording(work, self.device, self._pool)


class Lane:
    """Batches of one kind and bucket: buffers, and the graphs that advance them.

    Args:
        score: of the network, in the runner's precision.
        ahead: of `graphs.AdpUpdate`.
        x: the buffer of states, [bucket, C, H, W], channels last.
        record: makes a Recording.
    """

    def __init__(
        self,
        kind: Kind,
        score: ScoreFunction,
        ahead: float | None,
        x: Tensor,
        record: Callable[[Callable[[], None]], Recording],
    ) -> None:
        self._kind, self._x, self._score, self._record = kind, x, score, record
        self._rows = torch.zeros(cuda_noise.FIELDS, len(x), dtype=torch.int64, device=x.device)
        width = 4 if kind.dynamics == "adp" else 2
        self._columns = torch.zeros(width, len(x), device=x.device)
        self._moved = torch.zeros(len(x), device=x.device)
        self._adp = AdpUpdate(Score(score), adaptive=kind.adaptive, ahead=ahead)
        self._graphs: dict[int, Recording] = {}

    @property
    def recordings(self) -> int:
        return len(self._graphs)

    def record(self, steps: int) -> None:
        """Record the graphs that `steps` steps need; what the buffers hold is lost."""
        for length, count in _lengths(steps):
            if count and length not in self._graphs:
                self._graphs[length] = self._record(partial(self._advance, length))

    def load(self, batch: Batch) -> None:
        """Put chains into the first rows; the rows behind them hold what was there before."""
        size, device = len(batch.x), self._x.device
        self._x[:size] = batch.x.to(device)
        self._rows[:, :size] = cuda_noise.pack(batch.keys, batch.steps).to(device)
        columns = [_column(self._kind, row) for row in batch.parameters]
        self._columns[:, :size] = torch.tensor(columns, dtype=torch.float32).T.to(device)
        self._moved.zero_()

    def run(self, steps: int) -> None:
        """Advance all rows by steps that were recorded; asynchronous on a GPU."""
        for length, count in _lengths(steps):
            for _ in range(count):
                self._graphs[length].replay()

    def read(self, size: int) -> tuple[Tensor, Tensor]:
        """States [size, C, H, W] and steps moved, int64 [size], on the CPU; the keys are forgotten."""
        x, moved = self._x[:size].cpu().contiguous(), self._moved[:size].long().cpu()
        self._rows.zero_()
        return x, moved

    def _advance(self, steps: int) -> None:
        """What a graph repeats."""
        for t in range(steps):
            if self._kind.dynamics == "adp":
                x, going = self._adp(self._x, *self._columns)
                self._x.copy_(x)
                self._moved += going
                continue
            cuda_noise.update(self._x, self._score(self._x), self._columns, self._rows, t)
            if self._kind.dynamics == "noise":
                self._x.clamp_(0, 1)
        if self._kind.dynamics != "adp":
            self._moved += steps
        self._rows[3] += steps


def _column(kind: Kind, parameters: tuple[float, ...]) -> tuple[float, ...]:
    """What a lane keeps of a chain: ADP's parameters, or the factors of `cuda_noise.update`."""
    match kind.dynamics:
        case "langevin":
            return 0.5 * parameters[0] ** 2, parameters[0]
        case "noise":
            return 0.0, parameters[0]
        case _:
            return parameters


def _lengths(steps: int) -> list[tuple[int, int]]:
    """The lengths of graphs, and how often each is replayed for `steps` steps."""
    return [(SEGMENT, steps // SEGMENT), (1, steps % SEGMENT)]


class Pass:
    """A forward pass of one network for one bucket.

    Args:
        x: the buffer of its input.
    """

    def __init__(self, call: Call, x: Tensor, record: Callable[[Callable[[], None]], Recording]) -> None:
        self._x, self._out = x, torch.empty_like(call(x))
        self._recording = record(lambda: self._fill(call))

    def __call__(self, x: Tensor) -> Tensor:
        self._x[: len(x)] = x.to(self._x.device)
        self._recording.replay()
        return self._out[: len(x)].cpu().contiguous()

    def _fill(self, call: Call) -> None:
        self._out.copy_(call(self._x))
