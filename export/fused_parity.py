"""Graphs of fused steps against the same steps in float64, on random states, images and noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor

from export import fused, graphs, parity
from metastable.dynamics.base import Kind


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
    inputs = fused.inputs(kind, steps, reference.bundle.shape, len(x)) | {graphs.INPUT: x}
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run([fused.STATE], {k: v.numpy() for k, v in inputs.items()})[0])
    exact = fused.module(reference.networks[kind.network], kind, steps)
    made = exact(*(value.double() for value in inputs.values()))
    wanted: Tensor = made[0] if isinstance(made, tuple) else made
    # States hardly move: what is compared is how they did.
    return parity.errors(got.double() - x, wanted - x)
