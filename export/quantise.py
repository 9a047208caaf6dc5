"""Graphs with 8-bit convolutions: ONNX QDQ, calibrated on what the dynamics see.

What 8 bits break was measured on the shipped networks (relative L2 error of scores and logits, median):

- The energy network's first convolution stays float32.  With 8 bits there, signs of its activations flip,
  which are the masks of the way back: the score is off by 0.24 with it and by 0.03 without.
- A score network's layers next to the image stay float32: 0.04 instead of 0.08, and of the one behind a pixel
  unshuffle (on 64 x 64) 0.03 instead of 0.17.
- The energy network's way back is a 3x3 convolution and a pixel shuffle in place of a transposed
  convolution, which OpenVINO runs in 8 bits no faster than in 32.  The numbers are the same.

ADP looks further ahead on such graphs (`engine.precision.AHEAD`).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor

from export import graphs
from export.subpixel import SubpixelScore
from metastable.bundle import Bundle
from metastable.defense import begin, purify
from metastable.engine.precision import AHEAD
from metastable.engine.runners.exported import CLASSIFIER
from metastable.networks.denoising_energy import DenoisingEnergy
from metastable.networks.energy import EnergyNetwork
from metastable.networks.onnx_classifier import OnnxClassifier
from metastable.pixels import CPU_PIXELS, at_most

BATCH = 32
FLOAT = ("network.head.", "network.double1.", "network.up1.", "network.tail.")
"""Weights with these beginnings stay float32, as does every convolution that reads or makes images."""


@torch.inference_mode()
def build(bundle: Bundle, images: Tensor) -> dict[str, bytes]:
    """The bundle's graphs (`export.graphs`), quantised.

    A classifier that came as a graph stays as it came: whoever made it knows what 8 bits do to it.

    Args:
        images: natural images [N, C, H, W] in [0, 1] of the training split, some dozens; equal bundles
            and images give equal bytes.
    """
    seen, made = calibration(bundle, images), {}
    for name, module in graphs.modules(bundle).items():
        network = bundle.networks.get(name)
        if isinstance(network, EnergyNetwork):
            module = SubpixelScore(network)
        if isinstance(network, DenoisingEnergy):
            # Its score is a gradient of hundreds to a pixel, whose small parts decide where chains go.
            made[name] = graphs.export(module, bundle.shape, graphs.output(name))
            continue
        with torch.inference_mode(False):
            made[name] = quantise(graphs.export(module, bundle.shape, graphs.output(name)), seen[name])
    if isinstance(bundle.classifier, OnnxClassifier):
        made[CLASSIFIER] = graphs.brought(bundle.classifier, bundle.shape[1:])
    return made


def calibration(bundle: Bundle, images: Tensor) -> dict[str, Tensor]:
    """What each graph sees of `images` under the bundle's settings: [M, C, H, W] by its name.

    The states of chains before, between and after the steps, with and without the anomaly flag, and
    how ADP looks ahead from them; for the classifier, the images and the purified states.
    """
    seen: dict[str, list[Tensor]] = {name: [images] for name in (*bundle.networks, CLASSIFIER)}
    keys = [(0, chain) for chain in range(len(images))]
    flagged = torch.arange(len(images)) % 2 == 0
    for setting in bundle.settings.by_name.values():
        if not setting.network or not setting.dynamics.differentiable:  # which graphs cannot run
            continue
        score = partial(batched, bundle.scores[setting.network])
        start = begin(images, keys, setting.dynamics, flagged.tolist())
        walks = [setting.moving(steps=n) for n in {setting.steps // 2, setting.steps} - {0}]
        for x in (start, *(purify(images, keys, walk, score, flagged)[0] for walk in walks)):
            s = score(x)
            ahead = x + AHEAD * s / s.flatten(1).norm(dim=1).clamp_min(1e-15).view(-1, 1, 1, 1)
            seen[setting.network] += [x, ahead]
        seen[CLASSIFIER].append(x)
    return {name: torch.cat(states) for name, states in seen.items()}


def batched(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`run` of images [N, C, H, W], a batch at a time."""
    return torch.cat([run(part) for part in torch.split(x, at_most(BATCH, x.shape, CPU_PIXELS))])


def quantise(graph: bytes, images: Tensor) -> bytes:
    """One ONNX graph with its convolutions in 8 bits, but for those that `FLOAT` tells about."""
    model = onnx.load_from_string(graph)
    weights = {i.name: list(i.dims) for i in model.graph.initializer}
    kept, channels = [], images.shape[1]
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            weight = node.input[1]
            if channels in weights[weight][:2] or weight.startswith(FLOAT):
                kept.append(node.name)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        quantize_static(
            model,
            str(path),
            _Reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "ConvTranspose"],
            nodes_to_exclude=kept,
        )
        return graphs.checked(onnx.load(path))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Tensor) -> None:
        self._batches: Iterator[Tensor] = iter(torch.split(images, at_most(BATCH, images.shape, CPU_PIXELS)))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {graphs.INPUT: batch.numpy()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to preprocess a graph that is as small as it gets."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
