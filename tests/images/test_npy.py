"""metastable.images: .npy files."""

from __future__ import annotations

import contextlib
import io
import pickle
import time
import warnings

import numpy as np
import pytest
import torch

from metastable.errors import InvalidImage
from metastable.images import decode
from tests.image_files import (
    GREY,
    RNG,
    expected,
    npy,
    npy_raw,
    refused,
)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
@pytest.mark.parametrize("fortran", [False, True])
def test_npy_floats_survive_bit_for_bit(version: tuple[int, int], dtype: str, fortran: bool) -> None:
    array = RNG.random((3, 32, 32), np.float32)
    array.flat[:4] = [0.0, -0.0, 1.0, 1e-42]
    laid_out = np.asarray(array.astype(dtype), order="F" if fortran else "C")
    image = decode(npy(laid_out, version))
    assert image.pixels.numpy().tobytes() == array.tobytes()
    assert image.notes == ()


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((32, 32), None),
        ((32, 32, 1), None),
        ((1, 32, 32), None),
        ((32, 32, 3), (2, 0, 1)),
        ((3, 32, 32), (0, 1, 2)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_npy_layouts_and_types(shape: tuple[int, ...], axes: tuple[int, ...] | None, dtype: type) -> None:
    array = (
        RNG.random(shape).astype(dtype) if dtype != np.uint8 else RNG.integers(0, 256, shape, dtype=np.uint8)
    )
    scaled = array.astype(np.float32) / np.float32(255 if dtype == np.uint8 else 1)
    want = np.broadcast_to(scaled.reshape(1, 32, 32), (3, 32, 32)) if axes is None else scaled.transpose(axes)
    image = decode(npy(array))
    assert np.array_equal(image.pixels.numpy(), want)
    assert image.format == "NPY"
    assert image.notes == (("float64 rounded to float32",) if dtype == np.float64 else ())


def test_npy_ambiguous_shape_is_hwc_and_resized() -> None:
    array = RNG.random((3, 40, 3), np.float32)
    image = decode(npy(array))
    assert image.original_size == (40, 3)
    assert image.resized
    assert decode(npy(RNG.random((3, 40, 50), np.float32))).original_size == (50, 40)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-3, 1.001, 255.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_values_out_of_range(value: float, dtype: type) -> None:
    array = np.full((32, 32), 0.5, dtype)
    array[3, 4] = value
    message = refused(npy(array), InvalidImage)
    assert "[0, 1]" in message
    assert ("values from" in message) == bool(np.isfinite(value))


def test_npy_signalling_nan() -> None:
    refused(npy(np.full((32, 32), 0x7FA00000, np.uint32).view(np.float32)), InvalidImage)


@pytest.mark.parametrize("dtype", ["i1", "<i4", "<u2", "?", "<c8", "<U3", "S5", "<M8[s]", "f8,i4", "O"])
def test_npy_types_that_are_no_pixels(dtype: str) -> None:
    refused(npy(np.zeros((32, 32), dtype)), InvalidImage)


def test_npy_never_unpickles() -> None:
    body = pickle.dumps([1] * 1024)
    refused(npy_raw("{'descr': '|O', 'fortran_order': False, 'shape': (32, 32), }", body), InvalidImage)


@pytest.mark.parametrize(
    "shape",
    [
        "()",
        "(1024,)",
        "(-32, -32)",
        "(0, 32)",
        "(32, 32, 4)",
        "(1, 32, 32, 1)",
        "(10**9, 2)",
        "(32.0, 32)",
        "(999999999999, 999999999999)",
        "(32L, 32L)",
        "(032, 32)",
        "(" + "9" * 5000 + ", 1)",
        "(" * 3000,
        "(32, 33)",
    ],
)
def test_npy_impossible_shapes(shape: str) -> None:
    refused(
        npy_raw(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}", bytes(1024)), InvalidImage
    )


@pytest.mark.parametrize("shape", ["(32L, 32L)", "(32, 32), '\\d': 1", "(32 if 1else 0, 32)"])
def test_npy_headers_that_numpy_warns_about_are_not_read(shape: str) -> None:
    data = npy_raw(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}", bytes(1024))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with contextlib.suppress(ValueError):
            np.lib.format.read_array(io.BytesIO(data))
        assert seen  # numpy alone does warn
        seen.clear()
        refused(data, InvalidImage)
    assert not seen


@pytest.mark.parametrize("rest", ["{'descr': '|u1', 'fortran_order': False, 'shape': (32, 32)}", ""])
@pytest.mark.parametrize("before", [True, False])
def test_npy_headers_take_linear_time(rest: str, before: bool) -> None:
    def seconds(spaces: int) -> float:
        header = " " * spaces + rest if before else rest + " " * spaces
        data, best = npy_raw(header, GREY.tobytes(), (2, 0)), float("inf")
        for _ in range(5):
            began = time.perf_counter()
            with contextlib.suppress(InvalidImage):
                decode(data)
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds(9_900) < 20 * max(seconds(990), 1e-4)  # a quadratic one takes a hundred times as long


def test_npy_is_read_without_the_parser_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    # That of 3.11.7 raises now and then where another thread uses it too (CPython's issue 106905).
    def failing(*_: object, **__: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    data = npy(GREY)
    monkeypatch.setattr("ast.parse", failing)
    assert torch.equal(decode(data).pixels, expected(GREY))


def test_npy_length_must_be_exact() -> None:
    data = npy(GREY)
    for wrong in (data[:-1], data + b"\0", data[:-1024]):
        assert "truncated or damaged" in refused(wrong, InvalidImage)


def test_npy_headers() -> None:
    good = '{"shape": (32, 32), "fortran_order": False, "descr": "|u1"}' + " " * 9000 + "\n"
    assert torch.equal(decode(npy_raw(good, GREY.tobytes(), (2, 0))).pixels, expected(GREY))
    refused(npy_raw(good + " " * 1000, GREY.tobytes(), (2, 0)), InvalidImage)
    refused(npy_raw("{'shape': (32, 32), 'shape': (32, 32), 'descr': '|u1'}", GREY.tobytes()), InvalidImage)
    refused(
        npy_raw("{'descr': '|u1', 'fortran_order': 'u1', 'shape': (32, 32)}", GREY.tobytes()), InvalidImage
    )
    assert "3.0" in refused(npy(GREY, (3, 0)), InvalidImage)
