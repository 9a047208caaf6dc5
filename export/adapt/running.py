"""Running a graph on noise, to see what it makes: ONNX Runtime on the CPU, after the checks of operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from export.adapt.editor import FLOAT, Editor
from export.tidy import encode
from metastable.errors import BundleError
from metastable.networks import onnx_classifier

Array = NDArray[Any]


class Failed(Exception):
    """A graph could not be loaded or run on these images; the text is ONNX Runtime's, on one line."""


class Running:
    """A graph that is asked for some of its values.

    Raises BundleError where an operator is not let in, Failed where ONNX Runtime refuses the graph.
    """

    def __init__(self, editor: Editor, names: Sequence[str]) -> None:
        copy = editor.copy()
        graph = copy.graph
        del graph.output[:]
        # The checker wants a type and a shape, and wrong ones would stop the runtime, which finds them out.
        graph.output.extend(helper.make_tensor_value_info(name, FLOAT, []) for name in names)
        onnx_classifier.check_body(copy.proto, editor.file)
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        try:
            self._session = onnx_classifier.session(encode(copy.proto), editor.file)
        except BundleError as error:
            raise Failed(str(error)) from None
        self._input = self._session.get_inputs()[0].name
        self.names = list(names)

    def types(self) -> dict[str, str]:
        """ONNX Runtime's name of the type of each value."""
        return {one.name: one.type for one in self._session.get_outputs()}

    def __call__(self, images: Array) -> dict[str, Array]:
        """The values for a batch of canonical images; raises Failed."""
        try:
            found = self._session.run(self.names, {self._input: images})
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise Failed(onnx_classifier.short(error)) from None
        return dict(zip(self.names, found, strict=True))


def noise(shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float], n: int) -> Array:
    """n images of noise as a graph takes them, float32 [n, C, H, W]; the same each time."""
    x = np.random.default_rng(0).random((n, *shape), np.float32)
    m, s = (np.asarray(values, np.float32).reshape(1, -1, 1, 1) for values in (mean, std))
    return np.asarray((x - m) / s, np.float32)


def softmax(z: Array) -> Array:
    """Probabilities of logits [n, classes]."""
    p = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(p / p.sum(1, keepdims=True))
