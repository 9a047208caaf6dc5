"""Gradients of a classifier that came as an ONNX graph: the same graph again, as a PyTorch module.

ONNX Runtime answers and differentiates nothing.  `Differentiable` is what an attacker and a trainer need in
its place: the operators of the graph one by one in PyTorch (onnx2fx, https://github.com/mshr-h/onnx2fx), with
the same resizing and normalising before them.  It is made anew from the graph wherever it is needed, compared
with ONNX Runtime on real images and on noise, and never served: what answers stays the graph.

The package is an extra that no server imports.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from metastable.errors import MissingPackage, NoGradient
from metastable.networks.onnx_classifier import OnnxClassifier, parse_graph, short

PACKAGE = "onnx2fx==0.0.1"
IMAGES = 8
"""Images that are compared, and as many of noise."""
TOLERANCE = {"cpu": 1e-4, "cuda": 1e-2}
"""How far a logit may be from ONNX Runtime's, in units of the largest logit, at least 1, by device: a GPU's
convolutions may round to TF32."""
MOVE = 1e-2
"""How far the check of the gradient moves a weighted sum of logits, in the same units."""
AGREEMENT = 0.5, 2.0
"""How far ONNX Runtime's answers may move, in units of what the gradient foretells."""
INTEGER = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
}
"""Operators of 8-bit graphs.  With weights alone in 8 bits ONNX Runtime may compute in integers as well."""
INSTEAD = (
    "attack a surrogate (a network trained for the same classes) and transfer its images, or train a new "
    "classifier behind the purifier (harden --classifier NAME)"
)


class Differentiable(nn.Module):
    """Images [B, C, H, W] in [0, 1] to the logits [B, classes] of an ONNX classifier, with gradients.

    Like the graph it runs in float32, under autocast too, on the device that it is moved to.  Its weights are
    buffers: nothing trains them.

    Args:
        source: the classifier, which goes on answering.
        images: float32 [N, C, H, W] in [0, 1], real ones; the first IMAGES are compared.

    Raises MissingPackage without onnx2fx, and NoGradient, naming the operator where it is one, for a graph
    that computes in integers, that cannot be converted, or that fails `check`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, source: OnnxClassifier, images: Tensor) -> None:
        super().__init__()
        self.source = source
        for name, value in zip(("mean", "std"), source.normalization, strict=True):
            self.register_buffer(name, value)
        self.graph = _converted(source)
        self.check(images)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32, with a gradient where x asks for one."""
        # The tensors that operators make of shapes and constants belong where the images are.
        with torch.autocast(x.device.type, enabled=False), torch.device(x.device):
            logits: Tensor = self.graph(self._prepared(x))
        return logits

    def check(self, images: Tensor) -> None:
        """Compare logits with ONNX Runtime's, and how far they move with what the gradient foretells.

        Asked are the images, as many of noise, and one of each alone (a conversion could fix the size of a
        batch), on the device of this module.

        Raises NoGradient with the number where logits are further away than TOLERANCE, and where the gradient
        is absent, zero everywhere, not finite, or not that of the answers (AGREEMENT).
        """
        rng = torch.Generator().manual_seed(0)
        real = images[:IMAGES].to(self.mean.device, torch.float32)
        noise = torch.rand(real.shape, generator=rng).to(real)
        for batch in (real, noise, real[:1], noise[:1]):
            self._compare(batch)
        self._follow(torch.cat([real, noise]), rng)

    @torch.no_grad()
    def _compare(self, x: Tensor) -> None:
        wanted = self.source(x)
        try:
            found = self(x)
        except Exception as error:  # whatever an operator raises
            where = f"on {len(x)} images ({x.device.type})"
            raise self._refusal(f"its {self._failing(x)} fails {where}: {short(error)}") from None
        if found.shape != wanted.shape:
            raise self._refusal(f"it gives {list(found.shape)}, not {list(wanted.shape)}")
        away = float((found - wanted).abs().max()) / _unit(wanted)
        allowed = TOLERANCE[x.device.type]
        if not away <= allowed:  # nor where it is no number
            raise self._refusal(
                f"a logit is {away:.2g} of the largest one away from ONNX Runtime's, {allowed:g} is allowed"
            )

    def _follow(self, x: Tensor, rng: torch.Generator) -> None:
        at = x.clone().requires_grad_(True)
        with torch.enable_grad():
            logits = self(at)
            if not logits.requires_grad:
                raise self._refusal("it has no gradient: all of its paths go through integers")
            weights = torch.randn(logits.shape, generator=rng).to(logits)
            (gradient,) = torch.autograd.grad((weights * logits).sum(), at)
        if not bool(gradient.isfinite().all()):
            raise self._refusal("its gradient is not finite")
        slope = gradient.flatten(1).norm(dim=1)
        if not bool(slope.any()):
            raise self._refusal("its gradient is zero everywhere: it rounds or compares on the way")
        # Images without a slope say nothing here; one that all of them lack was refused above.
        x, gradient, weights, slope = (value[slope > 0] for value in (x, gradient, weights, slope))
        length = MOVE * _unit(logits.detach()) / slope
        half = (length / slope / 2).view(-1, 1, 1, 1) * gradient
        moved = (weights * (self.source(x + half) - self.source(x - half))).sum(1)
        ratio = float((moved / (length * slope)).median())
        low, high = AGREEMENT
        if not low <= ratio <= high:
            raise self._refusal(
                f"answers move {ratio:.2g} times as far as its gradient foretells, {low:g} to {high:g} is "
                "allowed: part of it rounds or compares"
            )

    def _refusal(self, why: str) -> NoGradient:
        instead = INSTEAD if self.mean.device.type == "cpu" else f"use the CPU, or {INSTEAD}"
        return NoGradient(f"{self.source.file} cannot be differentiated as PyTorch: {why}; {instead}")

    @torch.no_grad()
    def _failing(self, x: Tensor) -> str:
        """The operator at which the graph fails."""
        walk = _Walk(self.graph)
        with contextlib.suppress(Exception), torch.device(x.device):
            walk.run(self._prepared(x))
        return walk.at

    def _prepared(self, x: Tensor) -> Tensor:
        return self.source.prepared(x.float(), self.mean, self.std)


