"""The split's shares and what moves a client, rules for flags, and policies that fit what is served."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from metastable.errors import SettingsError
from metastable.images import Fit
from metastable.serving.backends.base import Served
from metastable.serving.policy.values import Arm, Policy, Rule, Shadow, Split

ARMS = (Arm("a", "fast", 6), Arm("b", "none", 3), Arm("c", "fast", 1))
SPLIT = Split(ARMS, b"a salt for this test alone")
KEYS = [f"client 10.{i // 65536}.{i // 256 % 256}.{i % 256}" for i in range(10_000)]


def test_shares_are_those_of_the_weights() -> None:
    """With this salt nothing is random; an uneven split has p below 1e-3 once in a thousand salts."""
    found = Counter(SPLIT.arm(key).name for key in KEYS)
    assert chisquare([found["a"], found["b"], found["c"]], [6_000, 3_000, 1_000]).pvalue > 1e-3


def test_arms_of_two_salts_are_independent() -> None:
    other = dataclasses.replace(SPLIT, salt=b"another salt than that one")
    both = Counter((SPLIT.arm(key).name, other.arm(key).name) for key in KEYS)
    cells = [(one, two) for one in ARMS for two in ARMS]
    expected = [len(KEYS) * one.weight * two.weight / 100 for one, two in cells]
    assert chisquare([both[one.name, two.name] for one, two in cells], expected).pvalue > 1e-3


@given(key=st.text(max_size=50), factor=st.floats(1e-3, 1e3))
def test_a_client_stays_whatever_the_weights_sum_to(key: str, factor: float) -> None:
    scaled = tuple(dataclasses.replace(one, weight=one.weight * factor) for one in ARMS)
    found = SPLIT.arm(key)
    assert SPLIT.arm(key) == found
    if all(abs(_point(key) - edge) > 1e-9 for edge in (0.6, 0.9)):
        assert Split(scaled, SPLIT.salt).arm(key).name == found.name


def _point(key: str) -> float:
    """Where a key falls in [0, 1), by the arm of a split into ever smaller parts."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        arms = (Arm("below", "x", middle), Arm("above", "x", 1 - middle))
        low, high = (low, middle) if Split(arms, SPLIT.salt).arm(key).name == "below" else (middle, high)
    return low


def test_more_weight_takes_clients_and_gives_none_away() -> None:
    more = Split((Arm("a", "fast", 7), Arm("b", "none", 2), Arm("c", "fast", 1)), SPLIT.salt)
    moved = {(SPLIT.arm(key).name, more.arm(key).name) for key in KEYS}
    assert moved - {("a", "a"), ("b", "b"), ("c", "c")} == {("b", "a")}


@pytest.mark.parametrize(
    ("by", "score", "shift", "flagged"),
    [
        ("either", False, True, True),
        ("either", True, None, True),
        ("either", False, None, False),
        ("score", False, True, False),
        ("shift", True, False, False),
        ("shift", True, None, False),
    ],
)
def test_a_rule_goes_by_its_statistic(by: Any, score: bool, shift: bool | None, flagged: bool) -> None:
    body = {"anomaly": {"flagged": score, "shift": {"flagged": shift}}}
    assert Rule("mark", by).flags(body) is flagged


def served(version: str, *settings: str) -> Served:
    return Served("m", version, "d", (3, 4, 4), Fit(), ("x", "y"), settings, settings[0], False, "torch")


MODELS = {"1": served("1", "fast", "none"), "2": served("2", "fast", "new")}
FITS = [
    Policy(),
    Policy(version="2", clients_may_name=("new",)),
    Policy(split=Split((Arm("a", "none", 1), Arm("b", "new", 1, "2")), b"")),
    Policy(shadow=Shadow("fast", 1.0)),
    Policy(flags={"none": Rule("stronger", setting="fast"), "new": Rule("refuse")}),
]
MISFITS = {
    "version names version 3, which is not loaded": Policy(version="3"),
    "clients_may_name names setting new": Policy(clients_may_name=("new",)),
    "split.arms.a names setting new": Policy(split=Split((Arm("a", "new", 1),), b"")),
    "split.arms.a names version 9": Policy(split=Split((Arm("a", "fast", 1, "9"),), b"")),
    "shadow names setting none, which version 2 does not": Policy(shadow=Shadow("none", 1.0)),
    "flags.best names setting best": Policy(flags={"best": Rule("mark")}),
    "flags.fast names setting none, which version 2": Policy(
        flags={"fast": Rule("stronger", setting="none")}
    ),
}


def test_what_fits_is_taken() -> None:
    for policy in FITS:
        policy.check(MODELS)


@pytest.mark.parametrize("said", MISFITS)
def test_what_does_not_fit_is_one_sentence(said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        MISFITS[said].check(MODELS)
    assert "\n" not in str(caught.value)
