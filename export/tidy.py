"""ONNX models that say what is computed and nothing of who wrote them down."""

from __future__ import annotations

import onnx
from onnx.inliner import inline_local_functions

from metastable.networks.onnx_operators import DOMAINS


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions inlined, and without what names a machine or a run.

    The model given may be the one that is changed.
    """
    if model.functions:
        model = inline_local_functions(model)
    used = {node.domain for node in model.graph.node}
    for index in reversed(range(len(model.opset_import))):
        # Exporters leave the domains of functions here.
        if model.opset_import[index].domain not in used | set(DOMAINS):
            del model.opset_import[index]
    graph = model.graph
    values = (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for item in (model, graph, *values):
        item.doc_string = ""
        del item.metadata_props[:]
    return model


def encode(model: onnx.ModelProto) -> bytes:
    """The model's bytes; equal models give equal ones."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data
