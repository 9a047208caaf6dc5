"""What holds of a classifier: asked about images of noise, before it becomes part of a bundle."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metastable.errors import BundleError, MissingPackage, NoGradient
from metastable.networks import onnx_classifier
from metastable.networks.onnx_gradient import Differentiable

PROBES = 5
TOLERANCE = 1e-3  # of logits, relative to the largest; other batch sizes take other kernels


def noise(shape: tuple[int, int, int]) -> Tensor:
    """PROBES images of `shape`, the same every time."""
    return torch.rand(PROBES, *shape, generator=torch.Generator().manual_seed(0))


def gradients(network: nn.Module, images: Tensor) -> str:
    """Whether white-box attacks and hardening can use it, in words.  A graph is converted for it."""
    if not isinstance(network, onnx_classifier.OnnxClassifier):
        return "its own"
    try:
        Differentiable(network, images)
    except (NoGradient, MissingPackage) as error:
        return f"none: {error}"
    return "by conversion to PyTorch, which agrees with ONNX Runtime"


@torch.inference_mode()
def probe(network: nn.Module, shape: tuple[int, int, int], classes: int) -> list[str]:
    """Ask the network about a batch of noise images and say what holds of its logits.

    Raises BundleError if they have the wrong shape, are not finite, are probabilities, do not depend on
    the image, or depend on what else is in the batch or on how large it is.
    """
    images = noise(shape)
    logits: Tensor = network(images)
    if tuple(logits.shape) != (PROBES, classes):
        found = list(logits.shape)
        raise BundleError(
            f"the classifier makes {found} of {PROBES} images, and there are {classes} class names"
        )
    if not bool(logits.isfinite().all()):
        raise BundleError("the classifier gives logits that are not finite numbers")
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        raise BundleError("the classifier gives probabilities: leave out its softmax, logits are wanted")
    allowed = TOLERANCE * max(1.0, float(logits.abs().max()))
    if bool((logits.amax(0) - logits.amin(0) < 1e-6).all()):
        raise BundleError("the classifier gives the same logits for every image")
    alone = torch.cat([network(image[None]) for image in images])
    if not torch.allclose(alone, logits, rtol=0, atol=allowed):
        raise BundleError(
            f"the classifier answers one image and {PROBES} differently: is it in training mode?"
        )
    backwards = network(images.flip(0)).flip(0)
    if not torch.allclose(backwards, logits, rtol=0, atol=allowed):
        raise BundleError("the classifier's answer depends on the other images of a batch")
    return [
        f"logits [{PROBES}, {classes}], finite, no probabilities",
        f"batches of 1 and {PROBES} agree",
        "rows do not depend on each other",
    ]
