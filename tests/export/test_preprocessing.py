"""What preprocessor_config.json and timm's config.json say, as their libraries understand it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.preprocessing import MOST_BYTES, beside, hugging_face, timm
from metastable.errors import DataError
from metastable.images import Fit

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
VIT = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "ViTImageProcessor",
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 224, "width": 224},
    **HALF,
}
CLIP = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "image_processor_type": "CLIPImageProcessor",
    "resample": 3,
    "size": {"shortest_edge": 224},
    **IMAGENET,
}
CONVNEXT = {
    "crop_pct": 0.875,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "resample": 3,
    "size": 224,
    **IMAGENET,
}
RESNET50 = {
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "crop_pct": 0.95,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "test_input_size": [3, 288, 288],
    }
}


def raw(values: Any) -> bytes:
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    ("given", "size", "resized", "fit"),
    [
        (VIT, (224, 224), (224, 224), Fit("stretch", 1.0, "bilinear")),
        (VIT | {"size": 384}, (384, 384), (384, 384), Fit("stretch", 1.0, "bilinear")),
        (
            VIT | {"size": {"height": 96, "width": 64}, "resample": 1},
            (96, 64),
            (96, 64),
            Fit(interpolation="lanczos"),
        ),
        (CLIP, (224, 224), (224, 298), Fit("crop", 1.0, "bicubic")),
        (CLIP | {"size": 256, "crop_size": 224}, (224, 224), (256, 341), Fit("crop", 0.875, "bicubic")),
        (CONVNEXT, (224, 224), (256, 341), Fit("crop", 0.875, "bicubic")),
        (CONVNEXT | {"crop_pct": None}, (224, 224), (256, 341), Fit("crop", 0.875, "bicubic")),
        (CONVNEXT | {"crop_pct": 0.9}, (224, 224), (248, 330), None),  # int(224 / 0.9)
        (CONVNEXT | {"size": {"shortest_edge": 384}}, (384, 384), (384, 384), Fit()),
        # DeiT squashes to the size and crops; a bare number is both sides.
        (
            VIT
            | {
                "size": 256,
                "crop_size": 224,
                "do_center_crop": True,
                "image_processor_type": "DeiTImageProcessor",
            },
            (224, 224),
            (256, 256),
            Fit("stretch", 0.875, "bilinear"),
        ),
        (
            VIT | {"size": {"shortest_edge": 232}, "crop_size": {"height": 224, "width": 224}},
            (224, 224),
            (232, 309),
            None,
        ),
        (
            CLIP | {"image_processor_type": "LevitImageProcessor"},
            (224, 224),
            (256, 341),
            Fit("crop", 0.875, "bicubic"),
        ),
    ],
)
def test_sizes_of_hugging_face(
    given: dict[str, Any], size: tuple[int, int], resized: tuple[int, int], fit: Fit | None
) -> None:
    found = hugging_face(raw(given))
    assert found.size == size
    assert found.fit.resized((300, 400), size) == resized
    assert fit is None or found.fit == fit
    assert found.notes[0].startswith("read from preprocessor_config.json")


def test_normalization_is_in_units_of_zero_to_one() -> None:
    assert hugging_face(raw(VIT)).mean == pytest.approx((0.5, 0.5, 0.5))
    bytes_in = hugging_face(
        raw(VIT | {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3})
    )
    assert (bytes_in.mean, bytes_in.std) == (pytest.approx((0.5,) * 3), pytest.approx((0.5,) * 3))
    raw_in = hugging_face(raw(VIT | {"do_normalize": False, "image_mean": None}))
    assert raw_in.normalization(3) == (pytest.approx((0.0,) * 3), pytest.approx((1.0,) * 3))
    assert raw_in.normalization(1) == (pytest.approx((0.0,)), pytest.approx((1.0,)))
    # -1 to 1: x * 255 / 127.5 - 1
    moved = hugging_face(
        raw(VIT | {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False})
    ).normalization(3)
    assert moved == (pytest.approx((0.5,) * 3), pytest.approx((0.5,) * 3))
    efficient = hugging_face(raw(VIT | {"image_processor_type": "EfficientNetImageProcessor"}))
    assert efficient.std == pytest.approx((0.25,) * 3)  # include_top divides once more
    with pytest.raises(DataError, match="are of 3 channels, and the classifier takes 1"):
        efficient.normalization(1)


def test_channels_that_are_turned_are_said() -> None:
    assert not hugging_face(raw(VIT)).bgr
    assert hugging_face(raw(VIT | {"do_flip_channel_order": True})).bgr
    assert hugging_face(raw(CLIP | {"image_processor_type": "MobileViTImageProcessor"})).bgr


def test_what_is_left_out_is_told() -> None:
    found = hugging_face(raw({key: value for key, value in VIT.items() if key != "resample"}))
    assert found.fit.interpolation == "bilinear"
    assert "it says no interpolation: bilinear" in found.notes
    cfg = {"input_size": [3, 224, 224]}
    plain = timm(raw({"pretrained_cfg": cfg}))
    assert plain is not None
    assert plain.fit == Fit("crop", 0.875, "bicubic")
    assert any("crop_pct" in note for note in plain.notes)


@pytest.mark.parametrize(
    ("changed", "size", "resized", "mode"),
    [
        ({}, (224, 224), (235, 313), "crop"),  # floor(224 / 0.95)
        ({"crop_pct": 1.0}, (224, 224), (224, 298), "crop"),
        ({"crop_mode": "squash", "crop_pct": 0.9}, (224, 224), (248, 248), "stretch"),
        ({"input_size": [3, 224, 160], "crop_pct": 0.9}, (224, 160), (248, 330), "crop"),
        ({"input_size": [1, 28, 28], "mean": [0.5], "std": [0.2], "crop_pct": 1}, (28, 28), (28, 37), "crop"),
    ],
)
def test_timm(changed: dict[str, Any], size: tuple[int, int], resized: tuple[int, int], mode: str) -> None:
    found = timm(raw({"pretrained_cfg": RESNET50["pretrained_cfg"] | changed}))
    assert found is not None
    assert (found.size, found.fit.mode) == (size, mode)
    assert found.fit.resized((300, 400), size) == resized
    assert len(found.mean) == len(found.std)


@pytest.mark.parametrize(
    ("read", "given", "message"),
    [
        (hugging_face, VIT | {"size": {"longest_edge": 224}}, "size must be a number"),
        (hugging_face, VIT | {"size": {"shortest_edge": 224}}, "shortest_edge alone"),
        (hugging_face, VIT | {"size": None}, "size must be there"),
        (hugging_face, VIT | {"size": 0}, "size must be whole numbers"),
        (hugging_face, VIT | {"size": 2000}, "at most 1024 x 1024"),
        (hugging_face, VIT | {"resample": 4}, "resample must be one of 0 .nearest."),
        (hugging_face, VIT | {"do_resize": False}, "do_resize must be true"),
        (hugging_face, VIT | {"do_pad": True}, "do_pad must be false"),
        (hugging_face, VIT | {"do_normalize": "yes"}, "do_normalize must be true or false"),
        (hugging_face, VIT | {"image_std": [0.1, 0, 0.1]}, "image_std must be a number"),
        (hugging_face, VIT | {"image_mean": [0.5] * 4}, "image_mean must be 1 or 3 numbers"),
        (hugging_face, VIT | {"image_mean": None}, "image_mean must be there"),
        (hugging_face, VIT | {"rescale_factor": 0}, "rescale_factor must be a number"),
        (hugging_face, CLIP | {"crop_size": {"height": 224, "width": 160}}, "in proportion"),
        (hugging_face, CLIP | {"crop_size": 256}, "at least 256 x 256"),
        (hugging_face, CLIP | {"crop_size": None}, "crop_size must be there"),
        (timm, {"pretrained_cfg": 3}, "pretrained_cfg must be a mapping"),
        (timm, {"pretrained_cfg": {"input_size": [224, 224]}}, "input_size must be .channels"),
        (timm, {"pretrained_cfg": {"input_size": [3, 224, 224], "crop_mode": "border"}}, "crop_mode must be"),
        (
            timm,
            {"pretrained_cfg": {"input_size": [3, 224, 224], "interpolation": "random"}},
            "interpolation must",
        ),
        (timm, {"pretrained_cfg": {"input_size": [4, 224, 224]}}, "mean must be 4 numbers"),
    ],
)
def test_nonsense_is_one_sentence(read: Any, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(raw(given))


@pytest.mark.parametrize("data", [b"", b"[]", b'{"size": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000])
def test_only_strict_json_is_read(data: bytes) -> None:
    for read in (hugging_face, timm):
        with pytest.raises(DataError, match="is not"):
            read(data)


def test_files_beside_a_model(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    assert beside(model) is None
    (tmp_path / "config.json").write_bytes(raw({"architectures": ["ViTForImageClassification"]}))
    assert beside(model) is None  # another library's
    (tmp_path / "config.json").write_bytes(raw(RESNET50))
    found = beside(model)
    assert found is not None
    assert found.notes[0] == "read from config.json (timm)"
    (tmp_path / "preprocessor_config.json").write_bytes(raw(VIT))
    found = beside(model)
    assert found is not None
    assert found.size == (224, 224)
    assert found.fit.mode == "stretch"
    (tmp_path / "preprocessor_config.json").write_bytes(b" " * (MOST_BYTES + 1))
    with pytest.raises(DataError, match=r"preprocessor_config.json cannot be read: has more than"):
        beside(model)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").mkdir()
    with pytest.raises(DataError, match=r"preprocessor_config.json cannot be read"):
        beside(model)
