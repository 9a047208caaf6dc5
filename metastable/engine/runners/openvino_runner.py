"""The runner on OpenVINO: the fastest on CPUs, and needs no compiler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import openvino as ov
import torch
from torch import Tensor

from metastable.engine.precision import Precision, ahead_of
from metastable.engine.runners.exported import ExportedRunner
from metastable.engine.runners.stepping import Call


class OpenVinoRunner(ExportedRunner[bytes | Path]):
    """See `metastable.engine.runners.Runner`.

    Args:
        graphs: ONNX models (`export.graphs`), quantised ones for `int8`; or the .xml files of OpenVINO's own
            format, with the .bin files beside them.
        precision: of convolutions; `bf16` needs a processor that has it, or is slower than f32.
        threads: 0 takes all cores.
    """

    def __init__(
        self, graphs: Mapping[str, bytes | Path], *, precision: Precision = "f32", threads: int = 0
    ) -> None:
        core = ov.Core()
        config = {
            # One request at a time on all cores: two streams of one core each gained 5 % at the most.
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
        }

        def build(graph: bytes | Path, size: int) -> Call:
            model = core.read_model(graph) if isinstance(graph, Path) else core.read_model(graph, b"")
            _, *image = model.input(0).partial_shape
            model.reshape([size, *image])
            return _call(core.compile_model(model, "CPU", config))

        name = "openvino" if precision == "f32" else f"openvino-{precision}"
        super().__init__(name, graphs, build, ahead=ahead_of(precision), exact=precision == "f32")


def _call(compiled: ov.CompiledModel) -> Call:
    request = compiled.create_infer_request()
    shape = list(compiled.output(0).shape)

    def call(x: Tensor) -> Tensor:
        # The output is written where the caller keeps it; the request's own would be overwritten.
        out = torch.empty(shape)
        request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))
        request.set_output_tensor(ov.Tensor(out.numpy(), shared_memory=True))
        request.infer()
        return out

    return call
