"""What would make the host wait for a GPU: reading a tensor, or copying it there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,  # item, float, int, bool, tolist
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,  # and indexing by a mask: the size of what comes out is read
    aten.masked_select.default,
}


class Resident(TorchDispatchMode):
    """Inside, whatever reads a tensor back to Python raises AssertionError; on a CPU as on a GPU."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        assert func not in READS, f"{func} reads a tensor back to the host"
        return func(*args, **(kwargs or {}))
