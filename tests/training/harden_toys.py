"""Small networks and images for the tests of `harden`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from metastable import bundle, datasets
from metastable.networks.compact import CompactResNet
from metastable.networks.score import ScoreNetwork
from metastable.training.harden_config import HardenConfig
from metastable.training.harden_pipeline import Pipeline, TrainingWalk

SETTINGS = "default: none\ncaps: {chains: 1, steps: 1}\nsettings:\n  none: {dynamics: none}\n"
COMPACT = {"widths": [4, 6, 8], "flip_average": True}
SCORE = {"channels": 3, "widths": [4, 4, 4], "blocks": 1}


def pictures(name: str, root: Path, split: str) -> datasets.ImageSet:
    """Eighty images of 16x16: bright on the left for class 0, on the right for class 1."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    images = torch.randint(60, 120, (80, 3, 16, 16), generator=rng, dtype=torch.uint8)
    images[labels == 0, :, :, :8] += 100
    images[labels == 1, :, :, 8:] += 100
    return datasets.ImageSet(name, split, images, labels, datasets.CIFAR10_CLASSES)


def networks(seed: int = 0) -> tuple[CompactResNet, ScoreNetwork]:
    torch.manual_seed(seed)
    classifier = CompactResNet(widths=(4, 6, 8), flip_average=True)
    score = ScoreNetwork(3, (4, 4, 4))
    # Batch norm that has seen something, so that eval mode and training differ.
    classifier.train()(torch.rand(64, 3, 16, 16))
    return classifier.eval(), score


def write_bundle(folder: Path) -> Path:
    classifier, score = networks()
    bundle.write(
        folder,
        name="small",
        version="1",
        classes=list(datasets.CIFAR10_CLASSES),
        shape=(3, 16, 16),
        networks={"classifier": (classifier, COMPACT), "score": (score, SCORE)},
        settings=SETTINGS,
        anomaly=None,
    )
    return folder


def pipeline(moves: tuple[str, ...] = ("purifier", "classifier"), **dynamics: Any) -> Pipeline:
    classifier, score = networks()
    return Pipeline(classifier, score, TrainingWalk(**dynamics), moves)


def config(folder: Path | str = "", **changes: Any) -> HardenConfig:
    small = HardenConfig(
        bundle=str(folder),
        batch=16,
        updates=6,
        attack_steps=2,
        held_out=16,
        check_every=3,
        check_images=8,
        check_steps=2,
        check_eot=2,
        log_every=2,
        flip=False,
        pad=1,
        bf16=False,
        ema=0.9,
    )
    return dataclasses.replace(small, **changes)
