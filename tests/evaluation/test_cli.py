import argparse
import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metastable import anomaly, bundle
from metastable.evaluation import cli


@given(st.fractions(min_value=0, max_value=10), st.integers(1, 1000))
def test_a_ratio_is_exact(above: Fraction, below: int) -> None:
    assert cli.ratio(f"{above.numerator}/{below}") == Fraction(above.numerator, below)


def test_lengths_are_written_as_people_write_them() -> None:
    assert cli.fraction("8/255") == 8 / 255
    assert cli.fraction("0.5/255") == 0.5 / 255
    assert cli.fractions("0.25,1/2") == [0.25, 0.5]
    assert cli.whole_numbers("1,150") == [1, 150]


@pytest.mark.parametrize("text", ["", "a", "1/0", "1/-2", "1/2/3", "8/", "nan"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        cli.ratio(text)


@pytest.mark.parametrize("text", ["0", "1,-1", "1.5", ""])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        cli.whole_numbers(text)


def test_a_settings_file_drops_the_shift_of_a_setting_that_it_changes(tiny: bundle.Bundle, tiny_folder: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    limit = anomaly.threshold_of(torch.linspace(0, 1, 99), false_positive_rate=0.1, data={})
    both = dataclasses.replace(tiny, shifts={"fast": limit, "softmax": limit})
    monkeypatch.setattr(bundle, "load", lambda folder: both)
    file = tmp_path / "s.yaml"
    text = (tiny_folder / "settings.yaml").read_text()
    assert "chains: 3, steps: 2, sigma: 0.2," in text
    file.write_text(text.replace("chains: 3, steps: 2, sigma: 0.2,", "chains: 3, steps: 2, sigma: 0.3,"))
    found = cli.load_bundle(argparse.Namespace(bundle=tiny_folder, settings_file=file))
    assert set(found.shifts) == {"softmax"}


def test_settings_may_have_spaces_between_them(tiny: bundle.Bundle) -> None:
    assert cli.chosen_settings("softmax, fast", tiny) == ("softmax", "fast")
