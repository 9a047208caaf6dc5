"""ONNX graphs in OpenVINO's own format, for its model server and its other front ends.

The runners here read the ONNX graphs themselves; the conversion is the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import openvino as ov


def write(graphs: Mapping[str, bytes], folder: Path) -> None:
    """Write <name>.xml and <name>.bin of each graph into an existing folder, weights as they are in it.

    Inputs and outputs keep their names.  Equal graphs give equal bytes.
    """
    core = ov.Core()
    for name, graph in graphs.items():
        model = core.read_model(graph, b"")
        for index, node in enumerate(model.get_ordered_ops()):
            if node.get_type_name() not in ("Parameter", "Result"):
                # Else what has no name gets a number of this process.
                node.set_friendly_name(f"{node.get_type_name()}_{index}")
        ov.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
