"""What the library refuses, and that nothing is left of it."""

import asyncio
import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metastable
from metastable import library, questions
from metastable.bundle import Bundle
from metastable.engine.engine import EngineLimits
from metastable.engine.inspection import Raw
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import (
    BundleError,
    DeadlineExceeded,
    Draining,
    InvalidImage,
    InvalidOption,
    Overloaded,
    SettingsError,
    UnsupportedImage,
)
from metastable.library import Defense


def test_what_cannot_be_asked_is_said(defense: Defense, images: Tensor) -> None:
    with pytest.raises(InvalidOption, match="one of none, fast, softmax, langevin, not 'magic'"):
        defense(images, setting="magic")
    with pytest.raises(InvalidOption, match="2 seeds for 3 images"):
        defense(images, seeds=[1, 2])
    with pytest.raises(InvalidOption, match="every seed must lie in"):
        defense(images, seeds=[1, 2, -3])
    for deadline in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidOption, match="deadline must be a positive number"):
            defense(images, deadline=deadline)
    with pytest.raises(InvalidImage, match=r"shape \[3, 3, 31, 32\], this bundle takes \[N, 3, 32, 32\]"):
        defense(images[:, :, 1:])
    with pytest.raises(DeadlineExceeded, match="allow more time"):
        defense(images, deadline=1e-9)


def test_what_cannot_be_loaded_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="setting must be one of none, fast"):
        metastable.load(tiny_folder, settings=["magic"])
    with pytest.raises(InvalidOption, match="threads"):
        metastable.load(tiny_folder, threads=-1)
    with pytest.raises(SettingsError, match="runner must be one of auto, torch"):
        metastable.load(tiny_folder, runner="magic")
    with pytest.raises(BundleError, match="there is no artifact onnx in"):
        metastable.load(tiny_folder, artifacts=tmp_path)


def test_without_a_calibration_nothing_is_judged(tiny: Bundle) -> None:
    bare = dataclasses.replace(tiny, anomaly=None)
    with pytest.raises(BundleError, match="no anomaly calibration"):
        Defense(bare, TorchRunner(tiny.networks, tiny.classifier))


def test_a_closed_defense_takes_no_questions(tiny_folder: Path, images: Tensor) -> None:
    made = metastable.load(tiny_folder, runner="torch")
    made.close()
    with pytest.raises(Draining, match="this defense is closed: load the bundle again"):
        made(images)


def test_nothing_is_read_of_a_question_that_is_not_admitted(
    tiny: Bundle, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(questions, "batch_of", lambda given, _: read.append(len(given)))
    monkeypatch.setattr(library.assembly, "wide", lambda _: EngineLimits(jobs=2))
    with Defense(tiny, TorchRunner(tiny.networks, tiny.classifier)) as made:
        made.prepare("none")
        with pytest.raises(Overloaded):
            made(images, setting="none")
        with pytest.raises(Overloaded):
            asyncio.run(made.ask(images, setting="none"))
        assert read == []
        assert made._driver._engine.admission.out == 0


def test_a_question_that_fails_gives_its_permits_back(tiny: Bundle, images: Tensor) -> None:
    with Defense(tiny, TorchRunner(tiny.networks, tiny.classifier)) as made:
        for wrong in (images + 2, images[:, :1], [b"no image"]):
            with pytest.raises((InvalidImage, UnsupportedImage)):
                made(wrong, setting="none")
        with pytest.raises(InvalidOption):
            made(images, setting="none", seeds=[1])
        with pytest.raises(DeadlineExceeded):
            made(images, setting="fast", deadline=1e-9)
        assert made._driver._engine.admission.out == 0


@pytest.mark.slow
def test_arguments_of_another_type_are_refused_in_one_sentence() -> None:
    with pytest.raises(InvalidOption, match="threads must be 0, for all cores, or up to"):
        metastable.load("cifar10", threads=10**9)
    with pytest.raises(InvalidOption, match=r"settings must be a list of names: \('fast',\)"):
        metastable.load("cifar10", settings="fast")
    with metastable.load("cifar10") as defense:
        image = torch.rand(1, 3, 32, 32)
        for seeds in ([1.5], ["1"], "1", [True], 1, [None], {1: 2}):
            with pytest.raises(InvalidOption, match="seeds must be whole numbers"):
                defense(image, setting="none", seeds=seeds)  # type: ignore[arg-type]
        for deadline in ("3", [1], True, 10**400, float("nan")):
            with pytest.raises(InvalidOption, match="deadline must be a positive number of seconds"):
                defense(image, setting="none", deadline=deadline)  # type: ignore[arg-type]
        same = [defense(image, setting="none", seeds=s) for s in ([7], np.array([7]))]
        assert same[0] == same[1]


def test_a_wrong_shape_is_refused_before_anything_is_admitted(
    defense: Defense, monkeypatch: pytest.MonkeyPatch
) -> None:
    def admitted(*_: object) -> None:
        raise AssertionError("a permit was given")

    monkeypatch.setattr(defense._driver, "admit", admitted)
    for wrong in (np.zeros((300_000, 1), np.float32), torch.zeros(4, 3, 8, 8), np.array(0.5, np.float32)):
        with pytest.raises(InvalidImage, match="shape"):
            defense(wrong)
    with pytest.raises(InvalidImage, match="of type uint8"):
        defense(np.zeros((4, 3, 32, 32), np.uint8))


@pytest.mark.timeout(60)
def test_a_deadline_ends_the_look_at_the_images_too(
    defense: Defense, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()

    def slow(images: Tensor) -> list[Raw]:
        free.wait(50)
        raise RuntimeError("nobody waits for this")

    monkeypatch.setattr(defense, "_inspector", slow)
    try:
        with pytest.raises(DeadlineExceeded):
            defense(images, deadline=0.2)

        async def ask() -> None:
            await defense.ask(images, deadline=0.2)

        with pytest.raises(DeadlineExceeded):
            asyncio.run(ask())
    finally:
        free.set()


@pytest.mark.timeout(30)
def test_a_device_is_no_image(defense: Defense) -> None:
    with pytest.raises(InvalidImage, match="not a regular file"):
        defense(["/dev/zero"])
    with pytest.raises(InvalidImage, match="null byte"):
        defense(["a\0b"])


@pytest.mark.parametrize("wrong", [{"bundle": None}, {"bundle": 3}, {"bundle": ""}, {"settings": None},
                                   {"settings": [None]}, {"threads": True}])  # fmt: skip
def test_loading_with_arguments_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=f"{next(iter(wrong))} must be"):
        metastable.load(**({"bundle": "cifar10"} | wrong))
