from pathlib import Path
from typing import Any

import pytest

from metastable import yaml_text
from metastable.errors import SettingsError
from metastable.images import ImageLimits
from metastable.serving.configuration import Configuration


def test_the_file_at_the_root_repeats_the_defaults(root: Path) -> None:
    given = yaml_text.read((root / "model-config.yaml").read_text())["handler"]
    assert Configuration.of(given) == Configuration()
    assert set(given) == {*Configuration.__dataclass_fields__}


def test_what_is_left_out_or_left_empty_has_its_default() -> None:
    assert Configuration.of(None) == Configuration.of({}) == Configuration.of({"threads": None})
    assert Configuration().image_limits == ImageLimits()


def test_options_reach_the_limits() -> None:
    chosen = Configuration.of({"segment_ms": 50, "backlog_seconds": 2, "max_bytes": 9, "max_pixels": 8})
    assert (chosen.engine_limits.segment, chosen.engine_limits.backlog) == (0.05, 2.0)
    assert chosen.image_limits == ImageLimits(9, 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_pixel": 5}, "no handler option 'max_pixel', perhaps max_pixels is meant: use runner, threads"),
        ({"zzz": 5}, r"no handler option 'zzz': use runner, threads, segment_ms, backlog_seconds"),
        ({5: 5}, "no handler option 5: use"),
        ([1], r"handler must be a mapping of options, not \[1\]"),
        ({"runner": "magic"}, "runner must be one of auto, torch"),
        ({"runner": 3}, "handler option runner must be one of auto"),
        ({"threads": -1}, "threads must be 0, for one a core, or up to 4096, not -1"),
        ({"threads": True}, "threads must be 0"),
        ({"segment_ms": 0}, "segment_ms must be a number from 1 to 10000, not 0"),
        ({"backlog_seconds": "30"}, "backlog_seconds must be a number from 0.001 to .*, not '30'"),
        ({"backlog_seconds": float("inf")}, "backlog_seconds must be a number from"),
        ({"segment_ms": 10**400}, "segment_ms must be a number from 1 to 10000"),
        ({"max_bytes": 10**30}, "max_bytes must be a whole number from 1 to"),
        ({"allow_seed": "yes"}, "allow_seed must be true or false, not 'yes'"),
        ({"max_bytes": 1.5}, r"max_bytes must be a whole number from 1 to 1073741824, not 1\.5"),
        ({"max_pixels": 0}, "max_pixels must be a whole number from 1"),
    ],
)
def test_what_is_wrong_is_one_sentence(given: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        Configuration.of(given)
    assert "\n" not in str(refused.value)
