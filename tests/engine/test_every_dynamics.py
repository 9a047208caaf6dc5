"""Every dynamics that a setting can name: the engine, on each kind of runner, against the reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from export import graphs
from handlers.runner import runner_for
from metastable import settings
from metastable.attacks.target import Eot, WhiteBox
from metastable.bundle import Bundle
from metastable.defense import Defended, defend
from metastable.engine.local import LocalEngine
from metastable.engine.runners import Batch, Runner
from metastable.engine.runners.artifacts import GRAPHS
from metastable.engine.runners.onnx_runner import OnnxRunner
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.networks.autoencoder import Autoencoder

pytestmark = pytest.mark.slow

SETTINGS = """
default: none
caps: {chains: 8, steps: 8}
settings:
  none: {dynamics: none}
  noise: {dynamics: noise, chains: 3, steps: 1, sigma: 0.3, sigma_unflagged: 0.03}
  warm: {dynamics: langevin, network: energy, chains: 2, steps: 3, tau: 0.01, eta: 0.5, average: log_softmax}
  denoised: {dynamics: langevin, network: energy, chains: 2, steps: 4, tau: 0.01, denoise: 0.05}
  one_step: {dynamics: langevin, network: score, chains: 2, steps: 1, tau: 0.01, denoise: 1.0}
  malade: {dynamics: malade, network: autoencoder, chains: 2, steps: 4, alpha: 0.03, kick: 0.05}
  adp: {dynamics: adp, chains: 2, steps: 2, sigma: 0.2, step_fraction: 0.5}
  jpeg: {dynamics: squeeze, way: jpeg, level: 50}
  bits: {dynamics: squeeze, way: bits, level: 3}
  median: {dynamics: squeeze, way: median, level: 2}
"""
ROLLED = (
    "  rolled: {dynamics: reconstruction, chains: 2, steps: 2, walk: 2, iterations: 2, rate: 0.2, tau: 0.3}\n"
)
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
SEEDS, FLAGS = [11, 12], torch.tensor([True, False])


@pytest.fixture(scope="module")
def world(tiny: Bundle) -> Bundle:
    """The small bundle with an autoencoder."""
    torch.manual_seed(1)
    autoencoder = Autoencoder(3).eval().requires_grad_(False)
    networks = {**tiny.networks, "autoencoder": autoencoder}
    return dataclasses.replace(tiny, networks=networks, settings=settings.parse(SETTINGS))


def rolled(world: Bundle) -> Bundle:
    return dataclasses.replace(world, settings=settings.parse(SETTINGS + ROLLED))


def reference(bundle: Bundle, name: str) -> Defended:
    return defend(
        IMAGES,
        SEEDS,
        bundle.settings[name],
        classifier=bundle.classifier,
        scores=bundle.scores,
        flagged=FLAGS,
    )


def check(bundle: Bundle, runner: Runner) -> None:
    engine = LocalEngine(runner, bundle.settings, bundle.shape)
    for name in bundle.settings.names:
        wanted = reference(bundle, name)
        for row, answer in enumerate(engine.answer(IMAGES, SEEDS, bundle.settings[name], FLAGS)):
            torch.testing.assert_close(
                answer.result.outputs[0], wanted.outputs[row], rtol=1e-3, atol=2e-4, msg=name
            )
            torch.testing.assert_close(
                answer.result.purified[0], wanted.purified[row], rtol=1e-3, atol=2e-4, msg=name
            )
            assert answer.result.steps.tolist() == wanted.steps[row : row + 1].tolist()


def test_on_pytorch_they_are_the_reference(world: Bundle) -> None:
    check(rolled(world), TorchRunner(world.networks, world.classifier))


@pytest.fixture(scope="module")
def exported(world: Bundle, tiny_graphs: dict[str, bytes]) -> dict[str, bytes]:
    scored = graphs.Scored(world.networks["autoencoder"])
    return {**tiny_graphs, "autoencoder": graphs.export(scored, world.shape, "score")}


def test_on_exported_graphs_they_are_the_reference(world: Bundle, exported: dict[str, bytes]) -> None:
    check(world, OnnxRunner(exported, threads=1))


def test_a_reconstruction_needs_pytorch_and_auto_knows(world: Bundle, exported: dict[str, bytes]) -> None:
    setting = rolled(world).settings["rolled"]
    kind = setting.dynamics.kind
    assert kind is not None
    batch = Batch(IMAGES, [(0, 0), (0, 1)], [0, 0], [setting.dynamics.row(flagged=False)] * 2)
    with pytest.raises(RuntimeError, match="no derivative of a score, which reconstruction needs: choose"):
        OnnxRunner(exported, threads=1).advance(kind, batch, 1)
    threads = torch.get_num_threads()
    assert isinstance(runner_for(rolled(world), {GRAPHS: exported}, "auto", threads), TorchRunner)


def test_the_flag_chooses_the_noise(world: Bundle) -> None:
    spread = (reference(world, "noise").purified - IMAGES).flatten(1).std(1)
    assert float(spread[0] / spread[1]) > 4


class Sides(torch.nn.Module):
    """Brightness of the left and of the right half: mirroring an image exchanges its two outputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([half.flatten(1).mean(1) for half in x.chunk(2, dim=3)], 1)


def test_every_second_chain_is_classified_mirrored(world: Bundle) -> None:
    text = "default: a\ncaps: {chains: 8, steps: 8}\nsettings:\n"
    line = "  %s: {dynamics: noise, steps: 1, sigma: 0.1, chains: 5, mirror: %s}\n"
    bundle = dataclasses.replace(
        world,
        classifier=Sides(),
        settings=settings.parse(text + line % ("a", "true") + line % ("b", "false")),
    )
    seen, plain = reference(bundle, "a").outputs, reference(bundle, "b").outputs
    assert torch.equal(seen[:, ::2], plain[:, ::2])
    assert torch.allclose(seen[:, 1::2], plain[:, 1::2].flip(2))
    check(bundle, TorchRunner(bundle.networks, bundle.classifier))
    box = WhiteBox(bundle.settings["a"], bundle.classifier, torch.zeros_like)
    both = Eot(box, samples=400, gradient="exact")(IMAGES)
    assert float((both[:, 0] - both[:, 1]).abs().max()) < 0.002  # as bright on either side, on average
    assert float((plain[:, :, 0] - plain[:, :, 1]).mean(1).abs().max()) > 0.002
