"""Weights in a safetensors file: the header is judged before anything is allocated."""

from __future__ import annotations

import math
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from metastable.bundle.checks import short, strict_json
from metastable.errors import BundleError

HEADER_BYTES = 2**20
TENSORS = 4096
DIMENSIONS = 8
LARGEST_DIMENSION = 2**24
ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "I64": 8}


def read(data: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, floating ones as float32 and finite.

    Raises BundleError naming `name` if `check_header` does, or if a weight is not a finite number.
    """
    check_header(data, name)
    try:
        found = load_safetensors(data)
    except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise BundleError(f"{name} is not a safetensors file: {short(error)}") from None
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in found.items()}
    for value in tensors.values():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise BundleError(f"{name}: a weight is not a finite number")
    return tensors


def check_header(data: bytes, name: str) -> None:
    """BundleError unless the header describes the file exactly, within the limits above.

    Tensors must fill the rest of the file without gaps or overlaps, each with as many bytes as its
    type and shape need; a header that claims more than the file holds is never believed.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or not 2 <= length <= min(HEADER_BYTES, len(data) - 8):
        raise BundleError(f"{name} is not a safetensors file: its header does not fit")
    header = strict_json(data[8 : 8 + length], f"the header of {name}")
    header.pop("__metadata__", None)  # free text of whoever wrote it, which nobody reads
    if not 1 <= len(header) <= TENSORS:
        raise BundleError(f"{name} must hold 1 to {TENSORS} tensors, not {len(header)}")
    spans = sorted(_span(entry, name) for entry in header.values())
    ends = [0, *(end for _, end in spans)]
    if [begin for begin, _ in spans] != ends[:-1] or ends[-1] != len(data) - 8 - length:
        raise BundleError(f"{name}: its tensors do not fill the file exactly")


def _span(entry: Any, name: str) -> tuple[int, int]:
    """First byte and end of a tensor's data."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)], **rest}:
            dimensions = len(shape) <= DIMENSIONS and all(
                type(size) is int and 1 <= size <= LARGEST_DIMENSION for size in shape
            )
            # math.prod of Python's integers cannot overflow.
            if (
                not rest
                and dtype in ITEM_BYTES
                and dimensions
                and 0 <= begin < end
                and end - begin == ITEM_BYTES[dtype] * math.prod(shape)
            ):
                return begin, end
    raise BundleError(
        f"{name}: a tensor needs a type of {sorted(ITEM_BYTES)}, at most {DIMENSIONS} dimensions of 1 to "
        f"{LARGEST_DIMENSION}, and as many bytes as they make"
    )
