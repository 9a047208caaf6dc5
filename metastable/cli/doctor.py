"""What this machine has, which runners work on it, and how to get what is missing.  Nothing is installed."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import nn

from metastable import datasets, version
from metastable.cli import table
from metastable.engine.runners import choose
from metastable.engine.runners.artifacts import GRAPHS, SUFFIXES
from metastable.errors import DataError, MetastableError

FEATURES = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "sve", "bf16", "i8mm"),
)
"""What makes convolutions fast, by Linux's names; the last four are of ARM."""
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "triton", "torchserve", "shtab")


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    parser.add_argument("--data", help="folder of the data sets (default: METASTABLE_DATA)")
    parser.add_argument(
        "--artifacts",
        type=Path,
        default=Path("model_store/artifacts/cifar10"),
        help="what `export all` wrote",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON, and nothing else")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look, and tell."""
    found = {
        "command": "doctor",
        "versions": versions(),
        "cpu": cpu(),
        "memory_gib": memory(),
        "gpu": gpu(),
        "runners": runners(args.artifacts),
        "data": {name: data(name, args.data) for name in datasets.DATASETS},
        "java": java(),
    }
    print(json.dumps(found) if args.json else "\n".join(lines(found)))
    return 0


def versions() -> dict[str, str | None]:
    """Of Python, of this library and of packages; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "metastable": version.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def cpu(info: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """The processor's name, its cores, those that this process may use, and what of FEATURES it has."""
    text = info.read_text() if info.exists() else ""
    fields = {
        key.strip(): value.strip() for key, _, value in (one.partition(":") for one in text.splitlines())
    }
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "features": [name for name in FEATURES if name in flags],
        "pytorch_uses": torch.backends.cpu.get_cpu_capability(),
    }


def memory() -> dict[str, float]:
    """Gibibytes, all and free for use."""
    found = psutil.virtual_memory()
    return {"total": round(found.total / 2**30, 1), "available": round(found.available / 2**30, 1)}


def gpu() -> dict[str, Any]:
    """The first GPU that PyTorch can use, or why there is none."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return {
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
        }
    if torch.version.cuda is None:
        return {"missing": f"PyTorch {torch.__version__} is built for CPUs: a GPU needs its build for CUDA"}
    return {
        "missing": "PyTorch finds no GPU: check that there is one, and that `nvidia-smi` shows its driver"
    }


def runners(folder: Path) -> dict[str, str | None]:
    """By name: None for a runner that can be made here, else why it cannot, with what to do.

    Args:
        folder: of what was exported, <kind>/<name>; the archive builds the float32 graphs by itself.
    """
    there = {kind: bool([*folder.glob(f"{kind}/*{suffix}")]) for kind, suffix in SUFFIXES.items()}
    parts = choose.Parts({}, nn.Identity(), {kind: {"": b""} for kind in SUFFIXES}, (3, 32, 32))
    found: dict[str, str | None] = {}
    for name, maker in choose.MAKERS.items():
        found[name] = choose.missing(name, parts)
        kind = maker.artifact
        if found[name] is None and kind and kind != GRAPHS and not there[kind]:
            found[name] = f"{folder} has no {kind}: `metastable export all --only {kind} --out {folder}`"
    return found


def data(name: str, given: str | None) -> dict[str, Any]:
    """Images by split, or why there are none."""
    try:
        root = datasets.data_root(given)
        sizes = {split: len(datasets.load(name, root, split)) for split in datasets.SPLITS}
    except (DataError, OSError) as error:
        return {"missing": str(error)}
    return {"folder": str(root), **sizes}


def java() -> dict[str, Any]:
    """The Java runtime for TorchServe, or how to get one."""
    try:
        module = table.imported(table.JAVA, "the server")
    except MetastableError as error:
        return {"missing": str(error)}
    found, passed_over = module.present()
    if found is None:
        why = f" ({', '.join(passed_over)})" if passed_over else ""
        return {
            "missing": f"no Java {module.MINIMUM} or later{why}: `metastable serve` installs {module.WHEEL}"
        }
    return {"version": found.version, "source": found.source}


def lines(found: dict[str, Any]) -> list[str]:
    """All of it for people."""
    cpu, memory, gpu, java = found["cpu"], found["memory_gib"], found["gpu"], found["java"]
    told = [
        "versions  " + ", ".join(f"{k} {v or 'not installed'}" for k, v in found["versions"].items()),
        f"cpu       {cpu['name']}, {cpu['usable_cores']} of {cpu['cores']} cores usable",
        f"          {' '.join(cpu['features']) or 'no features known'}; PyTorch uses {cpu['pytorch_uses']}",
        f"memory    {memory['available']} of {memory['total']} GiB available",
        "gpu       "
        + (gpu.get("missing") or f"{gpu['name']}, {gpu['memory_gib']} GiB, {gpu['count']} in all"),
        "java      " + (java.get("missing") or f"{java['version']} ({java['source']})"),
    ]
    for name, one in found["data"].items():
        told.append(
            f"data      {name}: "
            + (one.get("missing") or f"{one['train']} and {one['test']} in {one['folder']}")
        )
    told += [f"runner    {name}: {why or 'can be made'}" for name, why in found["runners"].items()]
    return told
