import dataclasses
from fractions import Fraction

import pytest
import torch

from metastable import anomaly, bundle, datasets
from metastable.datasets import ImageSet
from metastable.engine.local import engine_on
from metastable.errors import BundleError
from metastable.evaluation import kept
from metastable.evaluation.stats import wilson

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def some(tiny: bundle.Bundle) -> ImageSet:
    images = torch.randint(
        0, 256, (11, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    labels = tiny.classifier(datasets.to_float(images)).argmax(1)
    return ImageSet("noise", "test", images, labels, tiny.classes, False, {})


def test_views_stay_in_their_balls_and_fool_the_bare_classifier(tiny: bundle.Bundle, some: ImageSet) -> None:
    seen = kept.views(tiny, some, [Fraction(2, 255), Fraction(16, 255)])
    assert list(seen.images) == ["clean", "2/255", "16/255"]
    assert torch.equal(seen.images["clean"], some.images)
    for name, most in (("2/255", 2), ("16/255", 16)):
        moved = (seen.images[name].int() - some.images.int()).abs()
        assert 0 < moved.max() <= most

    def right(name: str) -> float:
        answers = tiny.classifier(datasets.to_float(seen.images[name])).argmax(1)
        return float((answers == some.labels).float().mean())

    assert right("clean") == 1
    assert right("16/255") < right("2/255") or right("2/255") == 0


def test_rows_count_what_the_server_would_answer(tiny: bundle.Bundle, some: ImageSet) -> None:
    flipped = 255 - some.images
    seen = kept.Views(some.labels, {"clean": some.images, "8/255": flipped}, False)
    limit = anomaly.Threshold(threshold=0.0, false_positive_rate=0.5, n=9, data={}, quantiles={})
    judged = dataclasses.replace(tiny, shifts={"fast": limit})
    rows = kept.measure(judged, engine_on("cpu", judged), seen, ["none", "fast"])
    none, fast = rows
    assert none["kept"]["clean"] == [1.0, *(round(v, 4) for v in wilson(11, 11))]
    answers = tiny.classifier(datasets.to_float(flipped)).argmax(1)
    hits = int((answers == some.labels).sum())
    assert none["kept"]["8/255"][0] == pytest.approx(hits / 11, abs=1e-4)
    assert none["shifted"] is None
    assert "shift" not in none["auroc"]
    assert fast["shifted"]["clean"][0] == 1.0  # any shift is above 0
    assert 0 <= fast["auroc"]["shift"]["8/255"] <= 1
    assert fast["ms"] > 0


def test_without_a_calibration_nothing_is_judged(tiny: bundle.Bundle, some: ImageSet) -> None:
    bare = dataclasses.replace(tiny, anomaly=None)
    seen = kept.Views(some.labels, {"clean": some.images}, False)
    with pytest.raises(BundleError, match="metastable calibrate"):
        kept.measure(bare, engine_on("cpu", bare), seen, ["fast"])


def test_radii_are_named_in_255ths() -> None:
    assert [kept.radius(Fraction(one)) for one in ("4/255", "1/510")] == ["4/255", "0.5/255"]
