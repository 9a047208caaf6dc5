"""What the runners of exported graphs share: sizes of batches, steps, names of graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

from metastable.dynamics.base import Kind
from metastable.engine.runners import Abilities, Batch
from metastable.engine.runners.stepping import Call, Stepper
from metastable.pixels import CPU_PIXELS, at_most

CLASSIFIER = "classifier"
"""The name of the classifier's graph; every other graph is a score and has its network's name."""

LARGEST = 32
"""The largest batch that graphs of a fixed size are compiled for.

From 16 chains on, a chain costs the same in any batch (measured on 2 cores), and graphs of a fixed size
are 3 to 14 % faster than those of any size: larger batches are cut into powers of two, without filling.
Images above 90 x 90 pixels have smaller batches (`pixels.CPU_PIXELS`): fewer graphs are compiled.
"""


def pieces(size: int, largest: int = LARGEST) -> list[int]:
    """The sizes that a batch is cut into, none above `largest`, largest first: 75 -> 32, 32, 8, 2, 1."""
    whole = 1 << largest.bit_length() - 1
    cut = [whole] * (size // whole)
    rest = size % whole
    return cut + [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]


G = TypeVar("G")
"""A graph, as its runtime takes it: its bytes, or a file."""


class ExportedRunner(Generic[G]):
    """See `metastable.engine.runners.Runner`.

    Args:
        name: of the runner.
        graphs: by name, CLASSIFIER among them.
        build: (a graph, batch size) -> its forward pass; called once for each that is needed.
        fixed: whether `build` makes graphs of a fixed size (`pieces`), or one for all (size 0).
        ahead: how far an adaptive step looks ahead, as in `Adaptation`.
        exact: of `runners.Abilities`.

    Raises RuntimeError if there is no classifier among the graphs.
    """

    def __init__(
        self,
        name: str,
        graphs: Mapping[str, G],
        build: Callable[[G, int], Call],
        *,
        fixed: bool = True,
        ahead: float | None = None,
        exact: bool = True,
    ) -> None:
        if CLASSIFIER not in graphs:
            raise RuntimeError(f"runner {name}: the graphs {sorted(graphs)} lack {CLASSIFIER!r}")
        self.name, self._graphs, self._build = name, graphs, build
        self.abilities = Abilities(exact=exact)
        self._built: dict[tuple[str, int], Call] = {}
        self._steppers: dict[str, Stepper] = {}
        self._fixed, self._ahead = fixed, ahead

    def advance(self, kind: Kind, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        if kind.differentiates:
            raise RuntimeError(
                f"runner {self.name} has no derivative of a score, which {kind.name} needs: "
                "choose the runner torch"
            )
        if kind.network not in self._steppers:
            self._steppers[kind.network] = Stepper(lambda x: self.score(kind.network, x), self._ahead)
        return self._steppers[kind.network].advance(kind, batch, steps, batch.x)

    @torch.inference_mode()
    def score(self, network: str, x: Tensor) -> Tensor:
        return self._run(network, x)

    @torch.inference_mode()
    def classify(self, x: Tensor) -> Tensor:
        return self._run(CLASSIFIER, x)

    def _run(self, graph: str, x: Tensor) -> Tensor:
        """A forward pass of x in pieces.

        Raises RuntimeError when the backend fails or does not know the graph.
        """
        if graph not in self._graphs:
            raise RuntimeError(f"runner {self.name} has no graph {graph!r}, only {sorted(self._graphs)}")
        x = x.contiguous()
        if self._fixed:
            cut = torch.split(x, pieces(len(x), at_most(LARGEST, x.shape, CPU_PIXELS)))
            outputs = [self._call(graph, len(part))(part) for part in cut]
        else:  # nothing is gained by cutting, but memory
            cut = torch.split(x, at_most(max(len(x), 1), x.shape, CPU_PIXELS))
            outputs = [self._call(graph, 0)(part) for part in cut]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _call(self, graph: str, size: int) -> Call:
        if (graph, size) not in self._built:
            self._built[graph, size] = self._build(self._graphs[graph], size)
        return self._built[graph, size]
