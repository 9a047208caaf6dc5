"""What a group comes to does not depend on what was done before it, nor on where it is done."""

import pickle
from typing import Any

import pytest
import torch

from metastable import bundle, datasets
from metastable.attacks.catalogue import ATTACKS
from metastable.evaluation.groups import Found, Group, Judge
from metastable.evaluation.robust_rows import NATURAL
from tests.evaluation.asked import config

EPS = 0.1
NEEDS = {
    "autoattack-rand": "adv_lib",
    **dict.fromkeys(("boundary", "carlini-wagner", "ead", "square"), "art"),
}
BEFORE = Group("softmax", NATURAL, EPS, 4, (4,))


def known(found: Found) -> list[dict[str, Any]]:
    """All but the times."""
    return [{k: v for k, v in o.items() if k not in ("ms", "seconds")} for o in found.outcomes]


@pytest.mark.slow
@pytest.mark.parametrize("attack", [NATURAL, *ATTACKS])
def test_a_group_comes_to_the_same_after_others_and_elsewhere(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, attack: str
) -> None:
    if attack in NEEDS:
        pytest.importorskip(NEEDS[attack])
    asked = config(steps=1, samples=2, check=2, restarts=1)
    group = Group("fast", attack, EPS, 1, (1, 2))
    judge = Judge(tiny, test_set, asked)
    alone = judge(group)
    used = Judge(tiny, test_set, asked)
    for before in (BEFORE, Group("fast", attack, EPS, 3, (3,))):
        used(before)
    torch.manual_seed(5)  # nobody may draw from the global generator
    there: Judge = pickle.loads(pickle.dumps(used))
    for again in (used(group), there(group)):
        assert known(again) == known(alone)
        assert (again.pixels is None) == (alone.pixels is None) == (attack == NATURAL)
        if again.pixels is not None and alone.pixels is not None:
            assert torch.equal(again.pixels, alone.pixels)


@pytest.mark.slow
def test_a_seed_is_of_the_group_and_noise_of_the_image(
    tiny: bundle.Bundle, test_set: datasets.ImageSet
) -> None:
    judge = Judge(tiny, test_set, config())
    first, other = (judge(Group("fast", "bpda-eot", EPS, seed, (1, 2))) for seed in (1, 0))
    assert known(first) != known(other)
    whole = judge(Group("fast", NATURAL, EPS, 1, (1, 2, 3, 4)))
    half = judge(Group("fast", NATURAL, EPS, 1, (1, 2)))
    assert [o["predicted"] for o in half.outcomes] == [o["predicted"] for o in whole.outcomes[:2]]


def test_only_what_it_was_made_of_leaves_its_process(
    tiny: bundle.Bundle, test_set: datasets.ImageSet
) -> None:
    judge = Judge(tiny, test_set, config())
    judge(Group("none", NATURAL, EPS, 0, (0,)))
    assert "_engine" in vars(judge)
    assert set(vars(pickle.loads(pickle.dumps(judge)))) == {"bundle", "test", "config", "device", "home"}
