"""The runner on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping

import onnxruntime as ort
import torch
from torch import Tensor

from metastable.engine.precision import Precision, ahead_of
from metastable.engine.runners.exported import ExportedRunner
from metastable.engine.runners.stepping import Call


class OnnxRunner(ExportedRunner[bytes]):
    """See `metastable.engine.runners.Runner`.

    Args:
        graphs: ONNX models (`export.graphs`); quantised ones for `int8`.
        threads: 0 takes all cores.
    """

    def __init__(
        self, graphs: Mapping[str, bytes], *, precision: Precision = "f32", threads: int = 0
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Each graph has threads of its own, which else keep a core busy that the next graph needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")

        def build(graph: bytes, size: int) -> Call:
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name

            def call(x: Tensor) -> Tensor:
                return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

            return call

        name = "onnx" if precision == "f32" else f"onnx-{precision}"
        exact, ahead = precision == "f32", ahead_of(precision)
        super().__init__(name, graphs, build, fixed=False, ahead=ahead, exact=exact)
