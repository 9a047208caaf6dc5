from __future__ import annotations

from pathlib import Path

import pytest

from metastable.errors import SettingsError
from metastable.serving.policy.keeper import Keeper
from metastable.serving.policy.values import Policy

TEXT = "split: {arms: {a: {setting: fast, weight: 1}, b: {setting: none, weight: 1}}}"
KEYS = [str(i) for i in range(64)]


def arms(keeper: Keeper) -> list[str]:
    assert keeper.policy.split is not None
    return [keeper.policy.split.arm(key).name for key in KEYS]


def test_reading_again_moves_no_client_and_a_new_server_does(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(TEXT)
    keeper = Keeper(path)
    before = arms(keeper)
    path.write_text(TEXT + "\nflags: {fast: mark}")
    keeper.reload()
    assert keeper.policy.flags
    assert arms(keeper) == before
    assert arms(Keeper(path)) != before  # equal by chance once in 2^64


def test_a_wrong_file_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(TEXT)

    def check(policy: Policy) -> None:
        if policy.version == "9":
            raise SettingsError("there is no version 9")

    keeper = Keeper(path, check)
    before = keeper.policy
    for text, said in (("split: 3", "must be a mapping"), ('version: "9"', "no version 9")):
        path.write_text(text)
        with pytest.raises(SettingsError, match=said):
            keeper.reload()
        assert keeper.policy is before
    path.unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        keeper.reload()
    assert keeper.policy is before


def test_without_a_file_nothing_is_decided() -> None:
    assert Keeper().policy == Policy()
