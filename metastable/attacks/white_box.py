"""A bundle as its attacker knows it: everything but the random numbers."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from metastable.attacks.detectors import Detector, ShiftDetector
from metastable.attacks.smooth import smooth_backward
from metastable.attacks.target import WhiteBox
from metastable.bundle import Bundle
from metastable.defense import score_of
from metastable.dynamics import ScoreFunction
from metastable.networks.energy import EnergyNetwork
from metastable.networks.onnx_classifier import OnnxClassifier
from metastable.networks.onnx_gradient import Differentiable


def attackable(bundle: Bundle, images: Tensor, device: str = "cpu") -> Bundle:
    """The bundle as its attacker differentiates it: a classifier that came as an ONNX graph becomes PyTorch.

    What judges and answers keeps the graph.  Any other bundle is returned as it is.

    Args:
        images: float32 [N, C, H, W] in [0, 1] of the bundle's kind, on which both are compared.
        device: where the bundle's networks are.

    Raises NoGradient or MissingPackage where that cannot be (metastable.networks.onnx_gradient).
    """
    if not isinstance(bundle.classifier, OnnxClassifier):
        return bundle
    classifier = Differentiable(bundle.classifier, images.cpu())
    if device != "cpu":
        classifier.to(device).check(images)
    return dataclasses.replace(bundle, classifier=classifier)


def white_box(bundle: Bundle, setting: str) -> WhiteBox:
    """A setting of an `attackable` bundle as the attacker knows it."""
    chosen = bundle.settings[setting]
    detectors: tuple[Detector, ...] = ()
    if bundle.anomaly is not None:
        detectors = (Detector(_differentiable(bundle, bundle.anomaly.network), bundle.anomaly.threshold),)
    score = score_of(bundle.scores, chosen)
    energy = bundle.networks.get(chosen.network)
    piecewise = isinstance(energy, EnergyNetwork) and energy.piecewise
    smooth = _differentiable(bundle, chosen.network) if piecewise else None
    limit = bundle.shifts.get(setting)
    shift = None if limit is None else ShiftDetector(bundle.classifier, limit.threshold)
    return WhiteBox(chosen, bundle.classifier, score, detectors, smooth, shift)


def _differentiable(bundle: Bundle, name: str) -> ScoreFunction:
    """A network's score, with a derivative that means something where its own is nowhere."""
    network = bundle.networks[name]
    return smooth_backward(network) if isinstance(network, EnergyNetwork) else bundle.scores[name]
