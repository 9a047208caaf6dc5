"""Arrays of numpy.save, read without numpy.load: nothing is unpickled, and no header is trusted."""

from __future__ import annotations

import math
import re
import struct

import numpy as np

from metastable.errors import InvalidImage
from metastable.images.limits import ImageLimits, check_size
from metastable.images.raster import Raster

_MAX_NPY_HEADER = 10_000  # bytes; numpy's own limit
# Not read by numpy: on some headers it warns, or recurses deeply, and the parser of Python 3.11.7 that it
# uses may fail on a good one while another thread uses it. `*+` never backtracks, so that 10 000 spaces take
# linear time.
_NUMBER = rb"(?:0|-?[1-9]\d{0,14})"
_ENTRY = re.compile(
    rb"\s*+['\"](?P<key>descr|fortran_order|shape)['\"]\s*+:\s*+"
    rb"(?:['\"](?P<dtype>[<>|=]?[bBiufcmMOSUV?]\d{0,4})['\"]|(?P<truth>True|False)"
    rb"|\((?P<numbers>\s*+(?:%b\s*+,\s*+)*+(?:%b\s*+)?)\))\s*+" % (_NUMBER, _NUMBER)
)
_UNNAMED = re.sub(rb"\?P<\w+>", b"?:", _ENTRY.pattern)
_NPY_HEADER = re.compile(rb"\s*+\{%b,%b,%b(?:,\s*+)?\}\s*+" % (_UNNAMED, _UNNAMED, _UNNAMED))


def read_npy(data: bytes, limits: ImageLimits) -> Raster:
    """The samples of a .npy file; InvalidImage, TooLarge, or any error of numpy."""
    shape, fortran, dtype, start = _npy_header(data)
    if (dtype.kind, dtype.itemsize) not in (("u", 1), ("f", 2), ("f", 4), ("f", 8)):
        raise InvalidImage(f"The .npy type is {dtype.name}: send uint8, float16, float32 or float64.")
    last = len(shape) == 3 and shape[2] in (1, 3)
    first = len(shape) == 3 and shape[0] in (1, 3) and not last
    if min(shape, default=0) < 1 or not (len(shape) == 2 or first or last):
        raise InvalidImage(f"The .npy array has the shape {shape}: send [H, W], [H, W, 3] or [3, H, W].")
    declared, held = math.prod(shape) * dtype.itemsize, len(data) - start
    if declared != held:
        raise InvalidImage(f"The .npy is truncated or damaged, {held} of {declared} bytes: send it again.")
    height, width = shape[1:] if first else shape[:2]
    check_size(width, height, limits)
    array = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
    with np.errstate(all="ignore"):  # comparing a signalling NaN would warn
        if dtype.kind == "f" and not ((array >= 0) & (array <= 1)).all():
            found = f"values from {array.min():.4g} to {array.max():.4g}"
            found = found if np.isfinite(array).all() else "NaN or infinity"
            raise InvalidImage(f"The .npy array has {found}: scale floats to [0, 1] or send uint8.")
    samples = np.moveaxis(array, 0, -1) if first else array.reshape(height, width, -1)
    notes = ("float64 rounded to float32",) if dtype.itemsize == 8 else ()
    return Raster(samples, 255 if dtype.kind == "u" else 1, None, notes)


def _npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, dtype, and where the pixels start; nothing is unpickled."""
    major, minor = data[6], data[7]
    if (major, minor) not in ((1, 0), (2, 0)):
        raise InvalidImage(f"The .npy file has version {major}.{minor}: send version 1.0 or 2.0.")
    start = 10 if major == 1 else 12
    end = start + int(struct.unpack_from("<H" if major == 1 else "<I", data, 8)[0])
    if end - start > _MAX_NPY_HEADER or not _NPY_HEADER.fullmatch(data, start, end):
        raise InvalidImage("The .npy header is damaged or not of a plain array: save it with numpy.save.")
    found, at = {}, data.index(b"{", start) + 1
    while (entry := _ENTRY.match(data, at, end)) is not None:  # and no search, which would try every space
        found[entry["key"]] = entry
        at = entry.end() + 1  # the comma
    dtype, fortran, numbers = (
        found[key][kind] if key in found else None
        for key, kind in ((b"descr", "dtype"), (b"fortran_order", "truth"), (b"shape", "numbers"))
    )
    if dtype is None or fortran is None or numbers is None:
        raise InvalidImage("The .npy header is damaged: save it with numpy.save.")
    shape = tuple(int(one) for one in numbers.split(b",") if one.strip())
    return shape, fortran == b"True", np.dtype(dtype.decode()), end
