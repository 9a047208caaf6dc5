"""The shipped MNIST bundles: every defense in them answers a request."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client import CollectorRegistry

from handlers.requests import Request
from handlers.service import Service
from metastable import bundle
from metastable.bundle import Bundle
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.serving.metrics import Metrics


def one() -> bytes:
    """A digit 1, drawn by hand, as PNG."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[5:23, 13:16] = 250
    pixels[5:23, [12, 16]] = 90
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def mnist(root: Path) -> Bundle:
    return bundle.load(root / "model_store" / "mnist")


def test_the_settings_are_the_papers_defenses(mnist: Bundle) -> None:
    assert {s.dynamics.name for s in mnist.settings.by_name.values()} >= {
        *("none", "noise", "adp", "langevin", "malade", "reconstruction")
    }


@pytest.mark.slow
@pytest.mark.timeout(600)  # a busy core takes a minute: reconstruction differentiates through its steps
@pytest.mark.parametrize("name", ["mnist", "mnist-purified"])
def test_every_setting_answers_a_request_by_its_name(root: Path, name: str) -> None:
    served = bundle.load(root / "model_store" / name)
    service = Service(
        served,
        Metrics(CollectorRegistry(), settings=served.settings.names),
        TorchRunner(served.networks, served.classifier),
    )
    for setting in served.settings.names:
        # One after the other: together they may be more seconds of work than may wait, on a busy machine.
        request = Request(setting, {"X-Metastable-Setting": setting}, {"body": bytearray(one())})
        [response] = service.answer([request])
        assert response.status == 200, setting
        body = json.loads(response.body)
        assert (body["setting"], body["class"]) == (setting, "1")
        assert body["chains"] == served.settings[setting].chains


@pytest.mark.slow
def test_another_classifier_stands_behind_the_same_networks(mnist: Bundle, root: Path) -> None:
    madry = bundle.load(root / "model_store" / "mnist-madry")
    assert madry.settings == mnist.settings
    x = torch.rand(2, 1, 28, 28)
    for name, score in mnist.scores.items():
        assert torch.equal(madry.scores[name](x), score(x))
    assert not torch.equal(madry.classifier(x), mnist.classifier(x))
