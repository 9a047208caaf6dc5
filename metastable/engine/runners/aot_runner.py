"""The runner on AOTInductor packages: compiled where a C++ compiler is, run where none is."""

from __future__ import annotations

import io
from collections.abc import Mapping

from torch import Tensor
from torch._inductor import aoti_load_package

from metastable.engine.runners.exported import ExportedRunner
from metastable.engine.runners.stepping import Call


class AotRunner(ExportedRunner[bytes]):
    """See `metastable.engine.runners.Runner`.

    Args:
        packages: by name, of `export.aot`; built by this version of PyTorch for this kind of processor.

    Packages hold machine code: load your own only.
    """

    def __init__(self, packages: Mapping[str, bytes]) -> None:
        super().__init__("aot", packages, _load, fixed=False)


def _load(package: bytes, size: int) -> Call:
    """The package's forward pass; packages take any batch size, so `size` says nothing."""
    run = aoti_load_package(io.BytesIO(package))

    def call(x: Tensor) -> Tensor:
        # A package does not check the memory format of its input, and returns garbage in another.
        out: Tensor = run(x.contiguous())
        return out.contiguous()

    return call
