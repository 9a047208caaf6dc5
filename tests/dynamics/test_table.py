"""What a new dynamics needs: one file, and one row of the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from metastable import settings
from metastable.attacks.target import Eot, WhiteBox
from metastable.bundle import Bundle
from metastable.defense import defend
from metastable.dynamics import ScoreFunction
from metastable.dynamics.base import PUBLISHED, Adaptation, Dynamics, Kind, Normal, Row, wide
from metastable.dynamics.table import DYNAMICS
from metastable.engine.local import LocalEngine
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import SettingsError
from metastable.settings import Setting

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True)
class Halves(Kind):
    """Chains that go some share of the way to grey, until they are near."""

    name: ClassVar[str] = "grey"
    probe: ClassVar[Row] = (0.5,)
    draws: ClassVar[int] = 0
    stops: ClassVar[bool] = True

    def step(
        self,
        x: Tensor,
        score: ScoreFunction,
        columns: Sequence[Tensor],
        normal: Normal,
        adapt: Adaptation = PUBLISHED,
    ) -> tuple[Tensor, Tensor]:
        moved = ((x - 0.5).flatten(1).abs().amax(1) > 0.2).to(x.dtype)
        return x + wide(moved * columns[0]) * (0.5 - x), moved


@dataclass(frozen=True, kw_only=True)
class Grey(Dynamics):
    """A dynamics that the package does not have."""

    steps: int = 1
    share: float = 0.5
    name: ClassVar[str] = "grey"

    @property
    def kind(self) -> Kind:
        return Halves("")

    def row(self, flagged: bool) -> Row:
        return (self.share,)

    def injects(self, flagged: bool) -> float:
        return 0.01


@pytest.fixture
def grey(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setitem(DYNAMICS, "grey", Grey)
    text = (
        "default: a\ncaps: {chains: 8, steps: 8}\nsettings:\n"
        "  a: {dynamics: grey, chains: 3, steps: 8, share: 0.25}\n"
    )
    return dataclasses.replace(tiny, settings=settings.parse(text))


def test_one_class_pair_and_one_row_are_served_and_attacked(grey: Bundle) -> None:
    setting, flags = grey.settings["a"], torch.tensor([True, False])
    wanted = defend(IMAGES, [1, 2], setting, classifier=grey.classifier, scores=grey.scores, flagged=flags)
    assert wanted.steps.tolist() == [[4] * 3] * 2  # 0.5 x 0.75^4 is the first below 0.2
    assert float((wanted.purified - 0.5).abs().max()) < 0.21
    engine = LocalEngine(TorchRunner(grey.networks, grey.classifier), grey.settings, grey.shape)
    for row, answer in enumerate(engine.answer(IMAGES, [1, 2], setting, flags)):
        torch.testing.assert_close(answer.result.purified[0], wanted.purified[row], rtol=1e-4, atol=1e-5)
        assert answer.result.steps.tolist() == wanted.steps[row : row + 1].tolist()
    x = IMAGES.clone().requires_grad_(True)
    target = Eot(WhiteBox(setting, grey.classifier, torch.zeros_like), samples=2, gradient="exact")
    (gradient,) = torch.autograd.grad(target(x)[:, 0].sum(), x)
    assert gradient.abs().sum() > 0


def test_what_it_does_not_read_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"setting 'a' names .*'sigma'.* which langevin does not read"):
        Setting.of("a", "langevin", steps=3, sigma=0.1)
    with pytest.raises(SettingsError, match=r"names 'steps', which none does not read: it reads average$"):
        Setting.of("a", "none", steps=3)
    with pytest.raises(SettingsError, match=r"setting 'a': tau must be in \(0, 1\], not 2"):
        Setting.of("a", "langevin", steps=3, tau=2)


@pytest.mark.parametrize("name", sorted(DYNAMICS))
def test_every_row_says_what_its_parameters_are(name: str) -> None:
    """Each field that a settings file may have is described where it is declared."""
    kind = DYNAMICS[name]
    told = "".join(one.__doc__ or "" for one in kind.__mro__)
    for field in dataclasses.fields(kind):
        assert field.name in told, f"{name} does not describe {field.name}"


@pytest.mark.parametrize("name", sorted(set(DYNAMICS) - {"none"}))
def test_the_probe_has_the_parameters_of_a_chain(name: str) -> None:
    more = {"way": "bits", "level": 4} if name == "squeeze" else {}
    dynamics = Setting.of("a", name, steps=1, **more).dynamics
    kind = dynamics.kind
    assert kind is not None
    assert len(kind.probe) == len(dynamics.row(flagged=True)) == len(dynamics.row(flagged=False))
    assert hash(kind) == hash(dynamics.kind)


def test_fields_say_what_is_not_the_default(tiny: Bundle) -> None:
    for setting in tiny.settings.by_name.values():
        assert Setting.of(setting.name, setting.dynamics.name, **setting.fields()) == setting


WHOLE: dict[str, dict[str, str]] = {
    "none": {},
    "noise": {"steps": "1", "sigma": "0.1", "sigma_unflagged": "0.1"},
    "adp": {
        "network": "score",
        "steps": "1",
        "step_fraction": "0.5",
        "step_bounds": "[0.1, 1]",
        "stop": "0.1",
    },
    "langevin": {"network": "score", "steps": "1", "tau": "0.1", "eta": "1", "denoise": "0.1"},
    "malade": {"network": "score", "steps": "1", "alpha": "0.1", "kick": "0.1"},
    "reconstruction": {"steps": "1", "walk": "2", "iterations": "2", "rate": "0.1", "tau": "0.1", "eta": "1"},
    "squeeze": {"way": "jpeg", "level": "75", "steps": "1"},
}
STRANGE = (
    "[jpeg]",
    "{a: 1}",
    "true",
    ".nan",
    ".inf",
    "'x'",
    "1.5",
    "[1, 2]",
    "9" * 20,
    "[[1], [2]]",
    "2020-01-01",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DYNAMICS))
def test_strange_values_are_settings_or_a_settings_error(name: str) -> None:
    """Whatever stands in a file: no other error comes of it."""
    own = {"chains": "1", "average": "logits", "delta": "0.1", "mirror": "true"}
    given = {"dynamics": name, **WHOLE[name], **own}
    refused = 0
    for key in given:
        for value in STRANGE:
            line = ", ".join(f"{k}: {v}" for k, v in (given | {key: value}).items())
            text = f"default: a\ncaps: {{chains: 8, steps: 8}}\nsettings:\n  a: {{{line}}}\n"
            try:
                settings.parse(text)
            except SettingsError:
                refused += 1
    assert refused >= 6 * len(given)
