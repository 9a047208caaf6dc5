"""Whatever stands in the files that are read beside a model: a sound value, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from export import preprocessing
from export.preprocessing import Preprocessing, hugging_face, timm
from metastable.errors import DataError
from tests.export.test_preprocessing import CLIP, CONVNEXT, RESNET50, VIT, raw

NUMBERS = st.one_of(
    st.integers(-3, 600), st.integers(), st.floats(0, 1), st.floats(allow_nan=False, allow_infinity=False)
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
SIZES = st.one_of(
    NUMBERS,
    st.fixed_dictionaries({"height": NUMBERS, "width": NUMBERS}),
    st.fixed_dictionaries({"shortest_edge": NUMBERS}),
)
CHANNELS = st.lists(st.floats(-2, 200), min_size=1, max_size=4)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "size": SIZES,
    "crop_size": SIZES,
    "crop_pct": NUMBERS,
    "image_mean": CHANNELS,
    "image_std": CHANNELS,
    "resample": st.integers(-1, 6),
    "rescale_factor": NUMBERS,
    "mean": CHANNELS,
    "std": CHANNELS,
    "input_size": st.lists(st.integers(0, 500), min_size=2, max_size=4),
    "interpolation": st.sampled_from(["bilinear", "bicubic", "random", ""]),
    "crop_mode": st.sampled_from(["center", "squash", "border"]),
    "image_processor_type": st.sampled_from(
        ["ViTImageProcessor", "CLIPImageProcessor", "EfficientNet", "Levit"]
    ),
    **dict.fromkeys(
        [
            "do_resize",
            "do_rescale",
            "do_normalize",
            "do_center_crop",
            "rescale_offset",
            "do_flip_channel_order",
        ],
        st.booleans(),
    ),
}
CHANGES = st.dictionaries(st.sampled_from(sorted(LIKELY)), st.none(), max_size=6).flatmap(
    lambda keys: st.fixed_dictionaries({key: st.one_of(LIKELY[key], LIKELY[key], ANYTHING) for key in keys})
)


def sound(found: Preprocessing) -> None:
    assert all(1 <= side <= 1024 for side in found.size)
    resized = found.fit.resized((333, 500), found.size)
    assert all(have >= want for have, want in zip(resized, found.size, strict=True))
    assert len(found.mean) == len(found.std) in (1, 3)
    assert min(found.std) >= 1e-6
    assert found.notes


def one_of_both(read: Callable[[bytes], Preprocessing | None], data: bytes, file: str) -> None:
    """A sound value, or one sentence that names the file."""
    refused = ""
    try:
        found = read(data)
    except DataError as error:
        refused = str(error)
    if refused:
        assert refused.startswith(file)
        assert "\n" not in refused
    else:
        assert found is not None
        sound(found)


@settings(max_examples=300, deadline=None)
@given(base=st.sampled_from([{}, VIT, CLIP, CONVNEXT]), changes=CHANGES)
def test_any_preprocessor_config_is_a_value_or_one_error(
    base: dict[str, Any], changes: dict[str, Any]
) -> None:
    one_of_both(hugging_face, raw(base | changes), preprocessing.HUGGING_FACE)


@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from([{}, RESNET50["pretrained_cfg"]]),
    changes=CHANGES,
    whole=st.booleans(),
    other=ANYTHING,
)
def test_any_timm_config_is_a_value_or_one_error(
    base: dict[str, Any], changes: dict[str, Any], whole: bool, other: Any
) -> None:
    one_of_both(timm, raw({"pretrained_cfg": base | changes if whole else other}), preprocessing.TIMM)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_one_error(data: bytes) -> None:
    for read in (hugging_face, timm):
        try:
            found = read(data)
        except DataError:
            continue
        assert found is None or found.notes
