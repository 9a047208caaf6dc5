import importlib.util

import pytest
import torch
from torch import Tensor

from metastable.bundle import Bundle
from metastable.engine.runners import choose
from metastable.engine.runners.artifacts import GRAPHS
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import EngineFailure, MissingPackage, SettingsError


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` chooses must not depend on the machine that the tests run on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def parts(tiny: Bundle, graphs: dict[str, bytes] | None = None) -> choose.Parts:
    artifacts = {GRAPHS: graphs} if graphs else {}
    return choose.Parts(tiny.networks, tiny.classifier, artifacts, tiny.shape, digest=tiny.digest)


def test_an_unknown_name_is_refused_with_the_known_ones(tiny: Bundle) -> None:
    with pytest.raises(SettingsError, match="one of auto, torch, "):
        choose.make("magic", parts(tiny))


def test_a_missing_runtime_says_what_to_do(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def find(name: str) -> object:
        return None if name == "openvino" else found(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(MissingPackage, match="openvino needs the package openvino: install it, or"):
        choose.make("openvino", parts(tiny, {"classifier": b""}))


@pytest.mark.parametrize("name", [name for name, maker in choose.MAKERS.items() if maker.artifact])
def test_missing_artifacts_say_what_to_do(tiny: Bundle, name: str) -> None:
    wanted = f"{name} needs artifact {choose.artifact_of(name)}, which is not here: .*make archive"
    with pytest.raises(MissingPackage, match=wanted):
        choose.make(name, parts(tiny))


def test_auto_chooses_among_exact_runners_only() -> None:
    assert {choose.MAKERS[name].precision for name in choose.CANDIDATES} == {"f32"}


def test_without_graphs_auto_is_torch(tiny: Bundle) -> None:
    assert isinstance(choose.make("auto", parts(tiny)), TorchRunner)


def test_auto_takes_the_fastest_and_remembers_it(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(TorchRunner):
        def __init__(self, name: str) -> None:
            super().__init__(tiny.networks, tiny.classifier)
            self.name = name

    timed: list[str] = []

    def seconds(runner: Named, *_: object) -> float:
        timed.append(runner.name)
        return {"openvino": 0.2, "onnx": 0.1, "torch": 0.3}[runner.name]

    monkeypatch.setattr(choose, "_seconds", seconds)
    makers = {
        n: choose.Maker(lambda *_, n=n: Named(n), artifact=choose.artifact_of(n)) for n in choose.CANDIDATES
    }
    monkeypatch.setattr(choose, "MAKERS", makers)
    cache: dict[str, str] = {}
    graphs = {"classifier": b"x"}
    assert choose.make("auto", parts(tiny, graphs), cache).name == "onnx"
    assert sorted(timed) == ["onnx", "openvino", "torch"]
    assert choose.make("auto", parts(tiny, graphs), cache).name == "onnx"
    assert len(timed) == 3
    cache.update(dict.fromkeys(cache, "gone"))
    assert choose.make("auto", parts(tiny, graphs), cache).name == "onnx"
    assert len(timed) == 6


@pytest.mark.parametrize(("each", "tried"), [(1.0, 3), (5.0, 2), (9.0, 1)])
def test_auto_tries_no_more_candidates_than_it_has_time_for(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, each: float, tried: int
) -> None:
    now, budgets = [0.0], list[float]()

    def seconds(runner: TorchRunner, parts: choose.Parts, budget: float, clock: object) -> float:
        budgets.append(budget)
        now[0] += each
        return 1.0 / len(budgets)  # the later the faster

    made = {
        n: choose.Maker(
            lambda *_: TorchRunner(tiny.networks, tiny.classifier), artifact=choose.artifact_of(n)
        )
        for n in choose.CANDIDATES
    }
    monkeypatch.setattr(choose, "_seconds", seconds)
    monkeypatch.setattr(choose, "MAKERS", made)
    cache: dict[str, str] = {}
    choose.make("auto", parts(tiny, {"classifier": b"x"}), cache, clock=lambda: now[0])
    assert len(budgets) == tried
    assert list(cache.values()) == [choose.CANDIDATES[tried - 1]]
    assert budgets[0] == pytest.approx(choose.BUDGET / 3)


def test_auto_passes_over_a_runner_that_fails(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        runner = choose.make("auto", parts(tiny, {"classifier": b"no graph"}))
    assert isinstance(runner, TorchRunner)
    assert "openvino cannot run this bundle" in caplog.text
    monkeypatch.setitem(choose.MAKERS, "torch", choose.Maker(lambda *_: 1 / 0))
    with pytest.raises(EngineFailure, match="no runner"):
        choose.make("auto", parts(tiny))


class Timed(TorchRunner):
    """Takes `each` seconds of a clock that stands still otherwise, an image and network."""

    def __init__(self, tiny: Bundle, each: float) -> None:
        super().__init__(tiny.networks, tiny.classifier)
        self.each, self.now = each, 0.0
        self.ran: list[tuple[str, int]] = []

    def score(self, network: str, x: Tensor) -> Tensor:
        self.ran.append((network, len(x)))
        self.now += self.each * len(x)
        return super().score(network, x)

    def classify(self, x: Tensor) -> Tensor:
        self.ran.append(("classifier", len(x)))
        self.now += self.each * len(x)
        return super().classify(x)


@pytest.mark.parametrize(
    ("each", "images", "runs"),
    [(0.001, choose.PROBE, 2 + 1 + choose.REPEATS), (0.05, 1, choose.REPEATS + 1), (2.0, 1, 2)],
)
def test_the_measurement_runs_every_network_as_often_as_there_is_time(
    tiny: Bundle, each: float, images: int, runs: int
) -> None:
    runner = Timed(tiny, each)
    names = [*tiny.networks, "classifier"]
    seconds = choose._seconds(runner, parts(tiny), 2.0, lambda: runner.now)
    assert seconds == pytest.approx(len(names) * each)
    assert max(size for _, size in runner.ran) == images
    assert [name for name, _ in runner.ran] == names * runs
    assert runner.now <= (2.0 if runs > 2 else 2 * len(names) * each)
    assert torch.is_grad_enabled()
