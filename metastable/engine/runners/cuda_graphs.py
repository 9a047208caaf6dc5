"""CUDA graphs of work on fixed buffers, and the sizes of batches that they are recorded for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 2
"""Runs before a recording: kernels are compiled, and cuDNN times its algorithms."""

LARGEST = 8192  # chains in one batch


def bucket(size: int) -> int:
    """The least size of a graph that takes `size` chains.

    All sizes to 16, then eight to every doubling: at most an eighth of a batch is empty, and there are
    88 sizes in all.
    """
    unit = 1 << max(0, (size - 1).bit_length() - 4)
    return -(-size // unit) * unit


class Recording:
    """Work that a CUDA graph repeats; on the CPU, the work itself.

    Args:
        work: reads and writes tensors that stay where they are.  It runs WARM_UP times before it is
            recorded, so fill the buffers afterwards.
        pool: memory that recordings share (`torch.cuda.graph_pool_handle`), or None.  Never replayed at
            the same time, they may use the same for what they compute in between.
    """

    def __init__(self, work: Callable[[], None], device: torch.device, pool: Any) -> None:
        self.replay: Callable[[], None] = work
        if device.type != "cuda":
            for _ in range(WARM_UP):
                work()
            return
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
