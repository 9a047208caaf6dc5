"""Seeds of all commands are of one kind, and others are refused in one sentence."""

from __future__ import annotations

import pytest

from metastable import cli, console
from metastable.cli.completion import every


def test_every_option_that_is_a_seed_is_read_as_one() -> None:
    found = [
        (one.prog.removeprefix("metastable "), action.type)
        for one in every(cli.parser(lambda _: True))
        for action in one._actions
        if any(option.endswith("seed") for option in action.option_strings)
    ]
    assert {"calibrate", "train score", "evaluate figure logits", "loadtest run"} <= {
        name for name, _ in found
    }
    assert [name for name, kind in found if kind is not console.seed] == []


@pytest.mark.parametrize("text", ["-1", "1.5", "", "one", "9223372036854775808", "²", "9" * 5000])
def test_what_is_no_seed_is_one_sentence(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.main(["evaluate", "honest", "--seed", text])
    assert refused.value.code == 2
    said = f"error: argument --seed: a seed is a whole number from 0 to 2^63 - 1, not {text!r} ("
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_seeds_are_whole_numbers_from_0() -> None:
    assert [console.seed(text) for text in ("0", "7", "9223372036854775807")] == [0, 7, 2**63 - 1]
