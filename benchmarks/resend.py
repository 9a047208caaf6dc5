"""What it costs that TorchServe sends the bodies of unfinished requests again at every segment.

Some requests at once, with the same image in files of different sizes (padded with a text chunk,
which the decoder drops), in turn.  The service knows a request by its id and decodes it once; what
remains is the copy from the Java side.
"""

from __future__ import annotations

import statistics
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from benchmarks.server import serving

SIZES = (0, 80_000, 1_000_000)
SETTING = "accurate"


def padded(png: bytes, size: int) -> bytes:
    """The same image in a file of about `size` bytes more, by a text chunk before the pixels."""
    if not size:
        return png
    body = b"tEXt" + b"padding\0" + b"x" * size
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    after_header = 8 + 25  # signature, IHDR
    return png[:after_header] + chunk + png[after_header:]


def measure(bundle: Path, image: Path, work: Path, *, together: int, rounds: int) -> dict[str, Any]:
    """Median seconds until `together` requests, sent at once, are answered, by the size of their bodies."""
    bodies = {size: padded(image.read_bytes(), size) for size in SIZES}
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    with (
        serving(bundle, work, {"allow_seed": "true"}) as url,
        ThreadPoolExecutor(together) as pool,
        httpx.Client(timeout=300, trust_env=False) as client,
    ):

        def ask(number: int, size: int) -> None:
            client.post(
                url,
                content=bodies[size],
                headers={
                    "Content-Type": "application/octet-stream",
                    "X-Metastable-Setting": SETTING,
                    "X-Metastable-Seed": str(number),  # the same work for every size
                },
            ).raise_for_status()

        for turn in tqdm(range(rounds + 1), desc="rounds"):
            for size in SIZES:
                started = time.perf_counter()
                list(pool.map(ask, range(together), [size] * together))
                if turn:  # the first round warms up
                    seconds[size].append(time.perf_counter() - started)
    rows = [{"body_bytes": len(bodies[size]), "seconds": statistics.median(seconds[size])} for size in SIZES]
    return {
        "rows": rows,
        "together": together,
        "largest_over_smallest": round(rows[-1]["seconds"] / rows[0]["seconds"], 3),
    }
