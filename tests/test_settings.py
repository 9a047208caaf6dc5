from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastable import settings
from metastable.dynamics.adp import Adp
from metastable.dynamics.langevin import Langevin
from metastable.errors import SettingsError

GOOD = """
default: a
caps: {chains: 8, steps: 10}
settings:
  a: {dynamics: none}
  b: {dynamics: adp, chains: 8, steps: 10, sigma: 0.25, step_bounds: [0.1, 1.0]}
"""


def test_a_good_file() -> None:
    loaded = settings.parse(GOOD)
    assert loaded.names == ("a", "b")
    assert loaded.default == "a"
    assert loaded["b"].dynamics == Adp(steps=10, sigma=0.25, step_bounds=(0.1, 1.0))
    assert loaded["b"].purifies
    assert not loaded["a"].purifies


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("default: a", "default: z", "default"),
        ("chains: 8, steps: 10}", "chains: 8}", "caps"),
        ("chains: 8, steps: 10}\nsettings", "chains: 7, steps: 10}\nsettings", "caps"),
        ("sigma: 0.25", "sigma: 2", "sigma"),
        ("sigma: 0.25", "sigma: .nan", "sigma"),
        ("sigma: 0.25", "sigma: yes", "sigma"),
        ("sigma: 0.25", "sigmas: 0.25", "sigmas"),
        ("dynamics: adp", "dynamics: magic", "dynamics"),
        ("chains: 8, steps: 10, sigma", "chains: 0, steps: 10, sigma", "chains"),
        ("chains: 8, steps: 10, sigma", "chains: 8, steps: 0, sigma", "steps"),
        ("chains: 8, steps: 10, sigma", "chains: 1.5, steps: 1, sigma", "chains"),
        ("[0.1, 1.0]", "[1.0, 0.1]", "step_bounds"),
        ("sigma: 0.25", "network: classifier", "network"),
        ("sigma: 0.25", "eta: -1", "eta"),
        ("sigma: 0.25", "alpha: 0", "alpha"),
        ("sigma: 0.25", "kick: 2", "kick"),
        ("sigma: 0.25", "walk: 0", "walk"),
        ("sigma: 0.25", "iterations: 100000", "iterations"),
        ("sigma: 0.25", "rate: 0", "rate"),
        ("sigma: 0.25", "average: mode", "average"),
        (
            "{dynamics: adp, chains: 8, steps: 10, sigma: 0.25, step_bounds: [0.1, 1.0]}",
            "{dynamics: noise, steps: 2}",
            "steps must be 1, where there is only noise",
        ),
        ("dynamics: adp", "dynamics: langevin", "'sigma'.*which langevin does not read"),
        ("[0.1, 1.0]", "3", "step_bounds"),
        ("  b:", "  b-c:", "name"),
        ("{dynamics: none}", "none", "dynamics"),
        ("sigma: 0.25", "name: b", "name"),
        ("sigma: 0.25", "cls: b", "cls"),
        ("sigma: 0.25", "1: b", "no text"),
        ("settings:", "setting:", "keys"),
        ("settings:", "settings: [", r"YAML: .*, in line \d+, column \d+$"),
        ("  b:", "  a:", "not valid YAML: the name 'a' is given twice, in line 6, column 3$"),
        ("sigma: 0.25", "sigma: 0.25, sigma: 0.3", "the name 'sigma' is given twice"),
        ("{dynamics: none}", "{dynamics: none, chains: 4}", "names 'chains', which none does not read"),
        ("none}", "squeeze, way: bits, level: 3, mirror: true}", "names 'mirror', which squeeze does not"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(SettingsError, match=message):
        settings.parse(GOOD.replace(old, new, 1))


@given(st.text(max_size=60))
def test_any_text_is_settings_or_a_settings_error(text: str) -> None:
    with pytest.raises(SettingsError):
        settings.parse(text)


def test_long_steps_walk_as_long_as_the_papers_chains(root: Path) -> None:
    shipped = settings.load(root / "model_store" / "langevin-settings.yaml")
    took = {}
    for name in shipped.names[1:]:
        moves = shipped[name].dynamics
        assert isinstance(moves, Langevin)
        took[name] = moves.steps * moves.tau**2
    assert took["langevin"] == pytest.approx(took["convergent"], rel=0.1)
    assert took["langevin_50"] == pytest.approx(2 * took["langevin"])
    assert took["langevin_500"] == pytest.approx(5 * took["langevin"])
    assert (shipped["convergent"].steps, shipped["convergent"].chains) == (1500, 150)
