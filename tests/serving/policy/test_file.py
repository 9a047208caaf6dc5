"""What a policy's file may say, and what is said of one that is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metastable.errors import SettingsError
from metastable.serving.policy import file
from metastable.serving.policy.values import Arm, Policy, Rule, Shadow, Split

SALT = bytes(32)
WHOLE = """
version: "1.2"
clients_may_name: [fast, balanced]
split:
  header: X-Account
  salt: a text that nobody else knows
  arms:
    current: {setting: fast, weight: 9}
    candidate: {setting: balanced, weight: 0.5, version: "2"}
shadow: {setting: accurate, share: 0.05, waiting: 8, report: shadow.json}
flags:
  fast: {action: stronger, setting: balanced, by: score}
  balanced: mark
  none: {action: refuse}
"""


def test_a_file_says_all_that_a_policy_has(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(WHOLE)
    assert file.load(tmp_path / "policy.yaml", salt=SALT) == Policy(
        version="1.2",
        clients_may_name=("fast", "balanced"),
        split=Split(
            (Arm("current", "fast", 9.0), Arm("candidate", "balanced", 0.5, "2")),
            b"a text that nobody else knows",
            "x-account",
        ),
        shadow=Shadow("accurate", 0.05, 8, tmp_path / "shadow.json"),
        flags={
            "fast": Rule("stronger", "score", "balanced"),
            "balanced": Rule("mark"),
            "none": Rule("refuse"),
        },
    )


def test_without_a_salt_the_servers_own_is_taken() -> None:
    found = file.parse("split: {arms: {a: {setting: fast, weight: 1}}}", salt=SALT)
    assert found.split == Split((Arm("a", "fast", 1.0),), SALT)
    assert "salt" not in repr(found)


WRONG = {
    "[": "is not valid YAML",
    "a: 1\na: 2": "is given twice",
    "": "must be a mapping",
    "{}": "says nothing",
    "split: 3": "split must be a mapping, not 3",
    "splt: {}": "has no splt, perhaps split is meant",
    "version: 1.2": "version must be a version in quotes",
    "clients_may_name: fast": "must be a list of settings",
    "clients_may_name: [3]": "must be the name of a setting, not 3",
    "split: {}": "split lacks arms",
    "split: {arms: {}}": "has 0 arms",
    "split: {arms: {a: {setting: fast}}}": "split.arms.a lacks weight",
    "split: {arms: {a: {setting: fast, wieght: 1}}}": "perhaps weight is meant",
    "split: {arms: {a: {setting: fast, weight: 0}}}": "a number above 0",
    "split: {arms: {a: {setting: fast, weight: .nan}}}": "a number above 0",
    "split: {arms: {a: {setting: fast, weight: .inf}}}": "a number above 0",
    "split: {arms: {a: {setting: fast, weight: true}}}": "a number above 0",
    "split: {arms: {a b: {setting: fast, weight: 1}}}": "letters, digits",
    "split: {arms: {1: {setting: fast, weight: 1}}}": "letters, digits",
    "split: {header: X Y, arms: {}}": "split.header must be the name of a header",
    "split: {header: X-Metastable-Arm, arms: {}}": "which are options",
    "split: {salt: short, arms: {}}": "16 to 256 characters",
    "shadow: {setting: fast}": "shadow lacks share",
    "shadow: {setting: fast, share: 0}": "above 0 and up to 1",
    "shadow: {setting: fast, share: 5}": "above 0 and up to 1",
    "shadow: {setting: fast, share: 1, waiting: 0}": "a whole number from 1",
    "shadow: {setting: fast, share: 1, report: 3}": "the path of a file",
    "flags: {fast: block}": "one of answer, mark, refuse, stronger",
    "flags: {fast: [mark]}": "flags.fast must be a mapping",
    "flags: {fast: {action: mark, by: norm}}": "one of either, score, shift",
    "flags: {fast: stronger}": "has a setting if, and only if",
    "flags: {fast: {action: mark, setting: none}}": "has a setting if, and only if",
    "flags: {fast: {action: stronger, setting: fast}}": "goes on to itself",
    "flags: {a: {action: stronger, setting: b}, b: refuse}": "whose own rule is refuse",
    "flags: {a: {action: stronger, setting: b}, b: {action: stronger, setting: c}}": "asked about twice",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_one_sentence(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        file.parse(text, salt=SALT)
    assert WRONG[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_salt_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        file.parse("split: {salt: hush, arms: {a: {setting: fast, weight: 1}}}", salt=SALT)
    assert "hush" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        file.load(tmp_path / "none.yaml", salt=SALT)
    (tmp_path / "latin").write_bytes(b"version: '\xff'")
    with pytest.raises(SettingsError, match="no UTF-8"):
        file.load(tmp_path / "latin", salt=SALT)
    (tmp_path / "long").write_text("#" * (file.MOST_BYTES + 1))
    with pytest.raises(SettingsError, match="a short file"):
        file.load(tmp_path / "long", salt=SALT)


def outcome(text: str) -> Policy | None:
    """A policy, or None for a SettingsError; whatever else is raised, or has two lines, fails the test."""
    said = ""
    try:
        return file.parse(text, salt=SALT)
    except SettingsError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return None


@given(st.text(max_size=200))
def test_any_text_is_a_policy_or_an_error(text: str) -> None:
    outcome(text)


_NAMES = st.sampled_from([*file.PARTS, "arms", "setting", "weight", "action", "by", "share", "fast", "x"])
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | _NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(file.PARTS), _ANY, max_size=5))
def test_any_yaml_is_a_policy_or_an_error(raw: dict[str, Any]) -> None:
    outcome(yaml.safe_dump(raw))


_SETTING = st.from_regex(r"[a-z_]{1,10}", fullmatch=True)
_WEIGHT = st.floats(1e-6, 1e6) | st.integers(1, 1000)


@given(
    arms=st.dictionaries(
        st.from_regex(r"[a-z0-9.-]*[a-z]", fullmatch=True).filter(lambda one: len(one) <= 40),
        st.tuples(_SETTING, _WEIGHT),
        min_size=1,
        max_size=file.MOST_ARMS,
    ),
    share=st.floats(0, 1, exclude_min=True),
    waiting=st.integers(1, file.MOST_WAITING),
    actions=st.dictionaries(_SETTING, st.sampled_from(["answer", "mark", "refuse"]), max_size=5),
)
def test_what_is_written_is_read(
    arms: dict[str, tuple[str, float]], share: float, waiting: int, actions: dict[str, str]
) -> None:
    raw = {
        "split": {
            "arms": {name: {"setting": setting, "weight": weight} for name, (setting, weight) in arms.items()}
        },
        "shadow": {"setting": "fast", "share": share, "waiting": waiting},
        "flags": actions,
    }
    found = outcome(yaml.safe_dump(raw))
    assert found is not None
    assert found.split is not None
    assert {one.name: (one.setting, one.weight) for one in found.split.arms} == arms
    assert found.shadow == Shadow("fast", share, waiting)
    assert {name: rule.action for name, rule in found.flags.items()} == actions


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(SettingsError, match="is no file: name a file of YAML"):
            file.load(path, salt=b"s")


@pytest.mark.parametrize("report", ["missing/report.json", "."])
def test_a_report_needs_a_folder_that_exists(report: str, tmp_path: Path) -> None:
    text = f"shadow: {{setting: fast, share: 0.5, report: {report}}}"
    with pytest.raises(SettingsError, match=r"shadow\.report must be a file in a folder that exists"):
        file.parse(text, salt=b"s", folder=tmp_path)
