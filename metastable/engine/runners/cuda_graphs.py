"""CUDA graphs of work on fixed buffers, and the sizes of batches that they are recorded for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

WARM_UP = 2
"""Runs before a recording: kernels are compiled, and cuDNN times its algorithms."""

LARGEST = 8192  # chains in one batch
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Batches that graphs are recorded for.

Few, because an engine that starts records all of them, and none while it serves; from 16 on at most a third
of a batch is empty.
"""


def fitting(size: int, sizes: Sequence[int]) -> int:
    """The least of `sizes`, which rise, that holds `size` chains; else a multiple of the last's quarter."""
    unit = max(1, sizes[-1] // 4)
    return next((known for known in sizes if known >= size), -(-size // unit) * unit)


class Recording:
    """Work that a CUDA graph repeats; on the CPU, the work itself.

    Args:
        work: reads and writes tensors that stay where they are.  It runs WARM_UP times before it is
            recorded, so fill the buffers afterwards; on the CPU it does not.
        pool: memory that recordings share (`torch.cuda.graph_pool_handle`), or None.  Never replayed at
            the same time, they may use the same for what they compute in between.
    """

    def __init__(self, work: Callable[[], None], device: torch.device, pool: Any) -> None:
        self.replay: Callable[[], None] = work
        self.made = 0  # times that the work has run already
        if device.type != "cuda":
            return
        self.made = WARM_UP
        with torch.cuda.device(device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    work()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                work()
        self.replay = graph.replay
