"""What the library answers."""

import asyncio
import doctest
import gc
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

import metastable
from handlers.requests import Request
from handlers.service import Service
from metastable import bundle, library
from metastable.bundle import Bundle
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import (
    BundleError,
    EngineFailure,
)
from metastable.library import Defense
from metastable.serving.metrics import Metrics


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_the_example_of_load_is_true(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    found = doctest.testmod(library)
    assert found.attempted > 3
    assert found.failed == 0


def test_every_image_gets_its_verdict(defense: Defense, images: Tensor) -> None:
    verdicts = defense(images, setting="fast")
    assert len(verdicts) == 3
    for verdict in verdicts:
        assert verdict.class_name == defense.bundle.classes[verdict.label]
        assert verdict.probability == max(verdict.probabilities)
        assert sum(verdict.probabilities) == pytest.approx(1, abs=1e-5)
        assert verdict.chains == 3
        assert verdict.setting == "fast"
        assert verdict.standard_error is not None
        assert not verdict.late
        assert verdict.flagged is (verdict.score > verdict.threshold)
        assert verdict.unpurified_name == defense.bundle.classes[verdict.unpurified]
    assert defense([]) == []


def test_one_chain_has_no_error_and_needs_no_noise(defense: Defense, images: Tensor) -> None:
    for verdict in defense(images, setting="none"):
        assert (verdict.standard_error, verdict.chains, verdict.label) == (None, 1, verdict.unpurified)


def test_the_same_seeds_give_the_same_verdicts_and_none_are_secret(defense: Defense, images: Tensor) -> None:
    def margins(seeds: list[int] | None) -> list[float]:
        return [verdict.margin for verdict in defense(images, setting="fast", seeds=seeds)]

    assert margins([1, 2, 3]) == pytest.approx(margins([1, 2, 3]), abs=1e-4)
    assert margins([1, 2, 3]) != pytest.approx(margins([4, 5, 6]), abs=1e-4)
    assert margins(None) != pytest.approx(margins(None), abs=1e-4)


def test_event_loops_get_the_same(defense: Defense, images: Tensor) -> None:
    async def both() -> list[list[library.Verdict]]:
        return await asyncio.gather(*(defense.ask(images, setting="fast", seeds=[1, 2, 3]) for _ in range(2)))

    direct = defense(images.numpy(), setting="fast", seeds=[1, 2, 3])
    for verdicts in asyncio.run(both()):
        assert [v.margin for v in verdicts] == pytest.approx([v.margin for v in direct], abs=1e-4)


def test_a_task_that_is_cancelled_leaves_the_defense_as_it_was(defense: Defense, images: Tensor) -> None:
    async def give_up() -> None:
        task = asyncio.create_task(defense.ask(images.repeat(50, 1, 1, 1), setting="langevin"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert len(defense(images, setting="fast")) == 3


@pytest.mark.slow
def test_the_server_says_the_same(defense: Defense, tiny: Bundle, root: Path) -> None:
    image = (root / "samples" / "cat.png").read_bytes()
    runner = TorchRunner(tiny.networks, tiny.classifier)
    service = Service(tiny, Metrics(CollectorRegistry()), runner, allow_seed=True)
    headers = {"X-Metastable-Setting": "fast", "X-Metastable-Seed": "7"}
    [response] = service.answer([Request("1", headers, {"body": image})])
    body = json.loads(response.body)
    [verdict] = defense([root / "samples" / "cat.png"], setting="fast", seeds=[7])
    assert body["label"] == verdict.label
    assert body["margin"]["value"] == pytest.approx(verdict.margin, abs=1e-4)
    assert body["anomaly"]["score"] == pytest.approx(verdict.score, abs=1e-4)
    assert body["top"][0]["probability"] == pytest.approx(verdict.probability, abs=1e-4)


def test_a_failing_runner_fails_the_question_and_not_the_defense(tiny: Bundle, images: Tensor) -> None:
    class Breaks(TorchRunner):
        broken = False

        def classify(self, x: Tensor) -> Tensor:
            if self.broken:
                raise RuntimeError("the device is gone")
            return super().classify(x)

    runner = Breaks(tiny.networks, tiny.classifier)
    with Defense(tiny, runner) as made:
        made.prepare("none")
        runner.broken = True
        with pytest.raises(EngineFailure, match="failed to look at the images"):
            made(images, setting="none")
        runner.broken = False
        assert len(made(images, setting="none")) == 3


def test_it_says_what_was_loaded(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "metastable"), metastable.load(tiny_folder, runner="torch") as made:
        for part in ("tiny", "1.2", made.bundle.digest[:12], "none, fast, softmax", "default fast", "torch"):
            assert part in repr(made)
        assert repr(made) in caplog.text


def test_purified_images_are_means_over_chains(defense: Defense, images: Tensor) -> None:
    found = defense.purify(images, setting="fast", seeds=[1, 2, 3])
    verdicts = defense(images, setting="fast", seeds=[1, 2, 3])
    for (verdict, purified), same, image in zip(found, verdicts, images, strict=True):
        assert verdict.margin == pytest.approx(same.margin, abs=1e-4)
        assert purified.shape == image.shape
        assert not torch.equal(purified, image)
    for (_, untouched), image in zip(defense.purify(images, setting="none"), images, strict=True):
        assert torch.equal(untouched, image)


def test_a_forgotten_defense_ends_its_thread(tiny: Bundle) -> None:
    before = threading.active_count()
    made = Defense(tiny, TorchRunner(tiny.networks, tiny.classifier))
    assert threading.active_count() == before + 1
    del made
    gc.collect()
    assert threading.active_count() == before


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_exported_graphs_are_taken_if_they_are_of_the_bundle(root: Path) -> None:
    graphs = root / "model_store" / "artifacts" / "cifar10"
    with metastable.load("cifar10", runner="onnx-int8", artifacts=graphs, settings=["fast"]) as made:
        assert made.runner == "onnx-int8"
        assert made([root / "samples" / "cat.png"], setting="fast")[0].class_name == "cat"
    with pytest.raises(BundleError, match="of other weights"):
        metastable.load("cifar10-hardened", runner="onnx-int8", artifacts=graphs)


@pytest.mark.usefixtures("threads")
def test_threads_are_those_asked_for(tiny_folder: Path) -> None:
    with metastable.load(tiny_folder, runner="torch", threads=1):
        assert torch.get_num_threads() == 1


def test_a_large_batch_is_looked_at_in_pieces(defense: Defense) -> None:
    many = np.random.default_rng(0).random((library.PIECE + 1, 3, 32, 32))
    assert len(defense(many, setting="none")) == library.PIECE + 1


def test_loading_and_bundles_agree(defense: Defense, tiny_folder: Path) -> None:
    assert defense.bundle.digest == bundle.load(tiny_folder).digest
    assert defense.settings == ("none", "fast", "softmax", "langevin")
