"""Graphs of fused steps against the same steps in float64, on random states, images and noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor

from export import fused, graphs, parity
from metastable.dynamics.base import Kind
from metastable.pixels import CPU_PIXELS, at_most


def measure(models: Mapping[str, bytes], reference: parity.Reference) -> dict[str, Any]:
    """Errors of the states after the steps, by graph and kind of images, as `parity.measure` has them."""
    return {
        "graphs": {
            name: {
                which: _errors(models[name], kind, steps, x, reference)
                for which, x in reference.images.items()
            }
            for name, (kind, steps) in fused.planned(reference.bundle).items()
        }
    }


@torch.inference_mode()
def _errors(model: bytes, kind: Kind, steps: int, x: Tensor, reference: parity.Reference) -> dict[str, float]:
    whole = fused.inputs(kind, steps, reference.bundle.shape, len(x)) | {graphs.INPUT: x}
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    exact = fused.module(reference.networks[kind.network], kind, steps)
    got, wanted = [], []
    for rows in torch.split(torch.arange(len(x)), at_most(parity.BATCH, x.shape, CPU_PIXELS)):
        inputs = {name: value.index_select(fused.axis(kind, name), rows) for name, value in whole.items()}
        found = session.run([fused.STATE], {k: v.numpy() for k, v in inputs.items()})[0]
        made = exact(*(value.double() for value in inputs.values()))
        got.append(torch.from_numpy(found))
        wanted.append(made[0] if isinstance(made, tuple) else made)
    # States hardly move: what is compared is how they did.
    return parity.errors(torch.cat(got).double() - x, torch.cat(wanted) - x)
