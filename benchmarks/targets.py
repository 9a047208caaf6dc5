"""What is demanded of the runners on two cores, and whether a run of `steps` met it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

F32 = ("torch", "onnx", "openvino", "aot")
INT8 = ("openvino-int8", "onnx-int8")


@dataclass(frozen=True)
class SpeedTarget:
    """The best of `runners` must reach `least` of `field` at every one of `chains`, on Langevin steps."""

    name: str
    runners: tuple[str, ...]
    field: str
    chains: tuple[int, ...]
    least: float


TARGETS = (
    SpeedTarget("float32, 1 chain, times eager autograd", F32, "ratio", (1,), 3.0),
    SpeedTarget("float32, 64 and more, times eager autograd", F32, "ratio", (64, 150), 1.7),
    SpeedTarget("float32, 64 and more, share of the convolution peak", F32, "peak_share", (64, 150), 0.65),
    SpeedTarget("int8, 1 chain, times eager autograd", INT8, "ratio", (1,), 3.0),
    SpeedTarget("int8, 64 and more, times eager autograd", INT8, "ratio", (64, 150), 2.2),
)


def judge(
    rows: Iterable[Mapping[str, Any]], targets: Iterable[SpeedTarget] = TARGETS
) -> list[dict[str, Any]]:
    """Each target with the best that was measured where it was worst; met is None if nothing was."""
    langevin = [r for r in rows if r["work"] == "langevin"]
    found = []
    for target in targets:
        best = [
            max(
                (r[target.field] for r in langevin if r["chains"] == n and r["runner"] in target.runners),
                default=None,
            )
            for n in target.chains
        ]
        worst = None if None in best else min(best)  # type: ignore[type-var]
        met = None if worst is None else bool(worst >= target.least)
        found.append({"target": target.name, "least": target.least, "measured": worst, "met": met})
    return found
