"""A bundle as AOTInductor packages: machine code for this kind of machine.

Needs a C++ compiler; loading (`engine.runners.aot_runner`) needs none.  The graphs and their names are
those of `export.graphs`; a classifier that came as a graph has none.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn
from torch._inductor import aoti_compile_and_package

from export.graphs import BATCH, modules
from metastable.bundle import Bundle


def build(bundle: Bundle) -> dict[str, bytes]:
    """The bundle's packages by name; about half a minute each."""
    return {name: package(module, bundle.shape) for name, module in modules(bundle).items()}


def package(module: nn.Module, shape: tuple[int, int, int]) -> bytes:
    """One module of images [batch, *shape], contiguous, of any batch size, for the device that it is on.

    The package does not look at the memory format that it is given: it must be the one used here.
    """
    device = next(module.parameters()).device
    example = torch.rand(2, *shape, device=device)
    with torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # torch's own use of its parts
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: BATCH},))
        configs = {
            "freezing": True,  # weights are laid out for the processor once, here
            "cpp.dynamic_threads": True,  # as many as the process that runs it has, not this one
        }
        made = aoti_compile_and_package(
            program, package_path=str(Path(folder) / "model.pt2"), inductor_configs=configs
        )
        return Path(made).read_bytes()
