import json
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from metastable.bundle import weights
from metastable.errors import BundleError

GOOD = save(
    {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(4, dtype=torch.int64), "c": torch.ones(2).half()}
)


def packed(header: Any, data: bytes = bytes(8)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def test_tensors_come_out_as_float32() -> None:
    found = weights.read(GOOD, "x")
    assert {k: v.dtype for k, v in found.items()} == {
        "a": torch.float32,
        "b": torch.int64,
        "c": torch.float32,
    }
    assert torch.equal(found["a"], torch.arange(6.0).view(2, 3))
    assert torch.equal(
        weights.read(packed({"w": entry(), "__metadata__": {"a": "b"}}), "x")["w"], torch.zeros(2)
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(8),
        pickle.dumps({"w": 1}),
        b"PK\x03\x04" + bytes(100),
        (2**63).to_bytes(8, "little") + b"{}",
        packed(b"{" * 100),
        packed([]),
        packed({}),
        packed(b'{"w": %s, "w": %s}' % ((json.dumps(entry()).encode(),) * 2)),
        packed({"w": 1}),
        packed({"w": entry(dtype="F64")}),
        packed({"w": entry(shape=[10**30])}),
        packed({"w": entry(shape=[2**20, 2**20, 2**20])}),
        packed({"w": entry(shape=[-1, -2])}),
        packed({"w": entry(shape=[2] + [1] * 20)}),
        packed({"w": entry(shape=["2"])}),
        packed({"w": entry(shape=[True, 2])}),
        packed({"w": entry(data_offsets=[0, 2**60])}),
        packed({"w": entry(data_offsets=[8, 16])}),
        packed({"w": entry(data_offsets=[8, 0])}),
        packed({"w": entry(more=1)}),
        packed({"w": entry()}, bytes(9)),
        packed({"v": entry(), "w": entry()}),  # two tensors on the same bytes
        packed({"w": entry(), "v": entry(data_offsets=[8, 16])}, bytes(12)),
        packed({f"w{i}": entry() for i in range(weights.TENSORS + 1)}),
    ],
)
def test_headers_that_lie_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="file-name"):
        weights.read(data, "file-name")


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(GOOD) - 1), flip=st.integers(1, 255), cut=st.integers(0, len(GOOD)))
def test_changed_files_are_refused_or_read_with_their_shapes(at: int, flip: int, cut: int) -> None:
    raw = bytearray(GOOD)
    raw[at] ^= flip
    for data in (bytes(raw), bytes(raw[:cut])):
        message = "file-name"
        try:
            assert sum(v.numel() for v in weights.read(data, "file-name").values()) <= 12
        except BundleError as error:
            message = str(error)
        assert "file-name" in message
