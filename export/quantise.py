"""Graphs with 8-bit convolutions: ONNX QDQ, calibrated on what the dynamics see.

What 8 bits break was measured on the shipped networks (relative L2 error of scores and logits, median):

- The energy network's first convolution stays float32.  With 8 bits there, signs of its activations flip,
  which are the masks of the way back: the score is off by 0.24 with it and by 0.03 without.
- The score network's layers next to the image stay float32: 0.04 instead of 0.08.
- The energy network's way back is a 3x3 convolution and a pixel shuffle in place of a transposed
  convolution, which OpenVINO runs in 8 bits no faster than in 32.  The numbers are the same.

ADP looks further ahead on such graphs (`engine.graphs.AHEAD`).
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn
from torch.nn import functional as F

from export import graphs
from metastable import noise
from metastable.bundle import Bundle
from metastable.defense import purify, sigma_of
from metastable.dynamics.adp import inject
from metastable.engine.graphs import AHEAD
from metastable.engine.runners.exported import CLASSIFIER
from metastable.networks.energy import EnergyNetwork

BATCH = 32
FLOAT = ("network.double1.", "network.up1.")
"""Weights with these beginnings stay float32, as does every convolution that reads or makes images."""


@torch.inference_mode()
def build(bundle: Bundle, images: Tensor) -> dict[str, bytes]:
    """The bundle's graphs (`export.graphs`), quantised.

    Args:
        images: natural images [N, C, H, W] in [0, 1] of the training split, some dozens; equal bundles
            and images give equal bytes.
    """
    seen, made = calibration(bundle, images), {}
    for name, (module, output) in graphs.modules(bundle).items():
        network = bundle.networks.get(name)
        if isinstance(network, EnergyNetwork):
            module = SubpixelScore(network)
        with torch.inference_mode(False):
            made[name] = quantise(graphs.export(module, bundle.shape, output), seen[name])
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
        if not setting.purifies:
            continue
        score = bundle.scores[setting.network]
        start = images
        if setting.dynamics == "adp":
            sigma = torch.tensor([sigma_of(setting, bool(flag)) for flag in flagged])
            start = inject(images, sigma, noise.normal(keys, 0, bundle.shape))
        walks = [dataclasses.replace(setting, steps=n) for n in {setting.steps // 2, setting.steps} - {0}]
        for x in (start, *(purify(images, keys, walk, score, flagged)[0] for walk in walks)):
            s = score(x)
            ahead = x + AHEAD * s / s.flatten(1).norm(dim=1).clamp_min(1e-15).view(-1, 1, 1, 1)
            seen[setting.network] += [x, ahead]
        seen[CLASSIFIER].append(x)
    return {name: torch.cat(states) for name, states in seen.items()}


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
        made = onnx.load(path)
    onnx.checker.check_model(made, full_check=True)
    data: bytes = made.SerializeToString(deterministic=True)
    return data


class SubpixelScore(nn.Module):
    """`EnergyNetwork.score` with the way back as 3x3 convolutions and pixel shuffles."""

    def __init__(self, network: EnergyNetwork) -> None:
        super().__init__()
        self.network = network
        for index in range(1, len(network.hidden)):
            weight: Tensor = network.hidden[index].weight  # type: ignore[assignment]
            self.register_buffer(f"back{index}", subpixel_kernel(weight))

    def forward(self, x: Tensor) -> Tensor:
        """The score of x [B, C, H, W] in [0, 1]."""
        slope, outputs = self.network.slope, []
        h = 2 * x - 1
        for conv in self.network.hidden:
            h = F.leaky_relu(conv(h), slope)
            outputs.append(h)
        g = (-2.0 * self.network.last.weight).expand(x.shape[0], -1, -1, -1)
        for index in range(len(outputs) - 1, 0, -1):
            g = torch.where(outputs[index] > 0, g, slope * g)
            lost = outputs[index - 1].shape[-1] - 2 * g.shape[-1]
            g = F.conv2d(F.pad(g, (0, lost, 0, lost)), getattr(self, f"back{index}"), padding=1)
            size = outputs[index - 1].shape[-1]
            g = F.pixel_shuffle(g, 2)[..., :size, :size]
        g = torch.where(outputs[0] > 0, g, slope * g)
        first: Tensor = self.network.hidden[0].weight  # type: ignore[assignment]
        return F.conv2d(g, first.transpose(0, 1).flip(2, 3), padding=1)


def subpixel_kernel(weight: Tensor) -> Tensor:
    """The 3x3 kernel [4 I, O, 3, 3] that, before a pixel shuffle, is the transpose of a 4x4/2 convolution.

    Row 2 y + p of the result (p is 0 or 1) reads rows y + d of the input, d from -1 to 1, through row
    p + 1 - 2 d of the 4x4 kernel `weight` [O, I, 4, 4] where there is one; columns alike.
    """
    outputs, inputs = weight.shape[:2]
    kernel = weight.new_zeros(inputs, 2, 2, outputs, 3, 3)
    taps = [(p, d, p + 1 - 2 * d) for p in (0, 1) for d in (-1, 0, 1) if 0 <= p + 1 - 2 * d < 4]
    for p, dy, ky in taps:
        for q, dx, kx in taps:
            kernel[:, p, q, :, dy + 1, dx + 1] = weight[:, :, ky, kx].T
    return kernel.view(4 * inputs, outputs, 3, 3)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Tensor) -> None:
        self._batches: Iterator[Tensor] = iter(torch.split(images, BATCH))

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
