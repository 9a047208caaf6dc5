"""Our own kernels: right in Triton's interpreter, and compiled for compute capability 9.0 without a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metastable.engine.runners.cuda_energy import CACHE, PIECE, TILES, FusedScore, Tile, _fastest, fits
from metastable.networks.energy import EnergyNetwork
from metastable.networks.score import ScoreNetwork

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)

INTERPRETED = """
import torch

from metastable.engine.runners.cuda_energy import FusedScore
from metastable.networks.energy import EnergyNetwork

torch.manual_seed(0)
for channels in (1, 3):
    network = EnergyNetwork(channels, 8, 16)
    x = torch.rand(3, channels, 8, 8).contiguous(memory_format=torch.channels_last)
    made = FusedScore(EnergyNetwork(channels, 8, 16), torch.device("cpu"), piece=2)
    made.refresh(network)
    got = made(x)  # a whole piece, and half of one
    with torch.no_grad():
        wanted = network.double().score(x.double())
    error = (got - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    assert error.median() < 0.05, error
"""

COMPILED = """
import os
import re
import subprocess
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from metastable import cuda_convolutions as kernels
from metastable import cuda_kernels
from metastable.engine.runners.cuda_energy import tiles

SHARED = 227 * 1024  # bytes that a program may have of a multiprocessor's own memory


def compiled(function, types, constants, warps=4, stages=3, product=True, spills=0):
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    even = [i for i, name in enumerate(function.arg_names) if types.get(name, "") not in ("", "fp32")]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in even},
    )
    options = {"num_warps": warps, "num_stages": stages}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    name = f"{function.__name__} {constants}"
    assert "wgmma" in made.asm["ptx"] or not product, f"{name}: not on the tensor cores' own instructions"
    bytes = spilled(made.asm["ptx"])
    assert bytes <= spills, f"{name}: {bytes} bytes of registers are spilled to memory"
    return made.metadata.shared


def spilled(ptx):
    # Bytes that the assembler says go to memory for want of registers.
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = [int(n) for n in re.findall(r"(\\d+) bytes spill", said)]
    assert len(found) == 2, said  # stores and loads
    return sum(found)


half, single, slope, n = "*fp16", "*fp32", 0.05, 32
shared = compiled(
    kernels.first,
    {"x": single, "weight": half, "bias": single, "out": half, "positions": "i32"},
    {"SIZE": 32, "C": 3, "K": 32, "CO": n, "SLOPE": slope, "M": 128},
)
assert shared <= SHARED
shared = compiled(
    kernels.last,
    {"g": half, "weight": half, "out": single, "positions": "i32", "share": "fp32"},
    {"SIZE": 32, "CI": n, "C": 3, "N": 16, "M": 128},
)
assert shared <= SHARED
for i in range(3):
    for up, inner, outer in ((False, n << i, n << i + 1), (True, n << i + 1, n << i)):
        room = []
        for tile in tiles(inner, outer):
            shape = {"M": tile.positions, "N": tile.channels, "K": tile.depth, "SLOPE": slope}
            shape |= {"SIZE": 16 >> i, "CI": inner, "CO": outer}
            types = {"weight": half, "positions": "i32"}
            if up:
                types |= {"g": half, "held": half}
            else:
                types |= {"x": half, "bias": single, "top": half, "out": half}
                shape["TOP"] = i == 2
            function = kernels.up if up else kernels.down
            room.append(compiled(function, types, shape, tile.warps, tile.stages))
        # A tile that there is no room for is passed over; the first is taken where nothing is tried.
        assert room[0] <= SHARED, (up, i, room)
for score in (half, "*bf16", single):
    types = {"x": single, "score": score, "factors": single, "rows": "*i64"}
    types |= {"later": "i32", "size": "i32", "stride": "i32"}
    # One register goes, and comes back: the assembler keeps it to 32, for many threads at a time.
    compiled(cuda_kernels._update, types, {"BLOCKS": cuda_kernels.BLOCKS}, product=False, spills=8)
"""


def run(script: str, root: Path, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env={**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


# Triton reads the environment when it is imported, and a kernel is bound to the file that it is in.
@needs_triton
def test_in_the_interpreter_they_are_the_score(root: Path) -> None:
    run(INTERPRETED, root, TRITON_INTERPRET="1")


@needs_triton
def test_they_compile_for_the_tensor_cores_and_fit(root: Path, tmp_path: Path) -> None:
    run(COMPILED, root, TRITON_CACHE_DIR=str(tmp_path))


def test_the_activations_of_a_piece_fit_into_the_cache() -> None:
    made = FusedScore(EnergyNetwork(3, 32, 32), torch.device("meta"))
    activations = sum(held.nbytes for held in made._held(32))
    assert len(made._held(32)[0]) == PIECE
    assert CACHE / 2 < activations <= CACHE  # much smaller pieces would leave the machine idle


def test_networks_that_they_are_not_written_for_are_told_apart() -> None:
    assert fits(EnergyNetwork(3, 32, 32))
    assert fits(EnergyNetwork(1, 28, 16))
    assert not fits(EnergyNetwork(3, 32, 24))
    assert not fits(ScoreNetwork(widths=(4, 8, 8)))
    made = FusedScore(EnergyNetwork(1, 28, 16), torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"take images 1 x \d+ x \d+, not 1 x 28 x 28"):
        made(torch.rand(2, 1, 28, 28))


def test_the_fastest_tile_that_there_is_room_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = clock

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, last: Event) -> float:
            return last.at - self.at

    class OutOfResources(Exception):
        """Named as Triton's own."""

    costs = dict(zip(TILES, (3.0, 1.0, 2.0, 0.0), strict=True))

    def launch(tile: Tile) -> None:
        nonlocal clock
        if tile == TILES[-1]:
            raise OutOfResources
        clock += costs[tile]

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert _fastest(list(TILES), launch) == TILES[1]
    with pytest.raises(RuntimeError, match="no tile"):
        _fastest([TILES[-1]], launch)