class _Walk(torch.fx.Interpreter):
    """A graph, operator by operator; `at` is the last one that began, by its name in ONNX."""

    at = "graph"

    def run_node(self, n: torch.fx.Node) -> Any:
        self.at = str(n.meta.get("onnx_op_type", self.at))
        return super().run_node(n)


def _unit(logits: Tensor) -> float:
    return max(1.0, float(logits.abs().max()))


def _converted(source: OnnxClassifier) -> torch.fx.GraphModule:
    file, proto = source.file, _renamed(parse_graph(source.model, source.file))
    if integer := sorted({node.op_type for node in proto.graph.node} & INTEGER):
        raise NoGradient(
            f"{file} computes in integers ({', '.join(integer)}), which have no gradient: bring the float32 "
            "graph that it was quantised from"
        )
    library = _library()
    if unknown := library.analyze_model(proto).unsupported_ops:
        named = ", ".join(f"{name} (opset {opset})" for name, _, opset in unknown)
        raise NoGradient(
            f"{file} has operators that {PACKAGE} does not convert to PyTorch: {named}; export it without "
            f"them or with another opset, or {INSTEAD}"
        )
    try:
        graph: torch.fx.GraphModule = library.convert(proto)
    except Exception as error:  # the library's own, and whatever it did not foresee
        raise NoGradient(f"{PACKAGE} does not convert {file}: {short(error)}; {INSTEAD}") from None
    return graph.eval()


def _library() -> Any:
    try:
        return importlib.import_module("onnx2fx")
    except ImportError:
        raise MissingPackage(
            f"gradients of a classifier that is an ONNX graph need onnx2fx: pip install --no-deps {PACKAGE}"
        ) from None


def _renamed(proto: Any) -> Any:
    """The same graph, in place, with names of our own.

    The library makes Python source with names in it: foreign ones must not get there, and two that differ in
    ONNX must not become one.
    """
    graph, names = proto.graph, {"": ""}
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.setdefault(value.name, f"v{len(names)}")
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        for ends in (node.input, node.output):
            ends[:] = [names.setdefault(name, f"v{len(names)}") for name in ends]
    del graph.value_info[:]
    return proto
