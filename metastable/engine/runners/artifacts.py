"""What runners are made of when it is not PyTorch's modules: exported files, by kind and name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

GRAPHS, EIGHT, PACKAGES = "onnx", "onnx-int8", "aot"
SUFFIXES = {GRAPHS: ".onnx", EIGHT: ".onnx", PACKAGES: ".pt2"}
"""The kinds of artifacts that runners read, and how the names of their files end.

- `onnx`: ONNX graphs in float32;
- `onnx-int8`: ONNX graphs with quantised convolutions;
- `aot`: AOTInductor packages.
"""

Artifacts = Mapping[str, Mapping[str, bytes]]
"""Files by kind, then by name: that of a network (its score), or `exported.CLASSIFIER` (logits)."""


def read(folder: Path) -> Artifacts:
    """The artifacts in a folder, <kind>/<name>.onnx or .pt2; none if it is not there."""
    return {
        kind: {path.stem: path.read_bytes() for path in sorted((folder / kind).glob(f"*{suffix}"))}
        for kind, suffix in SUFFIXES.items()
    }
